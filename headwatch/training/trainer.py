"""TRL's trainer and tokenizer for a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer
from trl import GRPOTrainer, SFTTrainer, get_peft_config, get_quantization_config

from headwatch.callback import HeadWatchCallback
from headwatch.demo.tiny_model import CHAT_TEMPLATE
from headwatch.errors import UserError
from headwatch.training.checkpoints import KeepOptimizers
from headwatch.training.data import PreparedRows
from headwatch.training.meta_model import one_line
from headwatch.training.options import Recipe
from headwatch.training.rewards import resolve


def release_ddp(trainer: Any) -> None:
    """Drop the DDP wrapper while the process group still lives.

    DDP's reducer is destroyed with the interpreter's lock held. Were it the last to hold the group, it would join the
    group's threads there, and one of them may be waiting for that lock: a training that has ended would never exit.
    """
    if trainer.model_wrapped is not trainer.model:
        trainer.model_wrapped = trainer.model
        trainer.accelerator.free_memory()  # its list of wrapped models; collects cycles too


def make_trainer(
    recipe: Recipe, tokenizer: Any, prepared: PreparedRows, watch: type[HeadWatchCallback] = HeadWatchCallback
) -> Any:
    """TRL's trainer for the recipe, with the callback; the model is loaded here."""
    training, launch, model = recipe.training, recipe.launch, recipe.model
    training.model_init_kwargs = {**model_options(recipe), **(training.model_init_kwargs or {})}
    callbacks: list[Any] = [watch.from_settings(recipe.watch)]
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
            shown = tokenizer.apply_chat_template([{"role": "user", "content": "message"}], tokenize=False)
        except Exception as error:  # jinja's kinds, and whatever a template raises
            raise UserError(f"--chat_template {template}: not a chat template ({one_line(error)})") from error
        if "message" not in shown:
            raise UserError(f"--chat_template {template}: it leaves out the message text")
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
