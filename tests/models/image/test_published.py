"""The table of published weights against the code, the configs and the page; and what files are recognised as."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.image.efficientnet import imagenet_weights_path
from models.image.published import BEGIN, END, PAGE, PUBLISHED, PublishedWeights, markdown
from models.image.recognise import empty_network, fits
from models.image.teachers import TEACHERS
from models.weights import IMAGE_FORMATS, VIT_FORMATS, read_checkpoint

ROOT = Path(__file__).parents[3]
every_entry = pytest.mark.parametrize("one", PUBLISHED, ids=lambda one: one.file)


def state_of(network: str) -> dict[str, Tensor]:
    """Tensors of a network with its names, all zero."""
    state = empty_network(network).state_dict()
    return {key: torch.zeros(value.shape, dtype=value.dtype) for key, value in state.items()}


def file_of(one: PublishedWeights) -> dict[str, object]:
    """A file's content in the published layout."""
    if one.file_format == "imagenet":
        return read_checkpoint(imagenet_weights_path())
    state = state_of(one.network)
    rule = (VIT_FORMATS if one.network.startswith("vit") else IMAGE_FORMATS)[one.file_format]
    prefix = rule.prefix.replace("\\", "") if one.file_format.startswith("moco") else ""
    if not prefix:
        return dict(state)
    named = {prefix + key: value for key, value in state.items()} | {prefix + "fc.2.bias": torch.zeros(8)}
    return {"epoch": 1, "state_dict": named}


@every_entry
def test_sizes_and_networks_are_those_of_the_code(one: PublishedWeights) -> None:
    state = empty_network(one.network).state_dict()
    assert one.file_format in TEACHERS[one.network].SOURCES
    assert all(one.file_format in TEACHERS[other].SOURCES for other in one.others)
    if one.file_format != "imagenet":  # of its file only some blocks are used
        assert one.megabytes == round(sum(value.nbytes for value in state.values()) / 1e6)


@every_entry
def test_configs_name_the_file_they_were_made_for(one: PublishedWeights) -> None:
    for name in one.configs:
        text = (ROOT / "configs" / "pretrain" / f"{name}.yaml").read_text()
        assert (f"{one.file_format}:/path/to/{one.file}" if one.address.startswith("https") else "imagenet") in text


def test_configs_that_ask_for_weights_are_in_the_table() -> None:
    listed = {name for one in PUBLISHED for name in one.configs}
    asking = {path.stem for path in (ROOT / "configs" / "pretrain").glob("*.yaml") if ":/path/to/" in path.read_text()}
    assert asking <= listed


@pytest.mark.parametrize(
    "one", [one for one in PUBLISHED if re.search(r"installed|v2_800|1000ep|small8|vits14_reg|resnet18", one.file)]
)
def test_a_file_is_recognised(one: PublishedWeights) -> None:
    found = fits(file_of(one), prefer=one.file_format)
    best = [fit for fit in found if fit.merit == found[0].merit]
    assert {fit.network for fit in best} == {one.network, *one.others}
    assert {fit.file_format for fit in best} == {one.file_format}
    assert best[0].report.share == 1
    assert best[0].broken() == []


def test_what_no_network_has_fits_none() -> None:
    assert fits({"state_dict": {"encoder.weight": torch.zeros(3, 3)}, "epoch": 1}) == []


def test_the_page_has_the_table() -> None:
    page = (ROOT / PAGE).read_text()
    table = page.partition(BEGIN)[2].partition(END)[0]
    assert table.strip() == markdown().strip(), (
        f"python -m launchers.weights list --markdown, between the marks of {PAGE}"
    )


def test_the_table_costs_no_torch() -> None:
    code = "import sys, models.image.published; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
