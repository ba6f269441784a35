"""`HeadHistory.from_run` is attached by this import."""

import headwatch.record.replay  # noqa: F401
