"""Every kernel of a pass at true shapes is compiled for NVIDIA devices, down to machine code; no device is needed."""

from typing import Any

import pytest
import torch
from helpers.benches import bench

from headwatch.attribution.settings import ScoringSettings
from headwatch.kernels import launch, model_ops, score_ops

DTYPES = {torch.bfloat16: "bf16", torch.float32: "fp32"}


def launches(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[Any], dict[str, Any]]]:
    """(kernel, arguments, constants) of everything that passes at Qwen2.5-Math-1.5B's shapes launch, each once."""
    found: dict[Any, tuple[str, list[Any], dict[str, Any]]] = {}

    def record(name: str, grid: tuple[int, ...], arguments: list[Any], operations: int = 0, **constants: Any) -> None:
        types = tuple(DTYPES[a.dtype] if isinstance(a, torch.Tensor) else a == 1 for a in arguments)
        found.setdefault((name, types, tuple(constants.items())), (name, arguments, constants))

    for module in (model_ops, score_ops):
        monkeypatch.setattr(module, "launch", record)
    tool = bench("gpu_model")
    for dtype in DTYPES:
        model = tool.meta_model(tool.SHAPES["qwen2.5-math-1.5b"](), dtype)
        for edges in (True, False):
            probes = tool.random_pairs(151936, 4, 200, 16, seed=0)
            tool.count_pass(model, probes, ScoringSettings(edges=edges, batch_size=4, kernels="triton"))
    return list(found.values())


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_kernels_compile_for_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    compiler, backends = pytest.importorskip("triton.compiler"), pytest.importorskip("triton.backends.compiler")
    seen = launches(monkeypatch)
    defined = {name for name, own in vars(launch._code()).items() if hasattr(own, "arg_names")}
    assert {name for name, *_ in seen} == defined
    for name, arguments, constants in seen:
        function = getattr(launch._code(), name)
        signature: dict[str, str] = {}
        fixed: dict[str, Any] = dict(constants)
        aligned: dict[tuple[int, ...], Any] = {}
        for place, (argument, value) in enumerate(zip(function.arg_names, arguments, strict=False)):
            if isinstance(value, torch.Tensor):
                signature[argument] = "*" + DTYPES[value.dtype]
            elif value == 1:  # triton makes it a constant
                signature[argument], fixed[argument] = "constexpr", 1
            else:
                signature[argument] = "fp32" if isinstance(value, float) else "i32"
            if isinstance(value, torch.Tensor) or (isinstance(value, int) and value % 16 == 0):
                aligned[(place,)] = [["tt.divisibility", 16]]
        source = compiler.ASTSource(function, signature | dict.fromkeys(constants, "constexpr"), fixed, aligned)
        for capability in (80, 90):
            compiled = compiler.compile(source, target=backends.GPUTarget("cuda", capability, 32))
            assert compiled.asm["cubin"], (name, capability)
            assert compiled.metadata.shared <= 99 * 1024, name  # what a block may use on an RTX 4090
