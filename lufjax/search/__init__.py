"""The search for violations: every order of a few events on a tiny machine, or many random ones on a larger one (docs/EXPLORE.md)."""
