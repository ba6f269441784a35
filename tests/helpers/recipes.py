"""Recipes for tests: flat dictionaries whose "headwatch.every" stands for the block's option."""

from typing import Any


def nested(options: dict[str, Any]) -> dict[str, Any]:
    """The options of a recipe, those with dots moved into their blocks."""
    found: dict[str, Any] = {}
    for name, value in options.items():
        *groups, leaf = name.split(".")
        block = found
        for group in groups:
            block = block.setdefault(group, {})
        block[leaf] = value
    return found
