"""Many points at once: from a validated config to the directory of a run."""
