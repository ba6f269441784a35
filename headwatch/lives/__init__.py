"""States and events of every attention head over the probes of a run."""
