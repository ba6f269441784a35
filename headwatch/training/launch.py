"""`headwatch train RECIPE.yaml [--option value ...]`, and the same under `accelerate launch -m headwatch.training`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoTokenizer
from trl import GRPOTrainer, SFTTrainer, get_peft_config, get_quantization_config

from headwatch.callback import HeadWatchCallback
from headwatch.errors import UserError
from headwatch.training.options import Options, Recipe, WatchArguments, in_options, parse
from headwatch.training.checkpoints import KeepOptimizers, keep_order, resumed_from, wandb_variables
from headwatch.training.data import Prepared, load_rows, prepare
from headwatch.training.plan import make_plan
from headwatch.demo.quiet import environment
from headwatch.training.rewards import resolve
from headwatch.training.meta_model import one_line, skeleton
from headwatch.training.smoke import Substitution, make_small, without_gpu, write_stand_ins
from headwatch.demo.tiny_model import CHAT_TEMPLATE


def main(arguments: Sequence[str]) -> int:
    """Run a recipe; 0 when it worked, 2 with one line on standard error (of the first rank) for a user's mistake."""
    try:
        run(arguments)
    except UserError as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"headwatch: {in_options(str(error))}", file=sys.stderr)
        return 2
    return 0


def run(arguments: Sequence[str], watch: type[HeadWatchCallback] = HeadWatchCallback) -> Any:
    """Parse, say what will be done, do it. Returns the trainer, or None after --dry-run.

    watch: the class of the callback, for a subclass that does more with the scores.

    Raises:
        UserError: whatever is wrong before the first step; in one line.
    """
    options = parse(arguments)
    replaced: list[Substitution] = []
    stand_ins: Path | None = None
    if options.values["smoke"]:
        output = str(options.values["output_dir"])
        stand_ins = Path(output) / "stand-ins" if "output_dir" in options.typed else Path(f"{output}-smoke")
        replaced = without_gpu(options) + make_small(options, stand_ins)
    elif options.values["dry_run"] and not torch.cuda.is_available():
        replaced = without_gpu(options)
    _check(options)
    recipe = options.build()
    variables = {}
    if recipe.launch.wandb_project and "WANDB_PROJECT" not in os.environ:
        variables["WANDB_PROJECT"] = recipe.launch.wandb_project
    if stand_ins is not None and "WANDB_MODE" not in os.environ:
        variables["WANDB_MODE"] = "offline"
        replaced.append(Substitution("WANDB_MODE", "online", "offline", "a smoke run is sent nowhere"))
    checkpoint = None if recipe.launch.dry_run else resumed_from(recipe.training)
    if checkpoint is not None and "WANDB_RUN_ID" not in os.environ:
        variables |= wandb_variables(checkpoint, recipe.training.output_dir)
    with environment(**variables):
        return _run(recipe, options, replaced, stand_ins, watch, checkpoint)


def _run(
    recipe: Recipe,
    options: Options,
    replaced: Sequence[Substitution],
    stand_ins: Path | None,
    watch: type[HeadWatchCallback],
    checkpoint: str | None,
) -> Any:
    first = recipe.training.process_index == 0
    if not recipe.launch.dry_run:
        try:
            (stand_ins or Path(recipe.training.output_dir)).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--output_dir {recipe.training.output_dir}: cannot be made ({error.strerror})") from error
    if stand_ins is not None:
        with recipe.training.main_process_first(local=False, desc="stand-ins"):
            if first:
                write_stand_ins(stand_ins)
    if first:
        _say(recipe, replaced)
    tokenizer = load_tokenizer(recipe)
    if recipe.launch.dry_run:
        if first:
            print(make_plan(recipe, tokenizer).text())
        return None
    skeleton(str(recipe.model.model_name_or_path), recipe.model.model_revision, recipe.training.trust_remote_code)
    with recipe.training.main_process_first(local=False, desc="rows"):
        rows = load_rows(recipe.data)
        prepared = prepare(
            rows, recipe.data, tokenizer, recipe.launch.method, max_length=getattr(recipe.training, "max_length", None)
        )
    if first:
        print(f"rows: {prepared.summary()}")
        if not prepared.complete:
            print(f"rows: {recipe.data.n_problems:,} were asked for, and there are no more")
        _record(recipe, options)
    trainer = make_trainer(recipe, tokenizer, prepared, watch)
    if checkpoint is not None:
        if first:
            print(f"going on from {checkpoint}")
        if recipe.launch.method == "grpo":
            keep_order(trainer, checkpoint)
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model(recipe.training.output_dir)
    let_go_of_ddp(trainer)
    if hasattr(trainer, "end"):  # transformers 5.18: closes trackers and the process group
        trainer.end()
    return trainer


def let_go_of_ddp(trainer: Any) -> None:
    """Drop the DDP wrapper while the process group still lives.

    DDP's reducer is destroyed with the interpreter's lock held. Were it the last to hold the group, it would join the
    group's threads there, and one of them may be waiting for that lock: a training that has ended would never exit.
    """
    if trainer.model_wrapped is not trainer.model:
        trainer.model_wrapped = trainer.model
        trainer.accelerator.free_memory()  # its list of wrapped models; collects cycles too


def make_trainer(
    recipe: Recipe, tokenizer: Any, prepared: Prepared, watch: type[HeadWatchCallback] = HeadWatchCallback
) -> Any:
    """TRL's trainer for the recipe, with the callback; the model is loaded here."""
    training, launch, model = recipe.training, recipe.launch, recipe.model
    training.model_init_kwargs = {**model_options(recipe), **(training.model_init_kwargs or {})}
    callbacks: list[Any] = [watch(**recipe.watch.callback_options(recipe.data.system_prompt))]
    if launch.keep_optimizers is not None:
        callbacks.append(KeepOptimizers(launch.keep_optimizers))
    stops = [tokenizer.convert_tokens_to_ids(token) for token in launch.stop_tokens or []]
    common: dict[str, Any] = {
        "model": model.model_name_or_path,
        "args": training,
        "train_dataset": prepared.rows,
        "processing_class": tokenizer,
        "callbacks": callbacks,
        "peft_config": get_peft_config(model),
        "quantization_config": get_quantization_config(model),
    }
    try:
        if launch.method == "sft":
            if launch.stop_tokens:
                training.eos_token = launch.stop_tokens[0]  # TRL writes it into the model's configs too
            return SFTTrainer(**common)
        if stops and training.use_vllm:  # vLLM knows the checkpoint's stop tokens alone
            training.generation_kwargs = {"stop_token_ids": stops, **(training.generation_kwargs or {})}
        rewards: list[Any] = list(resolve(launch.rewards))  # TRL's annotation is narrower than what it takes
        grpo = GRPOTrainer(reward_funcs=rewards, **common)
    except (ValueError, OSError, ImportError) as error:
        raise UserError(f"{recipe.path}: {' '.join(str(error).split())}") from error
    # Completions end at any of these, for sampling and for the mask: else those that end otherwise count as cut.
    grpo.eos_token_ids = [*stops, *(i for i in grpo.eos_token_ids if i not in stops)]
    if not training.use_vllm:
        grpo.generation_config.eos_token_id = grpo.eos_token_ids
    return grpo


def model_options(recipe: Recipe) -> dict[str, Any]:
    """from_pretrained's keywords. context_length raises the position limit alone: theta, and so the base, stays."""
    options: dict[str, Any] = {
        "revision": recipe.model.model_revision,
        "attn_implementation": recipe.model.attn_implementation,
        "dtype": recipe.model.dtype,
    }
    if recipe.launch.context_length:
        options["max_position_embeddings"] = recipe.launch.context_length
    return options


def load_tokenizer(recipe: Recipe) -> Any:
    """The model's tokenizer with the recipe's chat template and stop tokens.

    UserError where it cannot be loaded, has no template, or does not know a stop token.
    """
    name = recipe.model.model_name_or_path
    if not name:
        raise UserError("--model_name_or_path is missing: a model's name on the Hub, or a folder")
    if name.startswith(("/", ".", "~")) and not Path(name).is_dir():
        raise UserError(f"--model_name_or_path {name}: no such folder")
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(
            name, revision=recipe.model.model_revision, trust_remote_code=recipe.training.trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise UserError(f"--model_name_or_path {name}: its tokenizer could not be loaded: {one_line(error)}") from error
    template = recipe.launch.chat_template
    if template == "chatml":
        tokenizer.chat_template = CHAT_TEMPLATE
    elif template is not None:
        path = Path(template)
        if not path.is_file():
            raise UserError(f"--chat_template {template}: give chatml, or the path of a .jinja file")
        tokenizer.chat_template = path.read_text(encoding="utf-8")
        try:
            shown = tokenizer.apply_chat_template([{"role": "user", "content": "said"}], tokenize=False)
        except Exception as error:  # jinja's kinds, and whatever a template raises
            raise UserError(f"--chat_template {template}: not a chat template ({one_line(error)})") from error
        if "said" not in shown:
            raise UserError(f"--chat_template {template}: it leaves out what a message says")
    stops = recipe.launch.stop_tokens or []
    vocabulary = tokenizer.get_vocab() if stops else {}
    for token in stops:
        if token not in vocabulary:
            raise UserError(f"--stop_tokens {token}: not one token of {name}'s tokenizer")
    if stops:
        if tokenizer.pad_token is None:  # any other end pads, so that the end itself stays visible
            others = [token for token in [tokenizer.eos_token, *stops[1:]] if token and token != stops[0]]
            tokenizer.pad_token = (others or stops)[0]
        tokenizer.eos_token = stops[0]
    return tokenizer


def _check(options: Options) -> None:
    """What can be known to fail before anything is loaded."""
    values = options.values
    report_to = values["report_to"]
    if "wandb" in ([report_to] if isinstance(report_to, str) else report_to or []) and find_spec("wandb") is None:
        raise UserError("--report_to wandb: it is not installed; pip install 'headwatch[wandb]', or --report_to none")
    if values["keep_optimizers"] is not None and values["keep_optimizers"] < 1:
        raise UserError(f"--keep_optimizers {values['keep_optimizers']}: at least 1, or nothing could be resumed")
    for name in ("per_device_train_batch_size", "gradient_accumulation_steps"):
        if values[name] < 1:
            raise UserError(f"--{name} {values[name]}: at least 1")
    if options.method == "grpo":
        resolve(values["rewards"])
        weights = values["reward_weights"]
        if weights is not None and len(weights) != len(values["rewards"]):
            raise UserError(
                f"--reward_weights {' '.join(map(str, weights))}: {len(weights)} for {len(values['rewards'])} of "
                f"--rewards ({' '.join(values['rewards'])}); give one a reward"
            )
        if values["use_vllm"] and find_spec("vllm") is None and not values["dry_run"]:
            raise UserError("--use_vllm true: vllm is not installed; pip install vllm, or --use_vllm false (slower)")
    HeadWatchCallback(**_watch(options).callback_options())  # says what is wrong with them, if anything


def _watch(options: Options) -> WatchArguments:
    return WatchArguments(**{name: options.values[name] for name in WatchArguments.__dataclass_fields__})


def _say(recipe: Recipe, replaced: Sequence[Substitution]) -> None:
    print(f"recipe: {recipe.path} ({recipe.launch.method}), output: {recipe.training.output_dir}")
    if replaced:
        print(f"{len(replaced)} options are not the recipe's here, and no others:")
        for substitution in replaced:
            print(f"  {substitution}")


def _record(recipe: Recipe, options: Options) -> None:
    """Write {output_dir}/recipe.yaml: what was given, as it was resolved; `headwatch train` takes it again."""
    folder = Path(recipe.training.output_dir)
    folder.mkdir(parents=True, exist_ok=True)  # a smoke run's
    given = {name: options.values[name] for name in sorted(options.given | {"method"})}
    for name in ("smoke", "dry_run", "resume_from_checkpoint"):
        given.pop(name, None)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(given, sort_keys=True, allow_unicode=True), encoding="utf-8")
