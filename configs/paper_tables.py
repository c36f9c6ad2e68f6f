"""A paper's tables as data: the files of configs/reproduce, of `tandem reproduce` and docs/reproduce.

A table has rows, a row has a cell a column, and a cell names the step whose result it is. A step is one command: a set
to prepare, a run, an evaluation. Steps stand in the order in which they can be done, and name those that they build on.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from common.nearby import nearest
from common.ranges import at_least
from configs.find import PACKAGED, config_names
from configs.load import ConfigError, load
from data.convert.set_help import HELP

Verb = Literal["prepare", "pretrain", "finetune", "evaluate"]

FOLDERS: dict[str, str] = {
    "prepare": "prepare",
    "pretrain": "pretrain",
    "finetune": "finetune",
    "evaluate": "downstream",
}
"""Verb -> folder of the configs that it takes."""
PLACEHOLDER = re.compile(r"\{(weights|run|data):([^{}]+)\}")
"""In an override: a published file of weights by its name, the folder of another step's run, that of raw data."""
GENERATED = "synthetic"
"""The set that is made, not read."""


@dataclass(frozen=True, kw_only=True)
class StepConfig:
    """One command.

    Attributes:
        verb: of `tandem`.
        config: name of the config that comes with Tandem; of `prepare` also that of a set.
        overrides: settings behind it. `{weights:FILE}` stands for the path of a published file of weights in a setting,
            with its format before it; `{run:STEP}` for the folder of another step's run; `{data:NAME}` for a folder of
            raw data.
        data: raw set that is prepared: the name of its folder, which the user gives.
        shards: step that prepares the set; empty: none (`prepare`).
        start: step whose run is evaluated, or which a detector starts from; empty: random weights.
        random: evaluate random networks like those of `start` instead.
        processes: one a GPU, as many as the published run had.
        samples: of an epoch, for the number of updates; 0: not known.
        told: how long it takes, as its authors or users tell, with the source; empty: nobody does.
    """

    verb: Verb
    config: str
    overrides: tuple[str, ...] = ()
    data: str = ""
    shards: str = ""
    start: str = ""
    random: bool = False
    processes: int = 1
    samples: int = 0
    told: str = ""

    def __post_init__(self) -> None:
        at_least(self, processes=1, samples=0)
        needed = {"prepare": ("data",), "evaluate": ("shards", "start")}.get(self.verb, ("shards",))
        for name in needed:
            if not getattr(self, name):
                raise ValueError(f"{name}: no value given, expected one for verb {self.verb!r}")
        known = config_names(FOLDERS[self.verb])
        if self.config not in known and not (self.verb == "prepare" and self.config in HELP):
            raise ValueError(
                f"config: got {self.config!r}, no file of configs/{FOLDERS[self.verb]}{nearest(self.config, known)}"
            )

    def needs(self) -> Iterator[str]:
        """Steps that must be done before, each once."""
        runs = (name for text in self.overrides for kind, name in PLACEHOLDER.findall(text) if kind == "run")
        yield from dict.fromkeys(name for name in (self.shards, self.start, *runs) if name)

    def weights(self) -> Iterator[str]:
        """Published files of weights that it reads."""
        yield from (name for text in self.overrides for kind, name in PLACEHOLDER.findall(text) if kind == "weights")

    def raw(self) -> Iterator[str]:
        """Folders of raw data that it reads, each once."""
        more = (name for text in self.overrides for kind, name in PLACEHOLDER.findall(text) if kind == "data")
        yield from dict.fromkeys(name for name in (self.data, *more) if name)


@dataclass(frozen=True, kw_only=True)
class CellConfig:
    """One figure of a table.

    Attributes:
        published: as the paper has it; null: it has none.
        step: whose result it is here; empty: it cannot be made here yet.
        random: of an evaluation, its row of random initialisation.
        measure: of an evaluation, the protocol and, behind a colon, the metric; of a detector, the benchmark and the
            figure. Empty: the first.
    """

    published: float | None = None
    step: str = ""
    random: bool = False
    measure: str = ""


@dataclass(frozen=True, kw_only=True)
class RowConfig:
    """A row: column -> figure; and what differs from the paper."""

    cells: dict[str, CellConfig]
    differs: str = ""


@dataclass(frozen=True, kw_only=True)
class TableConfig:
    """A table: what it shows and in which unit; row -> cells; and what is to be said of all of it."""

    title: str
    rows: dict[str, RowConfig]
    differs: str = ""

    @property
    def columns(self) -> list[str]:
        """Names of the columns, in the order of their first appearance."""
        return list(dict.fromkeys(column for row in self.rows.values() for column in row.cells))


@dataclass(frozen=True, kw_only=True)
class ReproduceConfig:
    """A paper.

    Attributes:
        title: of the page.
        paper: authors, venue, year.
        about: what a reader should know first.
        methods: names of methods whose pages say more.
        steps: name -> command.
        tables: the paper's number of a table, or a word -> table.
    """

    title: str
    paper: str
    about: str = ""
    methods: tuple[str, ...] = ()
    steps: dict[str, StepConfig]
    tables: dict[str, TableConfig]

    def __post_init__(self) -> None:
        before: set[str] = set()
        for name, step in self.steps.items():
            for other in step.needs():
                if other not in before:
                    raise ValueError(f"steps.{name}: needs {other!r}, expected a step above it{nearest(other, before)}")
            before.add(name)
        for table, row, column, cell in self.cells():
            if cell.step and cell.step not in self.steps:
                known = nearest(cell.step, self.steps)
                raise ValueError(f"tables.{table}.rows.{row}.cells.{column}.step: got {cell.step!r}, no step{known}")

    def cells(self) -> Iterator[tuple[str, str, str, CellConfig]]:
        """Table, row and column of every figure."""
        for name, table in self.tables.items():
            for row, entry in table.rows.items():
                for column, cell in entry.cells.items():
                    yield name, row, column, cell

    def chain(self, last: set[str]) -> list[str]:
        """Steps that the given ones need, and these, in the order in which they can be done."""
        wanted = set(last)
        for name in reversed(self.steps):
            if name in wanted:
                wanted |= set(self.steps[name].needs())
        return [name for name in self.steps if name in wanted]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The part of a paper that is asked for.

    Attributes:
        name: of the paper's file.
        tables: all of its tables or one; with the chosen rows only.
        steps: names of the steps that they need, in order.
    """

    name: str
    config: ReproduceConfig
    tables: dict[str, TableConfig]
    steps: list[str] = field(default_factory=list)


def load_paper(name: str) -> ReproduceConfig:
    """The file of a paper, by name or path.

    Raises:
        ConfigError: a mistake in it.
    """
    return load(ReproduceConfig, name)


def papers() -> list[str]:
    """Names of the papers that come with Tandem."""
    return config_names("reproduce")


def asked(name: str, table: str | None, rows: tuple[str, ...]) -> Asked:
    """What is asked for, and the steps that it takes.

    Raises:
        ConfigError: no such paper, table or row.
    """
    config = load_paper(name)
    if table is not None and table not in config.tables:
        raise ConfigError(
            f"--table: got {table!r}, expected one of {', '.join(config.tables)}{nearest(table, config.tables)}"
        )
    chosen = dict(config.tables) if table is None else {table: config.tables[table]}
    if rows:
        known = [row for entry in chosen.values() for row in entry.rows]
        for row in rows:
            if row not in known:
                raise ConfigError(f"--row: got {row!r}, expected some of {', '.join(known)}{nearest(row, known)}")
        kept = {key: {row: entry.rows[row] for row in entry.rows if row in rows} for key, entry in chosen.items()}
        chosen = {key: dataclasses.replace(chosen[key], rows=left) for key, left in kept.items() if left}
    last = {cell.step for entry in chosen.values() for row in entry.rows.values() for cell in row.cells.values()}
    return Asked(name=Path(name).stem, config=config, tables=chosen, steps=config.chain(last - {""}))


def packaged_file(step: StepConfig) -> Path:
    """The config file that a step names."""
    return PACKAGED / FOLDERS[step.verb] / f"{step.config}.yaml"
