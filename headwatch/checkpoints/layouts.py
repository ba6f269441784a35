"""Where trainers put their checkpoints: folder names by layout, and the step of each."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from headwatch.errors import UserError

DEEPEST = 4  # levels below the folder that a regular expression is matched with


@dataclass(frozen=True)
class Layout:
    """How a trainer names its checkpoints.

    Attributes:
        name: for `--layout`.
        pattern: matches the path of a checkpoint relative to the folder; the group "step" is its step.
        inside: folders of a checkpoint that may hold the model; the first one that exists is taken.
        marker: whether a checkpoint is finished: "state" (trainer_state.json, the last file that the Trainer writes),
            "STABLE" (prime-rl's file of that name), "latest" (verl's file that names the last saved step), or "".
    """

    name: str
    pattern: str
    inside: tuple[str, ...] = ("",)
    marker: str = ""


LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout("transformers", r"checkpoint-(?P<step>\d+)", marker="state"),
        Layout("verl", r"global_step_(?P<step>\d+)", ("actor/huggingface", "huggingface"), marker="latest"),
        Layout("openrlhf", r"(?:.*/)?global_step(?P<step>\d+)_hf"),
        Layout("prime-rl", r"(?:(?:[^/]+/)?weights/)?step_(?P<step>\d+)", marker="STABLE"),
        Layout("torchtitan", r"(?:checkpoint/)?step-(?P<step>\d+)"),
    )
}


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint folder.

    Attributes:
        step: the training step in its name.
        root: the folder that carries the name.
        path: the folder of the model: `root`, or one in it.
        layout: how it was found.
    """

    step: int
    root: Path = field(compare=False)
    path: Path = field(compare=False)
    layout: Layout = field(compare=False)

    @property
    def name(self) -> str:
        """The name of the folder."""
        return self.root.name

    def trainer_state(self) -> dict[str, Any] | None:
        """The Trainer's state, with its log; None where there is none, or an incomplete one."""
        try:
            state = json.loads((self.root / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return state if isinstance(state, dict) else None

    @property
    def is_final(self) -> bool:
        """Whether the Trainer's state states that this is the last step of the training."""
        state = self.trainer_state() or {}
        return self.step >= int(state.get("max_steps") or 0) > 0


def custom_layout(pattern: str) -> Layout:
    """The layout of a regular expression.

    Raises:
        UserError: it is not valid, or has no group.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UserError(f"--pattern {pattern!r} is not a regular expression ({error})") from error
    if compiled.groups < 1:
        raise UserError(rf"--pattern {pattern!r} has no group for the step: write one, such as step_(\d+)")
    return Layout("pattern", pattern)


def find_checkpoints(folder: Path, layout: Layout | None = None) -> list[Checkpoint]:
    """The checkpoints of a folder, sorted by step, whole or not.

    Args:
        folder: a trainer's output folder.
        layout: None takes the layout with the most checkpoints.

    Raises:
        UserError: two checkpoints have the same step.
    """
    if layout is not None:
        return _of_layout(folder, layout)
    found = [_of_layout(folder, layout) for layout in LAYOUTS.values()]
    return max(found, key=len)


def require_checkpoints(folder: Path, layout: Layout | None = None) -> list[Checkpoint]:
    """As `find_checkpoints`.

    Raises:
        UserError: there is none; the message names folders below with some.
    """
    found = find_checkpoints(folder, layout)
    if found:
        return found
    below = [] if layout else sorted(path for path in folder.iterdir() if _holds_some(path))
    if below:
        raise UserError(f"{folder}: no checkpoint in it, but in {' and '.join(map(str, below[:3]))}: give that")
    raise UserError(
        f"{folder}: no checkpoint in it; it may be checkpoint-N, global_step_N/actor/huggingface, step_N, step-N or "
        "global_stepN_hf, or match your own --pattern"
    )


def _holds_some(folder: Path) -> bool:
    """Whether there are checkpoints in a folder."""
    try:
        return bool(find_checkpoints(folder))
    except UserError:  # several of one step
        return True


def _of_layout(folder: Path, layout: Layout) -> list[Checkpoint]:
    pattern = re.compile(layout.pattern)
    found: dict[int, Checkpoint] = {}
    for path, relative in _folders(folder):
        match = pattern.fullmatch(relative)
        if match is None:
            continue
        text = match.group("step" if "step" in pattern.groupindex else 1)
        if text is None or not text.isdecimal():
            raise UserError(f"--pattern {layout.pattern!r}: its group gives {text!r} for {relative}, which is no step")
        step = int(text)
        if step in found:
            raise UserError(
                f"{folder}: {found[step].root.relative_to(folder)} and {relative} are both step {step}: "
                "give a --pattern that matches one of them"
            )
        inside = next((path / name for name in layout.inside if (path / name).is_dir()), path / layout.inside[0])
        found[step] = Checkpoint(step, path, inside, layout)
    return sorted(found.values(), key=lambda checkpoint: checkpoint.step)


def _folders(folder: Path, depth: int = 1, prefix: str = "") -> Iterator[tuple[Path, str]]:
    """(path, relative path) of all folders below `folder`, without temporary and hidden ones."""
    try:
        below = sorted(path for path in folder.iterdir() if path.is_dir())
    except OSError:  # deleted in the meantime
        return
    for path in below:
        if _is_temporary(path.name):
            continue
        relative = f"{prefix}{path.name}"
        yield path, relative
        if depth < DEEPEST:
            yield from _folders(path, depth + 1, f"{relative}/")


def _is_temporary(name: str) -> bool:
    return name.startswith((".", "tmp")) or name.endswith((".tmp", "_tmp", "-tmp", ".incomplete", ".partial"))
