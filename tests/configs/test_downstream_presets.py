"""The literature's recipes in configs/downstream: their headers, and that those of a family differ in labels only."""

from __future__ import annotations

import dataclasses
import re

import pytest

from configs.find import PACKAGED, config_names
from configs.load import load
from configs.schema import EvaluateConfig

FAMILIES = {
    "slidr_finetune_1pct": 0.02,
    "lima_finetune_1pct": 0.001,
    "scalr_finetune_1pct": 0.002,
}
"""First of each family -> the rate that its source gives."""
SCENES = {1: 100, 5: 20, 10: 10, 25: 4}
RECIPES = [name for name in config_names("downstream") if re.match(r"(slidr|lima|scalr)_", name)]


def config(name: str) -> EvaluateConfig:
    return load(EvaluateConfig, name)


def share(name: str) -> int:
    return int(name.split("_")[-1].removesuffix("pct"))


@pytest.mark.parametrize("first", FAMILIES)
def test_recipes_of_a_family_differ_in_their_labels_only(first: str) -> None:
    stem = first.removesuffix("1pct")
    family = [name for name in RECIPES if re.fullmatch(rf"{stem}\d+pct", name)]
    assert len(family) >= 3
    own = config(first)
    assert own.finetune.lrs == (FAMILIES[first],)
    for name in family:
        other, percent = config(name), share(name)
        if percent == 100:
            assert other.fraction.kind == "all"
        else:
            assert (other.fraction.kind, other.fraction.every) == ("every_log", SCENES[percent])
        if stem == "scalr_finetune_" and percent == 100:
            assert (other.finetune.epochs, other.finetune.layer_decay) == (25, 0.99)
            longer = dataclasses.replace(
                other.finetune, epochs=45, layer_decay=0.95, warmup_share=own.finetune.warmup_share
            )
            other = dataclasses.replace(other, finetune=longer)
        assert dataclasses.replace(other, fraction=own.fraction) == own, name


@pytest.mark.parametrize("name", RECIPES)
def test_headers_say_what_to_hold_a_result_against(name: str) -> None:
    text = (PACKAGED / "downstream" / f"{name}.yaml").read_text()
    header = " ".join(line.lstrip("# ") for line in text.splitlines() if line.startswith("#"))
    assert "Not run here on the full set" in header
    assert re.search(r"Published, mIoU", header)
    assert f"{share(name)} %" in header if name.endswith("pct") else "linear probe" in header.lower()


@pytest.mark.parametrize("name", RECIPES)
def test_nothing_but_the_network_is_tuned(name: str) -> None:
    recipe = config(name)
    assert len(recipe.finetune.lrs) == 1
    assert recipe.calibration_sweeps == 0
    assert recipe.finetune.epochs is not None
    assert recipe.data.train_split == (
        "train" if {"semantickitti", "waymo"} & set(name.split("_")) else "train+minival"
    )
