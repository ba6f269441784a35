"""Frozen, fingerprinted pairs of clean and corrupted prompts, and the families that make them."""

from headwatch.probes.families import FAMILIES
from headwatch.probes.file_format import load, save
from headwatch.probes.generate import generate
from headwatch.probes.openers import Openers
from headwatch.probes.pair_set import ProbeSet
from headwatch.probes.resolve import DEFAULT_FAMILIES, resolve

# Public entries of ProbeSet that need the other files of this folder. They are attached here, so that no file imports
# in a circle: pair_set.py knows none of them.
ProbeSet.generate = staticmethod(generate)
ProbeSet.load = staticmethod(load)
ProbeSet.resolve = staticmethod(resolve)
ProbeSet.save = save  # type: ignore[method-assign, assignment]

__all__ = ["DEFAULT_FAMILIES", "FAMILIES", "Openers", "ProbeSet"]
