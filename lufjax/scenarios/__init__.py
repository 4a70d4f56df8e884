"""A few events by hand: scenario and litmus files, timelines, the matrix of verdicts."""
