"""Reading and writing files: atomic writes, append-only logs, values as JSON holds them. Knows nothing of headwatch."""
