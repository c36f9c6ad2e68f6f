"""Configs as YAML: what OmegaConf would write of them, number by number."""

from __future__ import annotations

import dataclasses

import pytest
import yaml
from omegaconf import OmegaConf

from configs.dump import dump
from configs.runs import dump_run, read_run


@dataclasses.dataclass(frozen=True)
class Inner:
    rate: float
    size: tuple[float, float, float]
    pair: tuple[int, float]
    many: tuple[float, ...] = ()
    factor: float | None = None
    counts: dict[str, int] = dataclasses.field(default_factory=dict)
    rates: dict[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Outer:
    inner: Inner
    ready: bool = True
    name: str | None = None
    parts: tuple[Inner, ...] = ()


def test_numbers_have_the_type_of_their_field() -> None:
    """Whole numbers that code gives for a float: fingerprints of runs compare what is written."""
    inner = Inner(1, (1, 2.5, 3), (2, 3), many=(4, 5), factor=6, counts={"car": 7}, rates={"head": 8})
    config = Outer(inner, parts=(inner,))
    expected = {
        "rate": 1.0,
        "size": [1.0, 2.5, 3.0],
        "pair": [2, 3.0],
        "many": [4.0, 5.0],
        "factor": 6.0,
        "counts": {"car": 7},
        "rates": {"head": 8.0},
    }
    text = dump(config)
    tree = yaml.safe_load(text)
    assert tree == {"inner": expected, "ready": True, "name": None, "parts": [expected]}
    assert text.count(".0") == 2 * 8
    assert "ready: true" in text
    assert "- 2\n" in text


@pytest.mark.parametrize("name", ["slidr_street", "depthcontrast_street", "second_street", "contrastive_units_street"])
def test_real_configs_are_as_omegaconf_writes_them(name: str) -> None:
    config = read_run(name, ["run_dir=run"])
    tree = yaml.safe_load(dump_run(config))
    section = "model" if "model" in tree else "method"
    theirs = yaml.safe_load(OmegaConf.to_yaml(OmegaConf.structured(config)))
    ours = {**tree, section: {key: value for key, value in tree[section].items() if key != "name"}}
    for key, value in theirs[section].items():  # names of kinds are what `dump` adds
        if isinstance(value, dict) and isinstance(ours[section][key], dict) and "name" not in value:
            ours[section][key] = {k: v for k, v in ours[section][key].items() if k != "name"}
    assert ours == {**theirs, section: {key: value for key, value in theirs[section].items() if key != "name"}}
    assert read_run(None, defaults=tree) == config
