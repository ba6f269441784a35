"""Adapters: the callback in frameworks that build the trainer themselves (Axolotl, ms-swift)."""
