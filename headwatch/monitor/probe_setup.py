"""The probe set of a run: made once, the same on every process, and read back when the run is resumed."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import nn

from headwatch.attribution.metrics import Metric
from headwatch.attribution.per_family import Metrics
from headwatch.model.whole_weights import whole_weights
from headwatch.monitor.distributed import on_main
from headwatch.monitor.family_choice import FamilyChoice, choose_families
from headwatch.monitor.settings import WatchSettings
from headwatch.probes import Openers, ProbeSet
from headwatch.probes.families import OPENERS
from headwatch.probes.file_format import check_tokenizer
from headwatch.probes.opener_sampling import sample_continuations
from headwatch.probes.openers import LONGEST_PAIR
from headwatch.probes.resolve import names_openers, resolve
from headwatch.record.run_folder import RunFolder


@dataclass(frozen=True)
class ProbeSpec:
    """What a run's probe set is made of: the settings of the same names."""

    probes: Any
    n_pairs: int
    seed: int
    openers: Openers

    @classmethod
    def of(cls, settings: WatchSettings) -> "ProbeSpec":
        """The part of the settings that decides which pairs there are."""
        return cls(settings.probes, settings.n_pairs, settings.seed, settings.openers)

    @property
    def has_openers(self) -> bool:
        """Whether the opener family is named."""
        return names_openers(self.probes)

    def chosen(
        self,
        settings: WatchSettings,
        tokenizer: Any,
        model: nn.Module,
        optimizer: Any,
        resumed: RunFolder | None,
        shows_bar: bool = False,
    ) -> tuple["ProbeSpec", FamilyChoice | None]:
        """This spec with named families, and how they were chosen (None if the user named the probes).

        Every process must call this.
        """
        if self.probes is not None:
            return self, None
        metric, least = settings.scoring.metric, settings.evidence.min_gap_t
        choice = choose_families(
            tokenizer, model, metric, self.n_pairs, least, self.seed, optimizer, resumed, shows_bar
        )
        return replace(self, probes=list(choice.families)), choice

    def freeze(self, tokenizer: Any, model: nn.Module, optimizer: Any, resumed: RunFolder | None) -> ProbeSet:
        """The probe set, the same on every process; every process must call this.

        Args:
            tokenizer: the trainer's.
            model: samples the openers.
            optimizer: the trainer's; needed under ZeRO-3 only.
            resumed: the record of the run so far, on the main process; its openers are read back.

        Raises:
            UserError: the set cannot be made.
        """
        openers = self._openers(tokenizer, model, optimizer, resumed) if self.has_openers else None
        return resolve(self.probes, tokenizer, self.n_pairs, self.seed, openers)

    def _openers(self, tokenizer: Any, model: nn.Module, optimizer: Any, resumed: RunFolder | None) -> ProbeSet:
        frozen = on_main(lambda: _frozen(resumed))
        if frozen is not None:
            check_tokenizer(frozen, tokenizer)
            return frozen
        sample = partial(
            sample_continuations,
            model,
            temperature=self.openers.temperature,
            top_p=self.openers.top_p,
            optimizer=optimizer,
        )
        config = getattr(model, "config", None)
        longest = min(LONGEST_PAIR, getattr(config, "max_position_embeddings", None) or LONGEST_PAIR)

        def make() -> ProbeSet:
            return self.openers.make(tokenizer, self.n_pairs, self.seed, sample, longest)

        if self.openers.source != "sampled":
            return on_main(make)
        with whole_weights(model, optimizer):  # gathered by all processes, so that the main one can sample alone
            return on_main(make)


def _frozen(resumed: RunFolder | None) -> ProbeSet | None:
    """The openers of a record; None where it has none."""
    path = None if resumed is None else resumed.path / "probes.safetensors"
    if path is None or not path.is_file():
        return None
    probes = ProbeSet.load(path)
    return probes.select(OPENERS) if OPENERS in probes.families else None


def metrics_of(probes: ProbeSet, metric: str | Metric, openers: Openers) -> Metrics:
    """Family -> its metric. Openers have no answers, so they have a metric of their own."""
    return {family: openers.metric if family == OPENERS else metric for family in probes.family_names}
