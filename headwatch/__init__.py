"""headwatch: watch, live, which attention heads post-training creates, keeps and throws away, next to the reward.

>>> import headwatch as hw
>>> trainer = GRPOTrainer(..., callbacks=[hw.HeadWatchCallback()])      # doctest: +SKIP
>>> probes = hw.ProbeSet.generate("addition", tokenizer)                # doctest: +SKIP
>>> hw.score_heads(model, probes).mean()                                # doctest: +SKIP
>>> hw.effect([0.5, 0.1], [0.25, 0.3]).round(3)
array([ 0.333, -0.5  ])
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from headwatch.version import __version__

if TYPE_CHECKING:
    from headwatch.analysis.faithfulness import faithfulness, faithfulness_curve
    from headwatch.analysis.interventions import mean_ablated_heads, scaled_heads, write_scaled_heads
    from headwatch.analysis.patching import HeadPatches, patch_heads
    from headwatch.attribution import EdgeScores, HeadScores, score_edges, score_heads
    from headwatch.callback import HeadWatchCallback
    from headwatch.circuits.circuit import Circuit
    from headwatch.errors import UnsupportedModelError, UserError
    from headwatch.model.anatomy import Anatomy
    from headwatch.model.read_only import read_only_pass
    from headwatch.probes import Openers, ProbeSet
    from headwatch.record.replay import HeadHistory
    from headwatch.record.run_folder import RunFolder
    from headwatch.stats import EvidenceSettings
    from headwatch.stats.importance import effect

# The module of each public name. Modules are imported on first use, because torch and transformers take seconds to
# import and reading a record needs neither.
_HOMES = {
    "analysis.faithfulness": ("faithfulness", "faithfulness_curve"),
    "analysis.interventions": ("mean_ablated_heads", "scaled_heads", "write_scaled_heads"),
    "analysis.patching": ("HeadPatches", "patch_heads"),
    "attribution": ("EdgeScores", "HeadScores", "score_edges", "score_heads"),
    "callback": ("HeadWatchCallback",),
    "circuits.circuit": ("Circuit",),
    "errors": ("UnsupportedModelError", "UserError"),
    "record.replay": ("HeadHistory",),
    "model.anatomy": ("Anatomy",),
    "model.read_only": ("read_only_pass",),
    "probes": ("Openers", "ProbeSet"),
    "record.run_folder": ("RunFolder",),
    "stats.importance": ("effect",),
    "stats.settings": ("EvidenceSettings",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Anatomy",
    "Circuit",
    "EdgeScores",
    "EvidenceSettings",
    "HeadHistory",
    "HeadPatches",
    "HeadScores",
    "HeadWatchCallback",
    "Openers",
    "ProbeSet",
    "RunFolder",
    "UnsupportedModelError",
    "UserError",
    "__version__",
    "effect",
    "faithfulness",
    "faithfulness_curve",
    "mean_ablated_heads",
    "patch_heads",
    "read_only_pass",
    "scaled_heads",
    "score_edges",
    "score_heads",
    "write_scaled_heads",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'headwatch' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(f"headwatch.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return __all__
