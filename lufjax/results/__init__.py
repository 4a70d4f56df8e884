"""What a run has counted, and what becomes of it: storage, datasets, prices, intervals, figures, reports."""
