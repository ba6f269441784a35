"""Frozen, fingerprinted pairs of clean and corrupted prompts, and the families that make them."""

from headwatch.probes.families import FAMILIES
from headwatch.probes.openers import Openers
from headwatch.probes.pair_set import ProbeSet

__all__ = ["FAMILIES", "Openers", "ProbeSet"]
