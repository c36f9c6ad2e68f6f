"""What a user sees when a config is right, and when it is wrong."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from configs.load import ConfigError, dump, load


@dataclass(frozen=True, kw_only=True)
class Inner:
    lr: float = 0.5
    steps: int = 10
    kind: Literal["sgd", "adamw"] = "sgd"
    betas: tuple[float, float] = (0.9, 0.99)
    names: tuple[str, ...] = ()
    every: int | None = None

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ValueError(f"lr: got {self.lr}, expected a positive number")


@dataclass(frozen=True, kw_only=True)
class Base:
    pass


@dataclass(frozen=True, kw_only=True)
class First(Base):
    a: int = 1


@dataclass(frozen=True, kw_only=True)
class Second(Base):
    b: Inner = field(default_factory=Inner)


@dataclass(frozen=True, kw_only=True)
class Outer:
    run_dir: str
    optim: Inner = field(default_factory=Inner)
    method: Base = field(default_factory=First)


CHOICES = {"method": {"first": First, "second": Second}}


def _load(*overrides: str, path: Path | None = None) -> Outer:
    return load(Outer, path, ["run_dir=r", *overrides], choices=CHOICES)


def test_defaults_file_and_overrides_merge_in_that_order(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("optim: {lr: 0.1, steps: 3}\nmethod: {name: second, b: {lr: 2.0}}\n")
    config = _load("optim.steps=7", "method.b.names=[x,y]", path=file)
    assert config.optim == Inner(lr=0.1, steps=7)
    assert config.method == Second(b=Inner(lr=2.0, names=("x", "y")))


def test_dump_and_load_give_an_equal_config(tmp_path: Path) -> None:
    config = _load("method.name=second", "method.b.every=4", "optim.betas=[0.1,0.2]")
    file = tmp_path / "config.yaml"
    file.write_text(dump(config, choices=CHOICES))
    assert load(Outer, file, choices=CHOICES) == config


@pytest.mark.parametrize(
    ("override", "fragments"),
    [
        ("optim.lrr=1", ["optim.lrr", "'lr'"]),
        ("optim.steps=1.5", ["optim.steps", "1.5", "whole number"]),
        ("optim.lr=fast", ["optim.lr", "'fast'", "a number"]),
        ("optim.kind=sdg", ["optim.kind", "'sdg'", "'sgd'", "'adamw'"]),
        ("optim.betas=[1]", ["optim.betas", "a list of 2"]),
        ("optim.lr=-1", ["optim", "lr: got -1", "positive"]),
        ("optm.lr=1", ["optm", "'optim'"]),
        ("method.name=frist", ["method.name", "'frist'", "'first'"]),
        ("method.b.lr=1", ["method.b", "valid here: a"]),
        ("optim=3", ["optim", "section"]),
        ("--lr", ["'--lr'", "section.field=value"]),
    ],
)
def test_a_mistake_names_place_value_and_remedy(override: str, fragments: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        _load(override)
    for fragment in fragments:
        assert fragment in str(error.value)


def test_a_missing_value_is_named() -> None:
    with pytest.raises(ConfigError, match=r"run_dir: no value given"):
        load(Outer, None, choices=CHOICES)


def test_a_missing_file_offers_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "slidr_kitti.yaml").write_text("{}")
    with pytest.raises(ConfigError, match=r"did you mean .*slidr_kitti.yaml"):
        load(Outer, tmp_path / "slidr_kiti.yaml")


def test_a_yaml_list_and_broken_yaml_are_refused(tmp_path: Path) -> None:
    for text, message in (("[1, 2]", "mapping"), ("a: [", "not readable")):
        file = tmp_path / "x.yaml"
        file.write_text(text)
        with pytest.raises(ConfigError, match=message):
            load(Outer, file)


def test_a_value_that_the_file_asks_for_is_not_taken_from_the_defaults(tmp_path: Path) -> None:
    """`???` over a field that has a default: a run must not start with a value that its config asked a person for."""
    file = tmp_path / "a.yaml"
    file.write_text('optim: {lr: "???", every: "???"}\n')
    with pytest.raises(ConfigError, match=r"optim\.every: no value given"):
        _load("optim.lr=0.25", path=file)
    with pytest.raises(ConfigError, match=r"optim\.lr: no value given"):
        _load("optim.every=null", path=file)
    with pytest.raises(ConfigError, match=r"optim\.lr: no value given"):
        _load("optim.lr=0.25", "optim.lr=???", "optim.every=null", path=file)
    config = _load("optim={lr: 0.25, every: null}", path=file)
    assert (config.optim.lr, config.optim.every, config.optim.steps) == (0.25, None, 10)
