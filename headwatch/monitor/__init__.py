"""What the callback is made of: recording a probe, alerts, resuming, several processes."""
