"""What processes agree on and how they share pairs, in two real gloo processes; trainings: test_several_processes."""

import logging
import os
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule  # noqa: F401  (what is loaded here, the forked processes need not load)

from headwatch.attribution import HeadScores
from headwatch.attribution.kernel_trial import PartTrial
from headwatch.attribution.scores import Checks, Readings
from headwatch.model.collectives import LostProcessError, set_limit
from headwatch.monitor.distributed import ERROR, OK, USER_ERROR, agree, from_main, world
from headwatch.monitor.run_kernels import RunKernels, agreed
from headwatch.monitor.sharded_scoring import PairShard
from headwatch.probes import ProbeSet

N = 5


def in_two_processes(what: Callable[[int], Any], folder: Path, ends: Sequence[int] = (0, 1)) -> list[Any]:
    """What `what(rank)` returns in each of two processes. Forked: importing torch twice would take longer than all.

    ends: the ranks that return; the others are killed.
    """
    context = torch.multiprocessing.get_context("fork")
    answers = context.Queue()

    def work(rank: int) -> None:
        try:
            torch.distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
            torch.distributed.barrier()  # no process ends while another still connects
            answers.put((rank, what(rank)))
            if len(ends) == 2:
                torch.distributed.destroy_process_group()
        except BaseException:
            answers.put((rank, traceback.format_exc()))

    workers = [context.Process(target=work, args=(rank,)) for rank in range(2)]
    for worker in workers:
        worker.start()
    found = dict(answers.get(timeout=120) for _ in ends)
    for worker in workers:
        worker.join(30)
    assert not [said for said in found.values() if isinstance(said, str)], found
    return [found[rank] for rank in ends]


def pairs(n: int) -> ProbeSet:
    return ProbeSet.from_token_ids(torch.tensor([[1, i] for i in range(n)]), torch.tensor([[2, i] for i in range(n)]))


def scored(model: nn.Module, probes: ProbeSet, observe: Any = None) -> HeadScores:
    """A score of each pair that says which pair it is: the second token of its clean prompt."""
    own = torch.tensor([float(row[1]) for row in probes.clean])
    if observe is not None:
        observe(torch.arange(len(own)), own, None)
    readings = Readings(own, own - 1.0 - 0.25 * own, own % 2 == 0)
    heads = own[:, None, None] * torch.ones(len(own), 2, 3)
    return HeadScores(heads, -1.0 - 0.5 * own, readings, probes.families, "nll", 5, "midpoint", Checks(0.0, None, 0.0))


def test_the_worst_outcome_and_the_main_processs_word_hold_for_all(tmp_path: Path) -> None:
    def what(rank: int) -> Any:
        worst = [agree(outcome) for outcome in ((OK, ERROR)[rank], (USER_ERROR, ERROR)[rank], OK)]
        return world(), worst, from_main(("step", rank))

    first, second = in_two_processes(what, tmp_path)
    assert (first[0], second[0]) == ((0, 2), (1, 2))
    assert first[1] == second[1] == [ERROR, USER_ERROR, OK]
    assert first[2] == second[2] == ("step", 0)


def lost(rank: int) -> list[str]:
    """Rank 1 has begun one collective when it is killed, or sleeps; what rank 0 then logs and raises."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("headwatch").addHandler(handler)
    for _ in range(2):  # one line, however many collectives follow
        with pytest.raises(LostProcessError) as caught:
            agree(OK)
    assert lines == [f"headwatch: {caught.value}"]
    return lines


def test_a_process_that_was_killed_is_named(tmp_path: Path) -> None:
    """Without a launcher, which would end the others."""

    def what(rank: int) -> list[str]:
        agree(OK)
        if rank == 1:
            (tmp_path / "dead").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        while not (tmp_path / "dead").exists():
            time.sleep(0.01)
        return lost(rank)

    began = time.monotonic()
    ((line,),) = in_two_processes(what, tmp_path, ends=[0])
    assert line.startswith("headwatch: rank 1 ended before the others were done; the job ends (seen by rank 0: ")
    assert time.monotonic() - began < 60  # gloo reports it at once


def test_a_process_that_does_not_answer_is_named(tmp_path: Path) -> None:
    def what(rank: int) -> list[str]:
        agree(OK)
        set_limit(2.0)
        if rank == 1:
            while not (tmp_path / "over").exists():
                time.sleep(0.05)
            return []
        try:
            return lost(rank)
        finally:
            (tmp_path / "over").touch()

    said, _ = in_two_processes(what, tmp_path)
    assert said == ["headwatch: rank 1 did not answer within 2 s; the job ends"]


def test_every_pair_is_scored_once_and_told_by_its_number(tmp_path: Path) -> None:
    probes, model = pairs(N), nn.Linear(2, 2)

    def what(rank: int) -> Any:
        share, seen = PairShard.of(N), []
        part = share.score(
            scored, model, probes, observe=lambda rows, own, _: seen.append((rows.tolist(), own.tolist()))
        )
        checks = Checks(0.5, (0.1, 0.2)[rank], (0.4, 0.3)[rank])
        part = replace(part, checks=checks, seconds=1.0 + rank, peak_memory_mb=(7.0, 6.0)[rank])
        whole = share.gather(part, probes, dict.fromkeys(probes.families, "nll"))
        values = [whole.per_pair[:, 1, 2], whole.input, whole.readings.metric_corrupted, whole.readings.correct]
        cost = (whole.seconds, whole.peak_memory_mb, whole.checks.row_sums, whole.checks.stream)
        return share.rows, seen, [x.tolist() for x in values], cost, whole.checks.completeness, len(whole.families)

    first, second = in_two_processes(what, tmp_path)
    assert (first[0], second[0]) == ((0, 2, 4), (1, 3))
    for rows, seen, *_ in (first, second):
        assert seen == [(list(rows), [float(row) for row in rows])]
    assert first[2:] == second[2:]
    one = scored(model, probes)
    expected = [one.per_pair[:, 1, 2], one.input, one.readings.metric_corrupted, one.readings.correct]
    assert first[2] == [x.tolist() for x in expected]
    assert first[2][3] == [True, False, True, False, True]
    assert first[3] == pytest.approx((2.0, 7.0, 0.2, 0.4))
    # input is -1 - x / 2 where the metric changes by -1 - x / 4: off by x / 4 of 1 + x / 4, summed over all pairs
    assert first[4] == pytest.approx(sum(x / 4 for x in range(N)) / sum(1 + x / 4 for x in range(N)))
    assert first[5] == N


def test_kernels_are_the_same_on_all_ranks(tmp_path: Path) -> None:
    """The worse error and time decide; a kernel that fails on one rank is used on none."""

    def what(rank: int) -> Any:
        own = [PartTrial("model", (1e-6, 3e-6)[rank], (0.5, 1.5)[rank]), PartTrial("scores", 1e-6, 0.5)]
        found = agreed([own[0], PartTrial("scores", failure="it broke") if rank else own[1]])
        kernels = RunKernels()
        kernels.parts = ("model",)
        fine, broken = kernels.falls_back(None), kernels.falls_back(RuntimeError("here") if rank else None)
        return found, fine, broken, kernels.parts, kernels.to_record()

    first, second = in_two_processes(what, tmp_path)
    assert first[0][0] == second[0][0] == PartTrial("model", 3e-6, 1.5)
    assert [found[0][1].failure for found in (first, second)] == ["it failed, or NaN, on some process", "it broke"]
    assert first[1:4] == second[1:4] == (False, True, ())
    assert "another process" in first[4]["failure"]


def test_too_few_pairs_to_share_are_scored_by_all(tmp_path: Path) -> None:
    first, second = in_two_processes(lambda rank: (PairShard.of(1), PairShard.of(2)), tmp_path)
    assert first[0] == second[0] == PairShard((0,), 1, split=False)
    assert (first[1].rows, second[1].rows) == ((0,), (1,))
