"""Layout of a run folder: the append-only, crash-safe record of a run. Depends on neither the model nor torch.

    manifest.json                    what was run; rewritten atomically
    probes.safetensors               the probe set (written by ProbeSet.save)
    base_answers.safetensors         the base model's answers to it (written by save_base_answers)
    scores/step-00000100.safetensors per-pair arrays of one probe; written atomically
    scalars.jsonl                    one line per probe
    training.jsonl                   one line per log of the trainer
    events.jsonl                     one line per event in the life of a head
    alerts.jsonl                     one line per alert of a probe
    after/circuits.json, ...         results of commands that were run later (headwatch/record/after.py)
    .owner.lock                      locked by the process that writes (headwatch/record/owner.py)

One process writes; any number may read at the same time. Nothing is ever deleted: what a new or resumed run replaces
is moved to previous-<n>/ or resumed-<n>/.
"""

from pathlib import Path

FORMAT = 2
READABLE = (1, FORMAT)  # 1: files of scores hold larger arrays (score_file.py)
MANIFEST = "manifest.json"
PROBES = "probes.safetensors"
BASE_ANSWERS = "base_answers.safetensors"
SCORES = "scores"
AFTER = "after"
LOGS = ("scalars.jsonl", "training.jsonl", "events.jsonl", "alerts.jsonl")
RECORD = (SCORES, *LOGS, BASE_ANSWERS, PROBES, AFTER, MANIFEST)


def scores_path(folder: Path, step: int) -> Path:
    """The file of the arrays of the probe at `step`."""
    return folder / SCORES / f"step-{int(step):08d}.safetensors"


def scored_steps(folder: Path) -> list[int]:
    """Steps whose arrays are on disk, sorted."""
    names = (path.name for path in (folder / SCORES).glob("step-*.safetensors"))
    digits = (name.removeprefix("step-").removesuffix(".safetensors") for name in names)
    return sorted(int(d) for d in digits if d.isdigit())
