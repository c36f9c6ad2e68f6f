"""Tables whose rows are measured one by one until a time is spent, for `benchmarks.gpu`."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from benchmarks.common import markdown


class NotMeasuredError(Exception):
    """A row cannot be measured here; the message says why."""


@dataclass(frozen=True)
class Table:
    """One table of the entry.

    Attributes:
        title: what is measured.
        header: of the columns; the first is the row's name.
        rows: name -> what measures the other cells. Raises `NotMeasuredError` where that cannot be done here.
        note: printed beneath it.
    """

    title: str
    header: Sequence[str]
    rows: Mapping[str, Callable[[], Sequence[str]]]
    note: str = ""


@dataclass
class Budget:
    """Seconds that may be spent, from now on."""

    seconds: float
    clock: Callable[[], float] = time.perf_counter

    def __post_init__(self) -> None:
        self._began = self.clock()

    @property
    def over(self) -> bool:
        """Whether no further row is to be begun."""
        return self.clock() - self._began >= self.seconds


@dataclass
class Outcome:
    """What became of the rows.

    Attributes:
        skipped: names of those that the time did not suffice for.
        failed: names of those that ended in an error, whose traceback is on standard error.
    """

    skipped: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


def entry(tables: Sequence[Table], budget: Budget, outcome: Outcome) -> Iterator[str]:
    """The tables as text, each when it is done; rows that fail or are left out are named and cost no others."""
    for table in tables:
        cells, absent = [], []
        for name, measure in table.rows.items():
            if budget.over:
                outcome.skipped.append(f"{table.title}: {name}")
                continue
            try:
                cells.append([name, *measure()])
            except NotMeasuredError as reason:
                absent.append(f"- {name}: not measured: {reason}")
            except torch.OutOfMemoryError:
                absent.append(f"- {name}: out of memory")
            except Exception as error:  # one row must not cost the others on a machine that is lent for minutes
                traceback.print_exc()
                outcome.failed.append(f"{table.title}: {name}: {type(error).__name__}")
        text = [f"### {table.title}"]
        if cells:
            text.append(markdown(table.header, cells))
        if absent:
            text.append("\n".join(absent))
        if table.note and cells:
            text.append(table.note)
        yield "\n\n".join(text)
    if outcome.skipped:
        yield f"Not run, as {budget.seconds:.0f} s were spent: {'; '.join(outcome.skipped)}."
    if outcome.failed:
        yield f"Failed: {'; '.join(outcome.failed)}."
