"""Lanes on a GPU: one program that runs them from event to event (``backend=cuda``)."""
