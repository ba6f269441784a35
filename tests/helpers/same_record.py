"""Two run folders that hold the same record."""

import numpy as np

from headwatch import HeadHistory, RunFolder
from headwatch.lives.history_view import RULES

# Values of the record and of the trainer's log that a clock or the machine decides ...
MEASURED = {
    *("seconds", "pass_seconds", "patching_seconds", "after_seconds"),
    *("overhead", "peak_memory_mb", "step_time"),
}
# ... and that transformers (train_*) and TRL's SFTTrainer (num_tokens) count from the start of the process.
OF_THE_PROCESS = {"num_tokens", "train_loss", "train_runtime", "train_samples_per_second", "train_steps_per_second"}


def same_history(one: RunFolder, other: RunFolder) -> None:
    """Scores bit for bit, lives, events and what the trainer logged."""
    assert one.steps == other.steps
    for step in one.steps:
        mine, yours = one.read_scores(step).arrays(), other.read_scores(step).arrays()
        assert mine.keys() == yours.keys()
        for name, array in mine.items():
            assert np.array_equal(array, yours[name]), (step, name)
    assert one.events() == other.events()
    assert one.alerts() == other.alerts()
    for family in one.families:
        for rule in RULES:
            mine, yours = (HeadHistory.from_run(run, family, rule=rule) for run in (one, other))
            assert np.array_equal(mine.state, yours.state)
    for rows in ("scalars", "training"):
        compared = [
            [{k: v for k, v in r.items() if k not in MEASURED | OF_THE_PROCESS} for r in getattr(run, rows)()]
            for run in (one, other)
        ]
        if rows == "training":  # the summary at the end of a resumed training is about its own steps
            compared = [[{k: r.get(k) for k in ("step", "loss", "grad_norm")} for r in side] for side in compared]
        assert compared[0] == compared[1]
