"""The settings of a manifest, nested as HeadWatchCallback's, whichever version wrote them."""

from collections.abc import Mapping
from typing import Any

SCORING = ("metric", "steps", "alphas", "edges", "batch_size", "memory_budget_gb")
CIRCUIT = ("top_n", "tau")


def recorded_settings(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a manifest; those of older records, which were flat, moved into their groups."""
    settings = dict(manifest.get("settings") or {})
    for group, names in (("scoring", SCORING), ("circuit", CIRCUIT)):
        flat = {name: settings.pop(name) for name in names if name in settings}
        if flat:
            settings[group] = flat | dict(settings.get(group) or {})
    return settings
