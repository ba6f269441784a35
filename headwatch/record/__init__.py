"""The run folder on disk: the record that every view reads."""
