"""Frozen, fingerprinted pairs of clean and corrupted prompts, and the families that generate them."""

from headwatch.probes.families import FAMILIES
from headwatch.probes.file_format import load, save
from headwatch.probes.generate import generate
from headwatch.probes.openers import Openers
from headwatch.probes.pair_set import ProbeSet, Provenance
from headwatch.probes.resolve import DEFAULT_FAMILIES, resolve

# The public entries of ProbeSet whose files import pair_set.py. They are attached here, so that pair_set.py does not
# import them back; it declares their signatures for type checkers.
for _name, _entry in {
    "generate": staticmethod(generate),
    "load": staticmethod(load),
    "resolve": staticmethod(resolve),
    "save": save,
}.items():
    setattr(ProbeSet, _name, _entry)

__all__ = ["DEFAULT_FAMILIES", "FAMILIES", "Openers", "ProbeSet", "Provenance"]
