"""Which precision a run's products have: what `engine.precision=auto` means on the machines of a run.

bf16 pays where it is computed in hardware: on GPUs from Ampere on, on processors with AVX-512 BF16 or AMX. Elsewhere it
is emulated. torch 2.13 hands bf16 convolutions of images to oneDNN only on processors with AVX-512 (or bf16 on Arm); on
others its own loop takes over a hundred times as long as fp32.
"""

from __future__ import annotations

import torch

from engine.deepspeed_config import Precision
from engine.distributed import World, agree_any

_GPU_CAPABILITY = (8, 0)
"""Ampere's."""


def bf16_units(device: torch.device) -> tuple[str, ...]:
    """What computes bf16 on this device, by name; () where it is emulated."""
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        return (torch.cuda.get_device_name(device),) if capability >= _GPU_CAPABILITY else ()
    # The processor's own answer; torch has it by these names since 2.4.
    names = {"_is_avx512_bf16_supported": "AVX-512 BF16", "_is_amx_tile_supported": "AMX"}
    return tuple(title for name, title in names.items() if getattr(torch.cpu, name, bool)())


def fastest_precision(world: World) -> Precision:
    """What "auto" means for a run that begins: bf16 where every rank has units for it, else fp32. All ranks call it."""
    (emulated,) = agree_any([not bf16_units(world.device)], world)
    return "fp32" if emulated else "bf16"
