"""headwatch: watch which attention heads post-training creates, keeps and throws away."""

__version__ = "0.1.0"
