"""Parts of one machine: each module knows one structure, none knows a batch axis."""
