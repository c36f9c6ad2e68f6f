"""What `engine.precision=auto` means."""

from __future__ import annotations

import pytest
import torch

from engine.deepspeed_config import EngineConfig, deepspeed_dict
from engine.distributed import World
from engine.precision import bf16_units, fastest_precision

CPU = torch.device("cpu")
UNITS = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")


@pytest.mark.parametrize(
    ("has", "names", "precision"),
    [((), (), "fp32"), (UNITS[:1], ("AVX-512 BF16",), "bf16"), (UNITS, ("AVX-512 BF16", "AMX"), "bf16")],
)
def test_bf16_is_taken_where_the_processor_has_units_for_it(
    has: tuple[str, ...], names: tuple[str, ...], precision: str, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for unit in UNITS:
        monkeypatch.setattr(torch.cpu, unit, lambda unit=unit: unit in has)
    assert bf16_units(CPU) == names
    assert fastest_precision(world) == precision


def test_one_rank_without_units_is_enough_for_fp32(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, UNITS[0], lambda: True)
    monkeypatch.setattr("engine.precision.agree_any", lambda flags, _: [True for _ in flags])  # another rank's vote
    assert fastest_precision(world) == "fp32"


def test_the_engine_itself_takes_no_auto() -> None:
    with pytest.raises(ValueError, match=r"engine\.precision=auto is for configs"):
        deepspeed_dict(EngineConfig(precision="auto"), micro_batch_size=1, device=CPU)
