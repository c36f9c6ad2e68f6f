"""A setting that is text keeps the text that was given, whatever YAML would make of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.dump import dump
from configs.load import ConfigError, load, read_value
from configs.schema import SlurmConfig, SweepConfig

REWRITTEN = [
    "12:00:00",
    "0123",
    "2026_11_29",
    "yes",
    "no",
    "on",
    "off",
    "True",
    "1e3",
    "1.50",
    "0x10",
    "2026-11-29",
    ".5",
]


@dataclass(frozen=True, kw_only=True)
class Part:
    name: str = "part"
    number: int | None = None


@dataclass(frozen=True, kw_only=True)
class Texts:
    text: str = "a"
    perhaps: str | None = None
    listed: tuple[str, ...] = ()
    fixed: tuple[str, float] = ("a", 0.0)
    nested: tuple[tuple[str, ...], ...] = ()
    mapped: dict[str, str] = field(default_factory=dict)
    chosen: Literal["auto", "off"] = "auto"
    part: Part | None = None
    parts: tuple[Part, ...] = ()
    named: dict[str, Part] = field(default_factory=dict)
    count: int = 0
    rate: float = 0.0
    flag: bool = False


@pytest.mark.parametrize("given", REWRITTEN)
def test_text_is_kept_in_files_and_overrides(given: str, tmp_path: Path) -> None:
    wanted = Texts(
        text=given,
        perhaps=given,
        listed=(given, "b"),
        fixed=(given, 1.0),
        nested=((given,), ()),
        mapped={"x": given},
        part=Part(name=given),
        parts=(Part(name=given, number=1),),
        named={"x": Part(name=given)},
    )
    fields = {
        "text": given,
        "perhaps": given,
        "listed": f"[{given}, b]",
        "fixed": f"[{given}, 1]",
        "nested": f"[[{given}], []]",
        "mapped.x": given,
        "part.name": given,
        "parts": f"[{{name: {given}, number: 1}}]",
        "named.x.name": given,
    }
    assert load(Texts, None, [f"{name}={value}" for name, value in fields.items()]) == wanted
    file = tmp_path / "texts.yaml"
    nested = {"mapped.x": "mapped: {x: %s}", "part.name": "part: {name: %s}", "named.x.name": "named: {x: {name: %s}}"}
    file.write_text("\n".join(nested.get(name, f"{name}: %s") % value for name, value in fields.items()))
    assert load(Texts, file) == wanted
    file.write_text(dump(wanted))
    assert load(Texts, file) == wanted, "read back"


def test_numbers_quotes_and_null_are_what_they_were(tmp_path: Path) -> None:
    made = load(
        Texts, None, ["text='0123'", 'listed=["on", null_]', "count=010", "rate=1e-3", "flag=yes", "fixed=[0123, 0123]"]
    )
    assert (made.text, made.listed, made.count, made.rate, made.flag) == ("0123", ("on", "null_"), 8, 1e-3, True)
    assert made.fixed == ("0123", 83.0)
    for null in ("null", "~", ""):
        assert load(Texts, None, ["perhaps=x", f"perhaps={null}"]).perhaps is None
    assert load(Texts, None, ["perhaps='null'", "text=~"]) == Texts(perhaps="null", text="~")
    for override in ("text=null", "mapped.x=null", "listed=[null]"):
        with pytest.raises(ConfigError, match=r"got (None|\[None\]), expected (text|a list of text)$"):
            load(Texts, None, [override])
    assert load(Texts, None, ["chosen=off"]).chosen == "off"


ODD = ["=", "<<", ".inf", "1_0", "0o17", "- a", "# x", "a: b", "'q'", "[", "!!int 3", "&a", "%", "a\\", "\ttab", "y"]
TEXTS = st.one_of(
    st.sampled_from([*REWRITTEN, *ODD, "~", "null", "", "\x85"]),
    st.from_regex(r"[-+]?[0-9_.:eExo]{1,8}", fullmatch=True),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
).filter(lambda text: "${" not in text and text.strip("\\") != "???")  # OmegaConf's own marks


@settings(max_examples=40, deadline=None)
@given(text=TEXTS)
def test_any_text_is_read_back_as_it_was_dumped(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.mktemp("dump") / "texts.yaml"
    part = Part(name=text)
    made = Texts(text=text, perhaps=text, listed=(text,), mapped={"x": text}, part=part, parts=(part,))
    file.write_text(dump(made), encoding="utf-8")
    assert load(Texts, file) == made


def test_anchors_merges_and_names_of_mappings(tmp_path: Path) -> None:
    file = tmp_path / "texts.yaml"
    file.write_text(
        "part: &p {name: 0123, number: 010}\nparts: [*p, {<<: *p, number: 2}]\n"
        "named: {0027: {name: no}, on: *p}\nmapped: {12: 1:00}\n"
    )
    made = load(Texts, file)
    assert made.part == Part(name="0123", number=8)
    assert made.parts == (Part(name="0123", number=8), Part(name="0123", number=2))
    assert made.named == {"0027": Part(name="no"), "on": Part(name="0123", number=8)}
    assert made.mapped == {"12": "1:00"}


def test_a_cluster_and_a_sweep(tmp_path: Path) -> None:
    cluster = load(SlurmConfig, None, ["sbatch.time=12:00:00", "account=0123", "setup=[off]", "sbatch.exclusive=true"])
    assert (cluster.account, cluster.setup) == ("0123", ("off",))
    assert cluster.sbatch == {"time": "12:00:00", "exclusive": "true"}
    file = tmp_path / "sweep.yaml"
    file.write_text("base: a\nroot: 0123\ngrid: {a: [1e-3, 0.1, 3, true, null, x], b: [[0027, 2], 0x10, '7']}\n")
    sweep = load(SweepConfig, file)
    assert sweep.root == "0123"
    assert sweep.grid == {"a": ("1e-3", 0.1, 3, True, None, "x"), "b": (("0027", 2), "0x10", "7")}


def test_read_value() -> None:
    assert [read_value(text) for text in ("1e-3", "0027", "[a, 1]", "", "'1'")] == [1e-3, 23, ["a", 1], None, "1"]
