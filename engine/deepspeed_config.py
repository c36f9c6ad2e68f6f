"""EngineConfig -> DeepSpeed's dictionary. The only place that knows DeepSpeed's keys and how it is imported.

Mixed precision is `torch_autocast` (weights stay fp32, products run in bf16 or fp16). DeepSpeed's native bf16 casts the
whole module, and its ZeRO stages 1-3 then fail on BatchNorm (dtype mismatch, DeepSpeed 0.19.8), so "bf16_native" is an
option for networks without BatchNorm only.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from common.ranges import at_least, between, one_of, positive

Precision = Literal["auto", "fp32", "bf16", "bf16_native", "fp16"]

BUCKET_NUMEL = 50_000_000
"""Elements that ZeRO reduces or gathers at a time. DeepSpeed's default of 5e8 asks for a 2 GB buffer a rank."""


SUB_GROUP_NUMEL = 1_000_000_000
"""Elements of a rank's share that ZeRO-3 updates at a time: one flat tensor each (DeepSpeed's default)."""


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How a step runs.

    Attributes:
        zero_stage: what DeepSpeed splits over ranks: 0 nothing, 1 optimizer state, 2 and gradients, 3 and weights.
        precision: "fp32"; "bf16" or "fp16" = fp32 weights, products in 16 bits (fp16 with loss scaling, GPU only);
            "bf16_native" = the whole module in bf16 with fp32 master weights (stage 1-3, no BatchNorm); "auto" = the
            faster of bf16 and fp32 where the run begins (`engine.precision`), and that of its checkpoints from then on.
        accumulation_steps: micro-batches of one update.
        clip_norm: gradients are scaled down to this L2 norm; 0 = never.
        sync_bn: BatchNorm statistics over all ranks.
        device: "auto" takes CUDA where there is one.
        dry_batch: one forward and backward pass without update before step 1, to find errors early.
        max_nonfinite_in_a_row: skipped updates in a row after which the run stops.
        loss_scale_power: fp16 starts with the loss multiplied by 2 to this power.
        zero3_persistent_numel: at stage 3, parameters with fewer elements stay whole on every rank.
        timeout_min: how long a collective waits for a peer, minutes.
        heartbeat_s: silence after which a rank counts as dead, seconds; longer than whatever stops a whole process.
        stall_min: how long a rank may stand still in one part of a step (waiting for data, forward, update), minutes;
            longer than `data.retry_min`.
    """

    zero_stage: int = 0
    precision: Precision = "fp32"
    accumulation_steps: int = 1
    clip_norm: float = 0.0
    sync_bn: bool = True
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dry_batch: bool = True
    max_nonfinite_in_a_row: int = 10
    loss_scale_power: int = 16
    zero3_persistent_numel: int = 100_000
    timeout_min: float = 30.0
    heartbeat_s: float = 60.0
    stall_min: float = 20.0

    def __post_init__(self) -> None:
        one_of(self, zero_stage=(0, 1, 2, 3))
        at_least(self, accumulation_steps=1, max_nonfinite_in_a_row=1, zero3_persistent_numel=0)
        at_least(self, "0: off", clip_norm=0)
        between(self, "2 to this power", loss_scale_power=(0, 24))
        positive(self, "timeout_min", "heartbeat_s", "stall_min")


def check_precision(config: EngineConfig, module: nn.Module, device: torch.device) -> None:
    """Refuse a precision that this network or machine cannot train in.

    Raises:
        ValueError: names the setting, the reason and the fix.
    """
    if config.precision == "fp16" and device.type == "cpu":
        raise ValueError(
            "engine.precision=fp16 needs a GPU, and this run is on the CPU; set engine.precision=bf16 or fp32"
        )
    if config.precision == "bf16_native" and config.zero_stage == 0:
        raise ValueError(
            "engine.precision=bf16_native needs engine.zero_stage 1, 2 or 3, which hold the fp32 master weights; "
            "set one of them, or engine.precision=bf16"
        )
    if config.precision == "bf16_native":
        norms = [name for name, m in module.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        if norms:
            raise ValueError(
                f"engine.precision=bf16_native at engine.zero_stage={config.zero_stage} does not work with BatchNorm, "
                f"and the objective has {len(norms)} (the first: {norms[0]}); set engine.precision=bf16, which keeps "
                "the weights in fp32"
            )


def deepspeed_dict(config: EngineConfig, *, micro_batch_size: int, device: torch.device) -> dict[str, Any]:
    """DeepSpeed's configuration; it uses the size of a rank's micro-batch for book-keeping only.

    Raises:
        ValueError: the precision is left open.
    """
    if config.precision == "auto":
        raise ValueError("engine.precision=auto is for configs; give the engine what `engine.precision` makes of it")
    zero: dict[str, Any] = {"stage": config.zero_stage}
    if config.zero_stage > 0:
        zero |= {"reduce_bucket_size": BUCKET_NUMEL, "allgather_bucket_size": BUCKET_NUMEL}
        # Overlap needs CUDA streams; on the CPU it only costs a second buffer.
        zero |= {"overlap_comm": device.type == "cuda"}
    if config.zero_stage == 3:
        zero |= {"stage3_param_persistence_threshold": config.zero3_persistent_numel}
        zero |= {"sub_group_size": SUB_GROUP_NUMEL}
    result: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": config.accumulation_steps,
        "gradient_clipping": config.clip_norm,
        "zero_optimization": zero,
        # SGD is "untested" to DeepSpeed; tests/engine compares it with one process at every stage.
        "zero_allow_untested_optimizer": True,
        "steps_per_print": None,
    }
    if config.precision == "bf16":
        result["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
    elif config.precision == "fp16":
        # The loss is scaled by engine/zero.py: see LossScale there for why.
        result["torch_autocast"] = {"enabled": True, "dtype": "float16"}
    elif config.precision == "bf16_native":
        result["bf16"] = {"enabled": True, "check_grad_overflow": True}
    return result


def import_deepspeed(device_type: str) -> Any:
    """DeepSpeed without its noise, set to "cpu" or "cuda"."""
    os.environ.setdefault("DS_ACCELERATOR", device_type)
    with quiet_deepspeed():
        import deepspeed
    # The shared-memory all-reduce is for inference only, and building it takes a C++ compiler and 27 s. The
    # table is made here because asking DeepSpeed 0.19.8 for it has its compilers tried, in every process.
    vars(deepspeed.ops).setdefault("__compatible_ops__", {})["deepspeed_shm_comm"] = False
    logger = logging.getLogger("DeepSpeed")
    if not any(isinstance(f, _DropKnownNoise) for f in logger.filters):
        logger.addFilter(_DropKnownNoise())
    return deepspeed


class _DropKnownNoise(logging.Filter):
    """Warnings of DeepSpeed 0.19.8 that say nothing to our users."""

    KNOWN = ("untested optimizer",)

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to keep the record."""
        return not any(text in record.getMessage() for text in self.KNOWN)


@contextmanager
def quiet_deepspeed() -> Iterator[None]:
    """Hush the deprecations that DeepSpeed 0.19.8 causes in torch 2.13; every other warning passes."""
    with warnings.catch_warnings():
        for what in ("torch.jit.script", "torch.distributed.all_gather_into_tensor"):
            warnings.filterwarnings("ignore", message=f".*`{what}", category=DeprecationWarning)
            warnings.filterwarnings("ignore", message=f".*`{what}", category=FutureWarning)
        warnings.filterwarnings("ignore", message=".*`torch.distributed.reduce_scatter_tensor`", category=FutureWarning)
        yield
