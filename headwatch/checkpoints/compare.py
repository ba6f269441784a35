"""Compare post-trained models with their base, or thinking on with thinking off, on frozen probe pairs."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from headwatch.checkpoints.comparison import comparison_of
from headwatch.checkpoints.saved_models import SavedModels, last_complete_step
from headwatch.errors import UserError
from headwatch.io.atomic import write_atomic
from headwatch.io.plain_json import plain
from headwatch.model.loading import Loader, adapter_base, load_tokenizer, read_shape, release_memory
from headwatch.model.weights_stamp import weights_stamp
from headwatch.monitor.family_choice import choose_families
from headwatch.monitor.settings import WatchSettings
from headwatch.probes import ProbeSet
from headwatch.probes.file_format import check_tokenizer
from headwatch.probes.opener_sampling import sample_continuations
from headwatch.probes.openers import LONGEST_PAIR
from headwatch.probes.resolve import names_openers, resolve
from headwatch.probes.thinking import in_chat, require_switch, with_thinking
from headwatch.record.recorded_settings import recorded_settings
from headwatch.record.run_folder import RunFolder

SOURCE = "headwatch compare"
SHARED = Path("shared") / "base"  # below OUT: the base model's probe, copied into the record of each POST
PROBES = "probes"
OPENERS_FROM = ("both", "base")
COMPARED: dict[str, tuple[str, ...]] = {
    "": ("n_pairs", "seed"),
    "scoring": ("metric", "steps", "alphas", "edges"),
    "circuit": ("top_n",),
    "evidence": ("q",),
}
"""Settings that a complete record must share with the command, by group."""


@dataclass(frozen=True)
class CompareOptions:
    """What is compared.

    Attributes:
        base: the model before post-training.
        posts: models after it: folders, names on the Hub, or adapters.
        out: folder of the run folders, one per POST.
        think: "on" or "off" puts the pairs into that variant of the chat template; "both" compares each model's
            thinking off (first) with its thinking on; None leaves the pairs as they are.
        openers_from: "both": the POST samples the reasoning opener and the base the direct one, as in the paper;
            "base": the base samples both.
        tokenizer: name of the tokenizer; None is the base's.
    """

    base: str
    posts: Sequence[str]
    out: Path
    think: str | None = None
    openers_from: str = "both"
    tokenizer: str | None = None


class Comparer:
    """Makes one record per comparison: probe 0 is the base, probe 1 the POST.

    Complete records in the folder are not made again, so that a comparison that was stopped goes on.

    Args:
        options: what is compared.
        settings: of the probes and rules.
        loader: how models are loaded.
        say: receives a line for everything that happens.
    """

    def __init__(
        self, options: CompareOptions, settings: WatchSettings, loader: Loader, say: Callable[[str], None] = print
    ) -> None:
        self.options, self.settings, self.loader, self.say = options, settings, loader, say
        self.has_openers = names_openers(settings.probes)
        if not options.posts and options.think != "both":
            raise UserError("name at least one model to compare with BASE, or --think both for one model alone")
        if options.think == "both" and self.has_openers:
            raise UserError("--think both compares the same question in both variants, which openers are not")
        refuse_other_shapes(options)

    def run(self) -> dict[str, RunFolder]:
        """Name -> record of each comparison."""
        if self.options.think == "both":
            models = [self.options.base, *self.options.posts]
            return {f"{name}-think": self._thinking(name, model) for name, model in _named(models).items()}
        self.tokenizer = self._tokenizer()
        return {name: self._one(name, post) for name, post in _named(self.options.posts).items()}

    def results(self, runs: dict[str, RunFolder]) -> dict[str, Any]:
        """Name -> summary of its record (`comparison_of`)."""
        return {name: comparison_of(run) for name, run in runs.items()}

    def _tokenizer(self) -> Any:
        tokenizer = load_tokenizer(*_tokenizer_names(self.options.base, self.options.tokenizer))
        return tokenizer if self.options.think is None else with_thinking(tokenizer, self.options.think == "on")

    def _checked(self, run: RunFolder, base: str, post: str) -> RunFolder:
        """A complete record, if it is of these models, with these weights, pairs and settings."""
        compared, wanted = run.manifest.get("compared") or {}, _compared(base, post)
        if (compared.get("base"), compared.get("post")) != (base, post):
            raise UserError(
                f"{run.path} holds the comparison of {compared.get('base')} with {compared.get('post')}: give another "
                "--out"
            )
        if compared.get("weights", wanted["weights"]) != wanted["weights"]:
            raise UserError(
                f"{run.path} holds the comparison of these models with the weights that they had then: give another "
                "--out"
            )
        recorded, now = recorded_settings(run.manifest), self.settings.to_options()
        for group, names in COMPARED.items():
            then, own = (recorded.get(group) or {}, now[group]) if group else (recorded, now)
            for name in names:
                if name in then and not isinstance(then[name], dict) and then[name] != own[name]:
                    raise UserError(
                        f"{run.path} holds a comparison with {name}={then[name]}, and now it is {own[name]}: give "
                        "another --out"
                    )
        return run

    # --- base against POST ------------------------------------------------------------------------------------------

    def _one(self, name: str, post: str) -> RunFolder:
        folder = self.options.out / name
        if last_complete_step(folder) == 1:
            self.say(f"{name}: its record in {folder} is complete")
            return self._checked(RunFolder.open(folder), self.options.base, post)
        own_openers = self.has_openers and self.options.openers_from == "both"
        probes = self._probes(name if own_openers else "all", post if own_openers else None)
        check_tokenizer(probes, load_tokenizer(*_tokenizer_names(post, None), self.options.base), where=f"{post}: ")
        models = SavedModels(folder, replace(self.settings, probes=probes), self.tokenizer, name, SOURCE)
        if last_complete_step(folder) is None:
            self._base_into(folder, probes, shared=not own_openers)
        model = self.loader.model(post)
        models.begin(model)
        models.run.update_manifest(name=name, compared=_compared(self.options.base, post))
        self.say(f"{name}: scoring {post}")
        models.probe(1, model, final=True)
        models.end(finished=True)
        del model
        release_memory()
        return models.run

    def _base_into(self, folder: Path, probes: ProbeSet, shared: bool) -> None:
        """Score the base as probe 0 of a record, or copy it from the one that the comparisons share."""
        target = self.options.out / SHARED if shared else folder
        stamp = weights_stamp(self.options.base)
        if not _is_probe_of(target, probes, stamp):
            self.say(f"scoring the base, {self.options.base}")
            model = self.loader.model(self.options.base)
            settings = replace(self.settings, probes=probes)
            if shared:  # it is shown with each POST
                settings = replace(settings, report_to="none", wandb="off")
            models = SavedModels(target, settings, self.tokenizer, target.name, SOURCE)
            models.begin(model)
            models.run.update_manifest(weights=stamp)
            models.end(finished=True)
            del model
            release_memory()
        if shared:
            RunFolder.open(target).copy_to(folder)

    def _probes(self, name: str, post: str | None) -> ProbeSet:
        """The frozen set: read back if it was made before, else made and saved."""
        path = self.options.out / PROBES / f"{name}.safetensors"
        request = path.with_suffix(".request.json")
        wanted = plain(self._request())
        if path.is_file():
            made = json.loads(request.read_text(encoding="utf-8")) if request.is_file() else wanted
            for key, value in wanted.items():
                if made.get(key) != value:
                    raise UserError(
                        f"{path} was made with {key}={made.get(key)!r}, and now it is {value!r}: give another --out"
                    )
            return ProbeSet.load(path, self.tokenizer)
        settings = self.settings
        openers = self._openers(post) if self.has_openers else None
        if settings.probes is None:
            model = self.loader.model(self.options.base)
            settings = self._with_families(self.tokenizer, model, path.with_suffix(".look.json"))
            del model
            release_memory()
        probes = resolve(settings.probes, self.tokenizer, settings.n_pairs, settings.seed, openers)
        if self.options.think is not None and not self.has_openers:
            probes = in_chat(probes, self.tokenizer)[self.options.think == "on"]
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(request, f"{json.dumps(wanted, indent=1)}\n".encode())
        probes.save(path)
        return probes

    def _request(self) -> dict[str, Any]:
        """What the pairs are made from."""
        settings = self.settings
        names = settings.probes if isinstance(settings.probes, list | None) else str(settings.probes)
        found = {"probes": names, "pairs": settings.n_pairs, "seed": settings.seed, "think": self.options.think}
        if self.has_openers:
            found |= {"openers_from": self.options.openers_from, "questions": list(settings.openers.sources)}
        return found

    def _with_families(self, tokenizer: Any, model: Any, path: Path) -> WatchSettings:
        """The settings with named families: those with signal on the model, where the user named none.

        The look is written to `path`; it uses plain prompts, whatever `think` is.
        """
        settings = self.settings
        if settings.probes is not None:
            return settings
        choice = choose_families(
            tokenizer,
            model,
            settings.scoring.metric,
            settings.n_pairs,
            settings.evidence.min_gap_t,
            settings.seed,
            shows_bar=True,
        )
        self.say(choice.line)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, f"{json.dumps(choice.to_json(), indent=1)}\n".encode())
        return replace(settings, probes=list(choice.families))

    def _openers(self, post: str | None) -> ProbeSet:
        """Openers: the reasoning one of the POST (or, without one, of the base), the direct one of the base."""
        settings = self.settings
        base = self.loader.model(self.options.base)
        trained = base if post is None else self.loader.model(post)
        self.say(f"sampling openers from {self.options.base}{f' and {post}' if post else ''}")
        options: dict[str, Any] = {"temperature": settings.openers.temperature, "top_p": settings.openers.top_p}
        sample = partial(sample_continuations, trained, **options)
        direct = None if post is None else partial(sample_continuations, base, **options)
        longest = min(LONGEST_PAIR, getattr(base.config, "max_position_embeddings", None) or LONGEST_PAIR)
        return settings.openers.make(self.tokenizer, settings.n_pairs, settings.seed, sample, longest, direct)

    # --- thinking on against off ------------------------------------------------------------------------------------

    def _thinking(self, name: str, model_name: str) -> RunFolder:
        """Probe 0 with thinking off and probe 1 with thinking on, of one model."""
        folder = self.options.out / f"{name}-think"
        if last_complete_step(folder) == 1:
            self.say(f"{name}: its record in {folder} is complete")
            return self._checked(RunFolder.open(folder), model_name, model_name)
        tokenizer = load_tokenizer(*_tokenizer_names(model_name, self.options.tokenizer))
        require_switch(tokenizer)
        model = self.loader.model(model_name)
        settings = self._with_families(tokenizer, model, self.options.out / PROBES / f"{name}-think.look.json")
        plain = resolve(settings.probes, tokenizer, settings.n_pairs, settings.seed)
        off, on = in_chat(plain, tokenizer)
        models = SavedModels(folder, replace(settings, probes=off), tokenizer, f"{name}-think", SOURCE)
        self.say(f"{name}: scoring with thinking off, then on ({len(off)} pairs)")
        models.begin(model)
        on.save(folder / "probes-think-on.safetensors")
        models.run.update_manifest(
            name=f"{name}-think",
            compared=_compared(model_name, model_name) | {"think": ["off", "on"], "fingerprint_on": on.fingerprint},
        )
        models.set_probes(on)
        models.probe(1, model, final=True)
        models.end(finished=True)
        del model
        release_memory()
        return models.run


def refuse_other_shapes(options: CompareOptions, download: bool = True) -> None:
    """Compare the shapes of BASE and POSTs by their configurations, before any weights are loaded.

    Args:
        options: what is compared.
        download: False reads local configurations only, and leaves the other models out.

    Raises:
        UserError: a POST has another number of layers or heads than BASE.
    """
    if options.think == "both":
        return
    shapes: dict[str, tuple[int, int]] = {}
    for model in (options.base, *options.posts):
        try:
            shapes[model] = read_shape(model, download=download)
        except UserError:
            if download:
                raise
    base = shapes.get(options.base)
    for post, shape in shapes.items():
        if base is not None and shape != base:
            raise UserError(
                f"{post} has {shape[0]} layers x {shape[1]} heads, and {options.base} has {base[0]} x {base[1]}: only "
                "models of one shape can be compared head by head"
            )


def _compared(base: str, post: str) -> dict[str, Any]:
    """The manifest's "compared": the names, and the fingerprints of the weights in folders."""
    return {"base": base, "post": post, "weights": [weights_stamp(base), weights_stamp(post)]}


def _is_probe_of(folder: Path, probes: ProbeSet, stamp: str | None) -> bool:
    """Whether a record is complete, and is of these pairs and of weights with this stamp."""
    if last_complete_step(folder) is None:
        return False
    manifest = RunFolder.open(folder).manifest
    return manifest["probes"]["fingerprint"] == probes.fingerprint and manifest.get("weights", stamp) == stamp


def _named(models: Sequence[str]) -> dict[str, str]:
    """A distinct short name per model: the last part of its path."""
    found: dict[str, str] = {}
    for model in models:
        parts = [part for part in Path(model).parts if part not in ("/", ".", "..")]
        name = next(
            (tail for n in range(1, len(parts) + 1) if (tail := "-".join(parts[-n:])) not in found), f"{model}-2"
        )
        found[name] = model
    return found


def _tokenizer_names(model: str, given: str | None) -> list[str]:
    return [given] if given else [name for name in (model, adapter_base(model)) if name]
