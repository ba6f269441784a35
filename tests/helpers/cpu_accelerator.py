"""Real FSDP2 and DeepSpeed on CPU processes: accelerate excludes the CPU from both and silently runs DDP instead."""

import os

import torch
from accelerate import state
from accelerate.utils import DistributedType
from transformers import training_args

FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "Qwen2DecoderLayer",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
    "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
}
"""What `accelerate launch` sets for an FSDP2 configuration file."""

HYBRID = {
    "ACCELERATE_USE_PARALLELISM_CONFIG": "true",
    "PARALLELISM_CONFIG_DP_REPLICATE_SIZE": "2",
    "PARALLELISM_CONFIG_DP_SHARD_SIZE": "2",
}
"""FSDP2 over pairs of processes with the model replicated twice: four processes."""


def zero(stage: int, **options: object) -> dict[str, object]:
    """A DeepSpeed configuration, as `TrainingArguments(deepspeed=...)` takes it."""
    return {
        "zero_optimization": {"stage": stage, "overlap_comm": False, **options},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # it is compiled on first use
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "bf16": {"enabled": "auto"},
    }


def treat_cpu_processes_as_devices() -> None:
    """Let accelerate treat gloo processes as devices whose device is the CPU."""
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

    def prepare_backend(self: object, *_: object, **__: object) -> tuple[str, DistributedType]:
        return "gloo", DistributedType.MULTI_GPU

    state.PartialState._prepare_backend = prepare_backend
    state.PartialState.set_device = lambda self: None
    torch.Tensor.pin_memory = lambda self, *_: self  # CPU offload pins memory for copies to a GPU
    training_args.is_torch_bf16_gpu_available = lambda: True
    torch.set_num_threads(1)


def without_compiled_deepspeed() -> None:
    """Let DeepSpeed reduce through gloo: its shared-memory kernels would be compiled on first use, for minutes."""
    from deepspeed.comm import torch as backend

    backend.build_shm_op = lambda: None
