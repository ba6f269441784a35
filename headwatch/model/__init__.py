"""The model: its parts, its forward pass, temporary hooks, and the read-only guard."""
