"""What a user sees when a config is right, and when it is wrong."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import pytest

from configs.dump import dump
from configs.load import ConfigError, load
from configs.schema import PRETRAIN_CHOICES, PretrainConfig
from data.views.augment import PointAugmentConfig
from data.views.colour import ColourConfig


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
    label: ClassVar[str] = "no setting"
    a: int = 1


@dataclass(frozen=True, kw_only=True)
class Second(Base):
    b: Inner = field(default_factory=Inner)


@dataclass(frozen=True, kw_only=True)
class Tower:
    width: int = 8


@dataclass(frozen=True, kw_only=True)
class Tall(Tower):
    floors: int = 2


@dataclass(frozen=True, kw_only=True)
class Round(Tower):
    radius: float = 1.5


@dataclass(frozen=True, kw_only=True)
class Towered(Base):
    tower: Tower = field(default_factory=Tall)


@dataclass(frozen=True, kw_only=True)
class OnlyRound(Base):
    tower: Round = field(default_factory=Round)


@dataclass(frozen=True, kw_only=True)
class Outer:
    run_dir: str
    optim: Inner = field(default_factory=Inner)
    method: Base = field(default_factory=First)


CHOICES = {
    "method": {"first": First, "second": Second, "towered": Towered, "only_round": OnlyRound},
    "method.tower": {"tall": Tall, "round": Round},
}


def _load(*overrides: str, path: Path | None = None) -> Outer:
    return load(Outer, path, ["run_dir=r", *overrides], choices=CHOICES)


def test_defaults_file_and_overrides_merge_in_that_order(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("optim: {lr: 0.1, steps: 3}\nmethod: {name: second, b: {lr: 2.0}}\n")
    config = _load("optim.steps=7", "method.b.names=[x,y]", path=file)
    assert config.optim == Inner(lr=0.1, steps=7)
    assert config.method == Second(b=Inner(lr=2.0, names=("x", "y")))


def test_an_empty_mapping_takes_back_what_the_file_says(tmp_path: Path) -> None:
    """The remedy of a message, `data.sampling.counts={}`, among them."""
    file = tmp_path / "a.yaml"
    file.write_text("optim: {lr: 0.1}\nmethod: {name: second, b: {lr: 2.0, names: [x]}}\n")
    config = _load("method.b={}", "method.b.every=4", path=file)
    assert config.method == Second(b=Inner(every=4))
    assert config.optim == Inner(lr=0.1)
    file.write_text("data: {shards: s, sampling: {counts: {Car: 2, Cyclist: 1}}}\nmethod: {name: slidr}\n")
    overrides = ["run_dir=r", "data.sampling.counts={}", "data.sampling.counts.Car=3"]
    filled = load(PretrainConfig, file, overrides, choices=PRETRAIN_CHOICES)
    assert filled.data.sampling.counts == {"Car": 3}
    emptied = load(PretrainConfig, file, overrides[:2], choices=PRETRAIN_CHOICES)
    assert emptied.data.sampling.counts == {}


def test_dump_and_load_give_an_equal_config(tmp_path: Path) -> None:
    config = _load("method.name=second", "method.b.every=4", "optim.betas=[0.1,0.2]")
    file = tmp_path / "config.yaml"
    file.write_text(dump(config, choices=CHOICES))
    assert load(Outer, file, choices=CHOICES) == config


def test_a_section_inside_a_chosen_one_is_chosen_by_its_own_name(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("method: {name: towered, tower: {name: round, radius: 3.0}}\n")
    assert _load(path=file).method == Towered(tower=Round(radius=3.0))
    assert _load("method.tower.width=9", path=file).method == Towered(tower=Round(radius=3.0, width=9))
    assert _load("method.name=towered", "method.tower.width=9").method == Towered(tower=Tall(width=9))
    # The last name counts, as with any other value.
    other = file.with_name("b.yaml")
    other.write_text("method: {name: towered, tower: {name: round}}\n")
    chosen = _load("method.tower.name=tall", "method.tower.floors=5", path=other)
    assert chosen.method == Towered(tower=Tall(floors=5))


def test_what_suits_the_files_choice_only_can_be_replaced_with_it(tmp_path: Path) -> None:
    """Names of presets differ between networks: with the network, the command line changes the preset."""
    file = tmp_path / "a.yaml"
    file.write_text("method: {name: towered, tower: {width: 3, floors: 4}}\n")
    with pytest.raises(ConfigError, match=r"method\.tower\.floors: unknown name"):
        _load("method.tower.name=round", path=file)
    file.write_text("optim: {kind: sdg}\nmethod: {name: towered, tower: {width: 3}}\n")
    config = _load("optim.kind=sgd", "method.tower.name=round", path=file)
    assert config.method == Towered(tower=Round(width=3))


def test_dump_of_a_chosen_inner_section(tmp_path: Path) -> None:
    """Its name is written where it is not what the outer section has by default; old dumps have none and still load."""
    file = tmp_path / "config.yaml"
    for overrides, written in (
        (("method.name=towered", "method.tower.name=round", "method.tower.radius=4"), True),
        (("method.name=towered", "method.tower.name=tall", "method.tower.floors=4"), False),
        (("method.name=only_round",), False),
        (("method.name=first",), False),
    ):
        config = _load(*overrides)
        file.write_text(dump(config, choices=CHOICES))
        assert ("    name: round" in file.read_text()) == written
        assert load(Outer, file, choices=CHOICES) == config
    with pytest.raises(ConfigError, match=r"method\.tower: Tower has no name, expected one of round, tall"):
        dump(Outer(run_dir="r", method=Towered(tower=Tower())), choices=CHOICES)


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
        ("method.b.lr=1", ["method.b", "valid here: a)"]),
        ("optim=3", ["optim", "section"]),
        ("--lr", ["'--lr'", "section.field=value"]),
        ("method.tower.name=tall", ["method.tower", "unknown name", "valid here: a"]),
        ("method={name: towered, tower: {name: rond}}", ["method.tower.name", "'rond'", "mean 'round'", "tall"]),
        ("method={name: towered, tower: {radius: 2}}", ["method.tower.radius", "floors, width"]),
        ("method={name: towered, tower: {name: round, floors: 2}}", ["method.tower.floors", "radius, width"]),
        ("method={name: towered, tower: {name: round, radius: far}}", ["method.tower.radius", "'far'", "a number"]),
        ("method={name: only_round, tower: {name: tall}}", ["method.tower.name", "'tall'", "expected one of round:"]),
        ("method={name: towered, tower: 3}", ["method.tower", "got 3", "a section"]),
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


def test_all_missing_values_are_named_at_once(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text('optim: {every: "???"}\n')
    message = r"optim\.every: no value given .*, nor for run_dir \(add `optim\.every=\.\.\. run_dir=\.\.\.`\)"
    with pytest.raises(ConfigError, match=message):
        load(Outer, file, choices=CHOICES)


@pytest.mark.parametrize("where", ["file", "override"])
def test_a_name_that_stands_for_nothing_is_told(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell's variable in a file, or in single quotes, reaches us as it was typed."""
    file = tmp_path / "a.yaml"

    def loaded(value: str) -> Outer:
        file.write_text(f"run_dir: {value}\n" if where == "file" else "")
        return load(Outer, file, [] if where == "file" else [f"run_dir={value}"], choices=CHOICES)

    with pytest.raises(ConfigError, match=r"run_dir: refers to \$\{SHARDS\}, and .* is written \$\{oc\.env:SHARDS\}"):
        loaded("${SHARDS}/a")
    with pytest.raises(ConfigError, match="run_dir: the environment variable SHARDS is not set"):
        loaded("${oc.env:SHARDS}/a")
    monkeypatch.setenv("SHARDS", "/disk")
    assert loaded("${oc.env:SHARDS}/a").run_dir == "/disk/a"


def test_a_byte_order_mark_is_passed_over_and_another_encoding_is_told_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_bytes("\ufeffrun_dir: Straße\noptim: {lr: 0.25}\n".encode())
    config = load(Outer, file, choices=CHOICES)
    assert (config.run_dir, config.optim.lr) == ("Straße", 0.25)
    file.write_bytes("optim: {lr: 0.25}\nrun_dir: Straße\n".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"a\.yaml, line 2: no text in UTF-8 \(byte 0xdf\)"):
        load(Outer, file, choices=CHOICES)


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


def test_files_of_old_runs_load_where_they_mean_what_happens_today(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("run_dir: run\ndata: {shards: s, superpixels: true, image_size: [32, 64]}\n")
    config = load(PretrainConfig, path, choices=PRETRAIN_CHOICES)
    assert config.data.image_size == (32, 64)
    path.write_text("run_dir: run\ndata: {shards: s, superpixels: false}\n")
    with pytest.raises(ConfigError, match=r"data\.superpixels: unknown name"):
        load(PretrainConfig, path, choices=PRETRAIN_CHOICES)


def test_the_second_clouds_own_augmentation_is_a_section_that_may_be_absent(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("run_dir: run\ndata: {shards: s, augment: {image: {colour: {enabled: true}}}}\n")
    plain = load(PretrainConfig, path, choices=PRETRAIN_CHOICES)
    assert plain.data.augment.second_points is None
    assert plain.data.augment.image.colour == ColourConfig(enabled=True)
    overrides = ["data.augment.second_points.translate_m=[1.0,2,0]", "data.augment.points.rotate=false"]
    config = load(PretrainConfig, path, overrides, choices=PRETRAIN_CHOICES)
    assert config.data.augment.second_points == PointAugmentConfig(translate_m=(1.0, 2.0, 0.0))
    path.write_text(dump(config, choices=PRETRAIN_CHOICES))
    assert load(PretrainConfig, path, choices=PRETRAIN_CHOICES) == config


def test_a_mistake_in_the_file_names_the_file(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("engine: {clip_norm: -1}\nseed: 1\n")
    with pytest.raises(ConfigError, match=rf"^engine\.clip_norm: got -1.* \(in {re.escape(str(file))}\)$"):
        load(PretrainConfig, file, ["data.shards=x", "run_dir=y"], choices=PRETRAIN_CHOICES)
    with pytest.raises(ConfigError, match=r"^engine\.clip_norm: got -2[^(]*(\([^/]*\))?$"):
        load(PretrainConfig, file, ["data.shards=x", "run_dir=y", "engine.clip_norm=-2"], choices=PRETRAIN_CHOICES)
    file.write_text("optim: {lrr: 1}\n")
    with pytest.raises(ConfigError, match=r"^optim\.lrr: unknown name.* \(in .*a\.yaml\)$"):
        load(PretrainConfig, file, ["data.shards=x", "run_dir=y"], choices=PRETRAIN_CHOICES)
