"""Results of commands in a run folder: one per model, checked when they are read, moved aside with the record."""

import json

import pytest
from helpers.after_results import interval, keep_results
from helpers.plain_run import write_plain_run
from helpers.synthetic_runs import write_synthetic_run

from headwatch.errors import UserError
from headwatch.record.after import SCHEMAS, heads_with_events, keep_result, read_results, run_to_keep_in
from headwatch.record.run_folder import RunFolder
from headwatch.report.after_data import after_data

EVALUATED = {"problems": 2, "samples": 1, "pass": {"1": interval(0.5)}}


def test_a_later_result_of_a_model_replaces_the_earlier_one(tmp_path):
    run = write_plain_run(tmp_path, [0])
    for model, value in (("base", 0.1), ("post", 0.2), ("base", 0.3)):
        suites = {"sums": {**EVALUATED, "pass": {"1": interval(value)}}}
        path = keep_result(run, "evaluation", {"model": model, "suites": suites})
    assert path == run.path / "after" / "evaluation.json"
    found = {each["model"]: each["suites"]["sums"]["pass"]["1"]["value"] for each in read_results(run, "evaluation")}
    assert found == {"post": 0.2, "base": 0.3}
    with pytest.raises(ValueError, match="suites"):
        keep_result(run, "evaluation", {"model": "base"})


def test_every_kind_is_kept_and_read(tmp_path):
    run = write_synthetic_run(tmp_path / "headwatch", n_pairs=16, steps=(0, 20, 40))
    keep_results(run, run.families)
    assert {kind: len(read_results(run, kind)) for kind in SCHEMAS} == {
        **{"circuits": 2, "roles": 1, "ablation": 1, "evaluation": 1, "components": 1}
    }
    assert set(heads_with_events(run)) == {(e.layer, e.head) for e in run.events() if e.rule == "evidence"}


@pytest.mark.parametrize(
    "damage",
    ["{", "[]", '{"results": 3}', '{"results": [{"model": "a", "families": [{}]}]}', '{"results": [[1]]}', "[" * 9999],
)
def test_a_damaged_result_is_left_out_with_a_warning(damage, tmp_path):
    run = write_plain_run(tmp_path, [0])
    (run.path / "after").mkdir()
    (run.path / "after" / "circuits.json").write_text(damage)
    with pytest.warns(UserWarning, match=r"circuits\.json"):
        assert after_data(run)["circuits"] == []


@pytest.mark.parametrize("name", ['a0.h0.q" onload', "../x", "m", "a0.h0"])
def test_a_target_must_be_a_part_of_a_model(name, tmp_path):
    run = write_synthetic_run(tmp_path / "headwatch", n_pairs=16, steps=(0, 20, 40))
    keep_results(run, run.families)
    path = run.path / "after" / "circuits.json"
    found = json.loads(path.read_text())
    found["results"][0]["families"][0]["strongest"][0]["target"] = name
    path.write_text(json.dumps(found))
    with pytest.warns(UserWarning, match="target"):
        assert [each["model"] for each in read_results(run, "circuits")] == ["post"]


def test_a_new_record_moves_the_results_aside(tmp_path):
    run = write_plain_run(tmp_path, [0])
    keep_result(run, "evaluation", {"model": "base", "suites": {"sums": EVALUATED}})
    copy = run.copy_to(tmp_path / "copy")
    assert read_results(copy, "evaluation") == []  # results are not of the copied probe
    RunFolder.create(run.path, run.manifest)
    assert read_results(run, "evaluation") == []
    assert (run.path / "previous-1" / "after" / "evaluation.json").is_file()


def test_the_run_must_be_one(tmp_path):
    for name in ("a", "b"):
        write_plain_run(tmp_path / name, [0])
    with pytest.raises(UserError, match="holds 2 runs"):
        run_to_keep_in(str(tmp_path))
    assert run_to_keep_in(None) is None
