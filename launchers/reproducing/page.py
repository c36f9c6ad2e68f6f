"""A paper's page of docs/reproduce, from its file: tables, commands, what they cost."""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Iterator, Mapping

from configs.find import find_config
from configs.load import load, required_settings
from configs.paper_tables import FOLDERS, GENERATED, PLACEHOLDER, Asked, TableConfig, Verb, asked
from configs.schema import EvaluateConfig
from engine.downstream.protocols import PROTOCOLS
from engine.schedule import total_steps
from launchers.reproducing.state import shown
from launchers.reproducing.steps import Places, Step, steps_of
from launchers.training.train import load_any_run

_SECONDS = 3600
_WIDTH = 120


def page(name: str) -> str:
    """The page of a paper as markdown.

    Raises:
        ConfigError: a mistake in its file or in a config that it names.
    """
    part = asked(name, None, ())
    steps = {step.name: step for step in steps_of(part, Places())}
    lines = [f"# {part.config.title}", "", _wrapped(f"{part.config.paper}. {part.config.about}"), ""]
    if part.config.methods:
        pages = (f"[`{method}`](../methods/{method}.md)" for method in part.config.methods)
        lines += [_wrapped(f"What is computed, and where it departs from the papers: {', '.join(pages)}."), ""]
    lines += [_wrapped(_needed(part.name, steps)), ""]
    told: dict[str, str] = {}
    for key, table in part.config.tables.items():
        lines += [f"## Table {key}: {table.title}" if key.isdigit() else f"## {_sentence(table.title)}", ""]
        lines += [*_figures(table), ""]
        lines += [*_commands(part, key, steps, told), ""]
    return "\n".join([*lines, *_cost(steps), ""])


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _wrapped(text: str) -> str:
    return textwrap.fill(text.strip(), _WIDTH, break_long_words=False, break_on_hyphens=False)


def _needed(name: str, steps: Mapping[str, Step]) -> str:
    sets = dict.fromkeys(name for step in steps.values() for name in step.config.raw() if name != GENERATED)
    files = dict.fromkeys(file for s in steps.values() for file in s.config.weights())
    if not sets:
        return f"Needed: nothing. `tandem reproduce {name} --local` does all of it."
    data = ", ".join(f"`--data {name}=FOLDER`" for name in sets)
    weights = f"; `--weights FOLDER` with {', '.join(f'`{file}`' for file in files)} in it" if files else ""
    return (
        f"Needed: {data}{weights} ([data sets](../datasets.md), [weights](../teacher_weights.md)). In the lists below, "
        "`/data` and `/weights` stand for your folders. The first line of a list prints the others with what is done "
        "and what is missing; without `--dry-run` it queues what is left, or runs it here with `--local` "
        "([more](../reproduce.md))."
    )


def _figures(table: TableConfig) -> Iterator[str]:
    """The published figures; one that no step makes here yet is in brackets."""
    columns = table.columns
    remarks = any(row.differs for row in table.rows.values())
    yield "| " + " | ".join(["", *columns, *(["differs"] if remarks else [])]) + " |"
    yield "|---" * (1 + len(columns) + remarks) + "|"
    bracketed = False
    for name, row in table.rows.items():
        cells = []
        for column in columns:
            cell = row.cells.get(column)
            text = "" if cell is None else shown(cell.published) or ("–" if cell.step else "")
            if cell is not None and cell.published is not None and not cell.step:
                text, bracketed = f"({text})", True
            cells.append(text)
        yield "| " + " | ".join([name, *cells, *([row.differs] if remarks else [])]) + " |"
    yield ""
    if any(cell.published is not None for row in table.rows.values() for cell in row.cells.values()):
        brackets = " In brackets: no step makes it yet." if bracketed else ""
        yield _wrapped(f"Published figures; not run here: needs GPUs.{brackets} {table.differs}")
    elif table.differs:
        yield _wrapped(table.differs)


def _commands(part: Asked, key: str, steps: Mapping[str, Step], told: dict[str, str]) -> Iterator[str]:
    """The commands of a table; those that a table above has shown are named."""
    own = asked(part.name, key, ()).steps
    yield "```"
    yield f"tandem reproduce {part.name} --table {key} --dry-run"
    before = [name for name in own if name in told]
    if before:
        yield f"# as for table {' and '.join(dict.fromkeys(told[name] for name in before))}: {', '.join(before)}"
    for name in own:
        if name not in told:
            yield steps[name].command()
            told[name] = key
    yield "```"


def _cost(steps: Mapping[str, Step]) -> Iterator[str]:
    yield "## What it costs"
    yield ""
    yield _wrapped(
        "Updates are those of `tandem plan`, with the published number of GPUs; of a share of a set, for about that "
        "share of its samples. GPU-hours are for one second an update: multiply by what yours takes (`tandem plan "
        "CONFIG --measure`, or a trial run's `--from-run`). Reading test sets comes on top. No time is stated that was "
        "not measured, and none was measured here."
    )
    yield ""
    yield "| steps | GPUs | updates | GPU-hours at 1 s | known |"
    yield "|---|---:|---:|---:|---|"
    alike: dict[tuple[int, int | None, str], list[str]] = {}
    for step in steps.values():
        if step.config.verb != "prepare":
            alike.setdefault((step.processes, updates_of(step), step.config.told), []).append(step.name)
    for (processes, updates, told), names in alike.items():
        count, hours = ("", "") if updates is None else (f"{updates:,}", f"{updates * processes / _SECONDS:,.1f}")
        yield f"| {', '.join(names)} | {processes} | {count} | {hours} | {told} |"


def updates_of(step: Step) -> int | None:
    """Updates that a step trains; None where the number of its samples is not known, or it trains nothing by updates.

    Raises:
        ConfigError: its config cannot be used.
    """
    config = step.config
    overrides = tuple(text for text in config.overrides if not PLACEHOLDER.search(text))
    if config.verb == "evaluate":
        return _updates_of_evaluation(config.config, overrides, config.samples)
    return _updates_of_run(config.verb, config.config, overrides, config.samples, step.processes)


@functools.cache
def _updates_of_evaluation(config: str, overrides: tuple[str, ...], samples: int) -> int | None:
    protocols = load(EvaluateConfig, config, overrides)
    recipes = [getattr(protocols, PROTOCOLS[name].section) for name in protocols.protocols if PROTOCOLS[name].drawn]
    known = [recipe.updates(samples) * len(recipe.seeds) for recipe in recipes if samples or recipe.epochs is None]
    return sum(known) if known else None


@functools.cache
def _updates_of_run(verb: Verb, config: str, overrides: tuple[str, ...], samples: int, processes: int) -> int | None:
    file = find_config(config, FOLDERS[verb])
    blanks = (f"{name}={'none' if name == 'data.shards' else 'random'}" for name in required_settings(file))
    run = load_any_run(str(file), [*blanks, *overrides])
    if run.schedule.steps is None and not samples:
        return None
    batch = run.data.micro_batch_size * run.engine.accumulation_steps * processes
    return total_steps(run.schedule, samples_per_epoch=samples or batch, global_batch_size=batch)
