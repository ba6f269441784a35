"""What several tests share: tiny models and trainings, runs on disk, readers of what a run wrote."""
