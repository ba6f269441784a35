"""The file of a probe's arrays: what is written is read back, within the bounds of packed_edges.py."""

from pathlib import Path

import numpy as np
import pytest
from helpers.small_records import MANIFEST, TWO_FAMILIES, scores
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from headwatch.record import packed_edges
from headwatch.record.probe_scores import ProbeScores
from headwatch.record.run_folder import RunFolder


def test_every_array_is_read_back(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    written = scores(
        correct=rng.random(5) < 0.5,
        kl_from_base=rng.random(5),
        circuit_active=rng.random((2, 2, 3)) < 0.5,
        circuit_stability=rng.random((2, 2, 3)),
        importance=rng.random((2, 2, 3)),
        edges_mean_abs=rng.random((2, 9, 21)),
    )
    run = RunFolder.create(tmp_path, TWO_FAMILIES)
    path = run.write_scores(100, written)
    assert path.name == "step-00000100.safetensors"
    read = RunFolder.open(tmp_path).read_scores(100)
    assert set(read.arrays()) == set(written.arrays())
    assert len(read.arrays()) == 9
    for name, array in written.arrays().items():
        found = getattr(read, name)
        assert found.dtype == array.dtype == {"correct": np.uint8, "circuit_active": np.bool_}.get(name, np.float32)
        if name == "edges_mean_abs":  # 12 bits on disk
            assert_close(found, array)
        else:
            np.testing.assert_array_equal(found, array)


def test_edges_on_disk(tmp_path: Path) -> None:
    """Only real edges are kept, tiny ones too; matrices that are not finite are whole."""
    run, rng = RunFolder.create(tmp_path, TWO_FAMILIES), np.random.default_rng(2)
    real = np.triu(np.ones((9, 21), np.bool_), 3)
    edges = (np.exp(4 * rng.standard_normal((2, 9, 21))) * 1e-9 * real).astype(np.float32)
    edges[1] *= 1e6
    path = run.write_scores(0, scores(edges_mean_abs=edges))
    on_disk = load_file(path)
    assert "edges_mean_abs" not in on_disk
    assert len(on_disk["edges_low"]) == real.sum()  # half a byte per entry of two families
    read = run.read_scores(0).edges_mean_abs
    assert read is not None
    assert (read[:, ~real] == 0).all()
    assert_close(read, edges)
    edges[0, 0, 5] = np.nan
    run.write_scores(0, scores(edges_mean_abs=edges))
    np.testing.assert_array_equal(run.read_scores(0).edges_mean_abs, edges)


@pytest.mark.parametrize("scale", [1e-44, 1e-30, 1.0, 1e30])
@pytest.mark.parametrize("spread", [0.0, 1.0, 4.0, 12.0])
def test_the_error_of_an_edge_is_bounded(spread: float, scale: float) -> None:
    """Entries from the largest one to 2^-40 of it and 0, their number odd; float64 is the reference."""
    rng = np.random.default_rng(3)
    edges = np.exp(-spread * np.abs(rng.standard_normal((3, 31, 47))))
    edges.ravel()[: 41 * 3] = np.tile(0.5 ** np.arange(41), 3)
    edges[2] = 0.0 if spread == 1.0 else edges[2]
    edges[:, 5] = 0.0
    written = (scale * edges / edges.max()).astype(np.float32)
    found = packed_edges.unpacked(packed_edges.packed(written))["edges_mean_abs"]
    assert_close(found, written)
    if scale == 1.0:  # the bound is no looser than it has to be
        largest = np.abs(found.astype(np.float64) - written).max()
        assert spread == 0.0 or 0.5 * 2**-10 < largest < packed_edges.RELATIVE
        assert ((found == 0) == (written <= 2**-23.01 * written.max((1, 2), keepdims=True))).mean() > 0.99


def assert_close(found: NDArray[np.float32], written: NDArray[np.float32]) -> None:
    """Within the bound of packed_edges.py, family by family."""
    exact = written.astype(np.float64)
    largest = exact.max((1, 2), keepdims=True)
    bound = np.maximum(packed_edges.RELATIVE * exact, packed_edges.ABSOLUTE * largest)
    assert (np.abs(found - exact) <= np.maximum(bound, 2.0**-149)).all()


def test_patched_heads_and_draws_on_disk_are_exact(tmp_path: Path) -> None:
    run, rng = RunFolder.create(tmp_path, MANIFEST), np.random.default_rng(4)
    patched = np.full((5, 2, 3), np.nan, np.float32)
    patched[:, 1, 0], patched[2:, 0, 2] = rng.standard_normal(5), rng.standard_normal(3)
    draws = rng.random((1, 7, 2, 3)).astype(np.float32)
    halves = draws.astype(np.float16).astype(np.float32)
    for step, drawn in enumerate((draws, halves)):
        path = run.write_scores(step, scores(patched=patched, importance_draws=drawn))
        read, on_disk = run.read_scores(step), load_file(path)
        np.testing.assert_array_equal(read.patched, patched)
        np.testing.assert_array_equal(read.importance_draws, drawn)
        assert on_disk["patched_values"].shape == (5, 2)
        assert on_disk["importance_draws"].dtype == (np.float32, np.float16)[step]


def test_a_record_of_format_1_is_read(tmp_path: Path) -> None:
    """Written here as the versions of format 1 wrote it: half-precision edges, and before that float32 ones."""
    run, rng = RunFolder.create(tmp_path, {**TWO_FAMILIES, "format": 1}), np.random.default_rng(5)
    edges = rng.random((2, 9, 21)).astype(np.float32)
    edges[:, :, 4] = 0.0
    arrays = scores().arrays()
    arrays |= {"patched": np.full((5, 2, 3), np.nan, np.float32)}
    arrays |= {"importance_draws": rng.random((2, 7, 2, 3)).astype(np.float32)}
    run.write_scores(0, scores())  # makes the folder
    save_file({**arrays, "edges_mean_abs": edges}, tmp_path / "scores" / "step-00000000.safetensors")
    scale, present = edges.max((1, 2)), (edges != 0).any(0)
    rows, row = np.unique(np.packbits(present, axis=1), axis=0, return_inverse=True)
    packed = {
        "edges_half": np.ascontiguousarray(edges[:, present] / scale[:, None], np.float16),
        "edges_scale": scale,
        "edges_rows": rows,
        "edges_row": row.reshape(-1).astype(np.uint16),
        "edges_width": np.array([21]),
    }
    save_file({**arrays, **packed}, tmp_path / "scores" / "step-00000010.safetensors")
    opened = RunFolder.open(tmp_path)
    assert opened.manifest["format"] == 1
    for step in opened.steps:
        read = opened.read_scores(step)
        for name, array in arrays.items():
            np.testing.assert_array_equal(getattr(read, name), array)
        np.testing.assert_allclose(read.edges_mean_abs, edges, rtol=2**-11, atol=2**-25 if step else 0)
    assert opened.steps == [0, 10]


def test_absent_arrays_stay_absent_and_any_memory_layout_is_written(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, MANIFEST)
    turned = np.arange(30.0).reshape(3, 2, 5).T  # [5, 2, 3], not contiguous
    run.write_scores(0, ProbeScores(turned, np.zeros(10)[::2], np.ones(5)))
    read = run.read_scores(0)
    assert read.correct is read.circuit_active is read.edges_mean_abs is None
    np.testing.assert_array_equal(read.head_scores, turned)
