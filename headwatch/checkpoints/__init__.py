"""Saved models without a trainer: follow the checkpoints of a folder, compare finished models."""
