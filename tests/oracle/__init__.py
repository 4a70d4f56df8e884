"""The reference simulator: plain Python, written from docs/MODEL.md, importing nothing of the package it checks."""

from __future__ import annotations

from .machine import Oracle

__all__ = ["Oracle"]
