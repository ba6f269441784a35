"""The plan of a recipe, from its options, its tokenizer and a few rows; --dry-run prints it."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset, load_dataset_builder
from torch import nn

from headwatch.attribution.batch_size import GIB, budget_gb
from headwatch.errors import UserError
from headwatch.probes import ProbeSet
from headwatch.probes.families import OPENERS
from headwatch.probes.questions import load_questions
from headwatch.probes.resolve import names_openers, resolve
from headwatch.training.data import DataArguments, load_rows, prepare
from headwatch.training.meta_model import load_meta_model
from headwatch.training.options import Recipe
from headwatch.training.processes import planned

LOOKED_AT = 64  # rows


@dataclass(frozen=True)
class Memory:
    """Estimated memory per device, in GiB, without logits: TRL computes them in chunks.

    `gathered`: the whole weights of a sharded model, which each device holds during a probe; `working`: the weights and
    gradients that it holds whole at once in a step.
    """

    weights: float
    gradients_and_optimizer: float
    activations: float
    probe: float
    reference: float = 0.0
    gathered: float = 0.0
    optimizer: float = 0.0
    working: float = 0.0

    @property
    def total(self) -> float:
        """Peak of a step or of a probe, which runs between steps, when no gradient is held."""
        return (
            self.weights
            + self.reference
            + max(
                self.gradients_and_optimizer + self.activations + self.working,
                self.optimizer + self.gathered + self.probe,
            )
        )


@dataclass(frozen=True)
class Plan:
    """The numbers of a run."""

    recipe: Recipe
    rows: int
    rows_available: int | None
    sample: str
    step_rows: int
    steps: int
    mean_tokens: float
    parameters: int
    trainable: int
    memory: Memory
    probe_steps: int
    pairs: int
    fingerprint: str
    openers: str = ""

    def text(self) -> str:
        """The plan as text, one line per topic."""
        recipe, memory, training = self.recipe, self.memory, self.recipe.training
        grpo = recipe.launch.method == "grpo"
        processes = planned(recipe.launch.accelerate_config)
        world = processes.number
        accumulated = f"{training.per_device_train_batch_size} x {training.gradient_accumulation_steps} x {world}"
        if grpo:
            completions = self.step_rows * training.num_generations
            step = f"{self.step_rows} prompts x {training.num_generations} completions ({accumulated} = {completions})"
            tokens = f"about {self.mean_tokens:.0f} per prompt, up to {training.max_completion_length} per completion"
            most = self.steps * completions * training.max_completion_length
            total = f"at most {most:,} sampled"
        else:
            step = f"{self.step_rows} conversations ({accumulated})"
            tokens = f"about {self.mean_tokens:.0f} per conversation, at most {training.max_length}"
            total = f"about {self.steps * self.step_rows * self.mean_tokens:,.0f} trained on"
        available = "unknown" if self.rows_available is None else f"{self.rows_available:,}"
        project = os.environ.get("WANDB_PROJECT") or recipe.launch.wandb_project or "huggingface"
        reports = [training.report_to] if isinstance(training.report_to, str) else list(training.report_to or [])
        lines = [
            ("model", f"{recipe.model.model_name_or_path}, {self.parameters:,} parameters, {self.trainable:,} trained"),
            ("data", f"{recipe.data.dataset_name}, {available} rows, about {self.rows:,} used; {self.sample}"),
            ("step", step),
            (
                "steps",
                f"{self.steps:,}" + ("" if training.max_steps > 0 else f" ({training.num_train_epochs:g} epochs)"),
            ),
            ("tokens", f"{tokens}; {total}"),
            ("learning rate", f"{training.learning_rate:g}, {_word(training.lr_scheduler_type)}"),
            (
                "memory",
                f"about {memory.total:.1f} GiB per device, estimated: weights {memory.weights:.1f}, reference "
                f"{memory.reference:.1f}, gradients and Adam {memory.gradients_and_optimizer:.1f}, activations "
                f"{memory.activations:.1f}"
                + (f", weights and gradients in use {memory.working:.1f}" if memory.working else "")
                + f"; a probe, between steps, up to {memory.probe:.1f}"
                + (f" and the whole weights, {memory.gathered:.1f}" if memory.gathered else "")
                + (f"; vLLM {training.vllm_gpu_memory_utilization:.0%} of the device" if self._vllm else ""),
            ),
            ("processes", f"{world}, {processes.kind or 'not sharded'}"),
            (
                "probes",
                f"{self.probe_steps} (step 0, every {recipe.watch.every}, the last), {self.pairs} pairs of "
                f"{families_line(recipe)}" + (f", set {self.fingerprint[:12]}" if self.fingerprint else ""),
            ),
            *([("openers", self.openers)] if self.openers else []),
            ("evidence", ", ".join(f"{name} {value}" for name, value in vars(recipe.watch.evidence).items())),
            ("alerts", ", ".join(f"{name} {value:g}" for name, value in vars(recipe.watch.alerts).items())),
            ("checkpoints", self.checkpoints()),
            ("record", str(recipe.watch.folder or Path(training.output_dir) / "headwatch")),
            (
                "logs",
                (f"W&B project {project}" if "wandb" in reports else ", ".join(reports) or "none")
                + f"; probes: {joined(recipe.watch.report_to)}, W&B run: {recipe.watch.wandb}",
            ),
        ]
        if grpo:
            weights = training.reward_weights or [1.0] * len(recipe.launch.rewards)
            named = zip(recipe.launch.rewards, weights, strict=False)
            lines.insert(5, ("rewards", " + ".join(f"{weight:g} x {name}" for name, weight in named)))
        return "\n".join(f"  {name:<14} {text}" for name, text in lines)

    def checkpoints(self) -> str:
        """Number of checkpoints kept, and disk space with the final model, in GB (10^9 bytes)."""
        training, keep = self.recipe.training, self.recipe.launch.keep_optimizers
        wide = 4 if self.recipe.model.use_peft or self.recipe.model.dtype in (None, "float32") else 2
        weights, optimizer = self.trainable * wide / 1e9, 2 * self.trainable * wide / 1e9
        strategy, every = _word(training.save_strategy), training.save_steps
        if strategy == "steps":
            every = math.ceil(every * self.steps) if every < 1 else int(every)
            kept, when = math.ceil(self.steps / (every or self.steps)), f"every {every} steps, and the last"
        elif strategy == "epoch":
            kept, when = math.ceil(training.num_train_epochs), "every epoch"
        else:
            return f"none ({strategy}); the final model {weights:.1f} GB"
        if training.save_total_limit:
            kept = min(kept, training.save_total_limit)
        whole = 0 if training.save_only_model else kept if keep is None else min(kept, keep)
        total = (kept + 1) * weights + whole * optimizer
        text = f"{kept} kept ({when}) of {weights:.1f} GB"
        text += f", the last {whole} with {optimizer:.1f} GB of optimizer" if whole else ", not resumable"
        return f"{text}; about {total:.0f} GB with the final model"

    @property
    def _vllm(self) -> bool:
        return bool(self.recipe.values.get("use_vllm"))


def make_plan(recipe: Recipe, tokenizer: Any) -> Plan:
    """Make the plan; reads a few rows of the data, and only the configuration of the model."""
    training, launch, data = recipe.training, recipe.launch, recipe.data
    some, available = few_rows(data)
    wanted, data.n_problems = data.n_problems, None
    try:
        prepared = prepare(some, data, tokenizer, launch.method, max_length=getattr(training, "max_length", None))
    finally:
        data.n_problems = wanted
    share = len(prepared.rows) / max(1, len(some))
    rows = min(n for n in (wanted, None if available is None else round(available * share)) if n is not None)
    column = "prompt" if launch.method == "grpo" else "messages"
    texts = [
        tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=launch.method == "grpo")
        for messages in prepared.rows[column]
    ]
    lengths = [len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
    step_rows, steps = steps_of(recipe, rows)
    model = load_meta_model(
        str(recipe.model.model_name_or_path), recipe.model.model_revision, training.trust_remote_code
    )
    parameters = sum(p.numel() for p in model.parameters())
    trainable = _lora_parameters(model, recipe) if recipe.model.use_peft else parameters
    pairs, fingerprint, openers = _probes(recipe, tokenizer)
    every = recipe.watch.every
    return Plan(
        recipe=recipe,
        rows=rows,
        rows_available=available,
        sample=f"of {len(some)} read, skipped: {prepared.skipped}",
        step_rows=step_rows,
        steps=steps,
        mean_tokens=sum(lengths) / len(lengths),
        parameters=parameters,
        trainable=trainable,
        memory=_memory(recipe, model.config, parameters, trainable, lengths),
        probe_steps=1 + steps // every + (steps % every > 0),
        pairs=pairs,
        fingerprint=fingerprint,
        openers=openers,
    )


def _probes(recipe: Recipe, tokenizer: Any) -> tuple[int, str, str]:
    """(pairs, fingerprint of the set, description of the openers); "" if not known before training begins."""
    watch = recipe.watch
    given, openers, n_pairs, seed = watch.probes, watch.openers, watch.n_pairs, watch.seed
    if given is None:
        return 2 * n_pairs, "", ""  # at most; chosen when training begins
    if not names_openers(given):
        probes = resolve(given, tokenizer, n_pairs, seed)
        return len(probes), probes.fingerprint, ""
    questions, _ = load_questions(openers.sources)
    described = (
        f"{openers.source}{' at step 0' if openers.source == 'sampled' else ''}, up to {openers.tokens} tokens, after "
        f"{len(questions)} questions ({', '.join(openers.sources)}), read by {openers.metric}"
    )
    if openers.source == "fixed":
        probes = resolve(given, tokenizer, n_pairs, seed, openers.make(tokenizer, n_pairs, seed))
        return len(probes), probes.fingerprint, described
    others = [name for name in watch.families if name != OPENERS]
    known = len(ProbeSet.generate(others, tokenizer, n_pairs, seed)) if others else 0
    return known + n_pairs, "", described


def few_rows(arguments: DataArguments) -> tuple[Dataset, int | None]:
    """The first rows of the data and the number of all rows; streamed from the Hub."""
    name = str(arguments.dataset_name)
    if not arguments.dataset_name or Path(name).expanduser().exists() or name.startswith(("/", ".", "~")):
        rows = load_rows(arguments)
        return rows.select(range(min(LOOKED_AT, len(rows)))), len(rows)
    where = {"revision": arguments.dataset_revision}
    try:
        builder = load_dataset_builder(name, arguments.dataset_config, **where)
        splits = builder.info.splits or {}
        split = splits.get(arguments.dataset_split)
        stream = load_dataset(name, arguments.dataset_config, split=arguments.dataset_split, streaming=True, **where)
        return Dataset.from_list(list(stream.take(LOOKED_AT))), split.num_examples if split else None
    except UserError:
        raise
    except Exception as error:  # no network, perhaps: then the cache may hold all of it
        rows = load_rows(arguments)
        if not len(rows):
            raise UserError(f"--dataset_name {name}: no rows") from error
        return rows.select(range(min(LOOKED_AT, len(rows)))), len(rows)


def steps_of(recipe: Recipe, rows: int) -> tuple[int, int]:
    """(rows per step, optimizer steps); GRPO drops the last incomplete batch of prompts, SFT does not."""
    training = recipe.training
    batch = training.per_device_train_batch_size * planned(recipe.launch.accelerate_config).number
    accumulation = training.gradient_accumulation_steps
    if recipe.launch.method == "grpo":
        step_rows = max(1, batch * accumulation // training.num_generations)
        an_epoch = rows // step_rows * training.num_iterations
    else:
        step_rows = batch * accumulation
        an_epoch = math.ceil(math.ceil(rows / batch) / accumulation)
    steps = training.max_steps if training.max_steps > 0 else math.ceil(training.num_train_epochs * an_epoch)
    if steps < 1:
        raise UserError(f"{rows} rows make no whole step of {step_rows}: lower --gradient_accumulation_steps")
    return step_rows, steps


def _memory(recipe: Recipe, config: Any, parameters: int, trainable: int, lengths: list[int]) -> Memory:
    """Weights in their dtype; for each trained parameter a float32 gradient and two Adam moments.

    Activations, with checkpointing: each layer's float32 input, and about 16 M + 5 (width of the MLP) floats of the
    one layer that is being recomputed; FSDP2 with mixed precision keeps most of them in 16 bits.

    What FSDP2 holds whole in backward: the output matrix (with tied embeddings the embeddings), two layers, and the
    gradient of the largest of these with its copy for the reduction; in the dtype of the forward pass.
    """
    training, model = recipe.training, recipe.model
    wide = 4 if model.dtype in (None, "float32") else 2
    grpo = recipe.launch.method == "grpo"
    longest = max(lengths) + training.max_completion_length if grpo else (training.max_length or max(lengths))
    text = config.get_text_config()
    hidden, layers = text.hidden_size, text.num_hidden_layers
    a_layer = 16 * hidden + 5 * getattr(text, "intermediate_size", 4 * hidden)
    floats = layers * hidden + a_layer if training.gradient_checkpointing else layers * a_layer
    processes = planned(recipe.launch.accelerate_config)
    parts, computed = processes.parts, 2 if training.bf16 or processes.half else wide
    output = hidden * text.vocab_size
    layer = (parameters - output * (1 if text.tie_word_embeddings else 2)) // layers
    whole = output + 2 * layer + (0 if model.use_peft else 2 * max(output, layer))
    budget = recipe.watch.scoring.memory_budget_gb or budget_gb(trainable * 4 // parts)
    return Memory(
        weights=(parameters * wide + (trainable * 4 if model.use_peft else 0)) / parts / GIB,
        gradients_and_optimizer=trainable * 12 / parts / GIB,
        optimizer=trainable * 8 / parts / GIB,
        gathered=parameters * computed / GIB if parts > 1 else 0.0,
        working=whole * computed / GIB if parts > 1 else 0.0,
        activations=training.per_device_train_batch_size * longest * floats * 4 / GIB,
        probe=budget,
        reference=parameters * wide / parts / GIB if grpo and training.beta and not model.use_peft else 0.0,
    )


def _lora_parameters(model: Any, recipe: Recipe) -> int:
    """Rank times inputs and outputs of every adapted projection: all-linear leaves the output head out."""
    named = recipe.model.lora_target_modules
    wanted = None if named in (None, "all-linear") else ([named] if isinstance(named, str) else named)
    head = model.get_output_embeddings()
    return sum(
        recipe.model.lora_r * (module.in_features + module.out_features)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and module is not head
        and (wanted is None or name.rpartition(".")[2] in wanted)
    )


def families_line(recipe: Recipe) -> str:
    """The families of the probes, as named."""
    if recipe.watch.probes is None:
        return "up to two families, chosen by a look at the model when training begins"
    return ", ".join(recipe.watch.families) or str(recipe.watch.probes)


def joined(names: Any) -> str:
    """One name, or several with commas."""
    return names if isinstance(names, str) else ", ".join(names)


def _word(value: Any) -> str:
    return str(getattr(value, "value", value))
