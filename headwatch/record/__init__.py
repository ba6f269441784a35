"""The run folder on disk: the record that reports and tools read."""
