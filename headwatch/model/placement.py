"""Refuse models of which one process holds a part only: their scores would be wrong, or their pass would fail.

Data parallelism is supported in every form that keeps whole layers on each process during the pass: DDP, FSDP2 and
ZeRO. Tensor, expert, pipeline, sequence and context parallelism divide layers or prompts among processes.
"""

from typing import Any

from torch import Tensor, nn

from headwatch.errors import UnsupportedModelError
from headwatch.model.whole_weights import sharding

_USE = "use DDP, FSDP2 or DeepSpeed ZeRO instead"


def check_placement(model: nn.Module) -> None:
    """Refuse a model that is divided among devices in a way that the pass cannot undo.

    Raises:
        UnsupportedModelError: FSDP1, tensor or expert parallelism, or layers on several devices.
    """
    names = {f"{type(module).__module__}.{type(module).__name__}" for module in model.modules()}
    if "torch.distributed.fsdp.fully_sharded_data_parallel.FullyShardedDataParallel" in names:
        raise UnsupportedModelError(
            "model: it is sharded by FSDP1, which is not supported: use FSDP2 (fsdp_version: 2 in accelerate's file)"
        )
    replaced = any(name.startswith("deepspeed.module_inject.layers.") for name in names)  # DeepSpeed's AutoTP
    dtensors = any(is_dtensor(parameter) for parameter in model.parameters())
    if replaced or (dtensors and not sharding(model)) or (getattr(model, "tp_size", None) or 1) > 1:
        raise UnsupportedModelError(
            "model: its layers are divided among processes (tensor or expert parallelism), which is not supported: "
            f"{_USE}"
        )
    placed = {str(device) for device in (getattr(model, "hf_device_map", None) or {}).values()}
    if len(placed) > 1:
        raise UnsupportedModelError(
            f"model: its layers are on several devices (device_map: {', '.join(sorted(placed))}), which is not "
            'supported: load it on one device per process (device_map={"": device}), or shard it by FSDP2 or ZeRO-3'
        )


def check_parallelism(config: Any) -> None:
    """Refuse a training whose processes divide layers or prompts, by accelerate's ParallelismConfig.

    Args:
        config: the configuration; None without one.

    Raises:
        UnsupportedModelError: tensor, pipeline, expert, context or sequence parallelism.
    """
    for name, kind in (("tp", "tensor"), ("pp", "pipeline"), ("ep", "expert"), ("cp", "context"), ("sp", "sequence")):
        size = getattr(config, f"{name}_size", None) or 1
        if size > 1:
            raise UnsupportedModelError(
                f"model: it trains under {kind} parallelism ({name}_size={size}), which is not supported: {_USE}"
            )


def parallelism() -> Any:
    """How accelerate divides the processes (`ParallelismConfig`); None without accelerate or such a configuration."""
    try:
        from accelerate.state import AcceleratorState, is_initialized
    except ImportError:
        return None
    return getattr(AcceleratorState(), "parallelism_config", None) if is_initialized() else None


def is_dtensor(parameter: Tensor) -> bool:
    """Whether a parameter is a part of a distributed tensor."""
    return hasattr(parameter, "device_mesh") and hasattr(parameter, "placements")
