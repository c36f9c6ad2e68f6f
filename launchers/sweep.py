"""`tandem sweep`: many runs that differ in some settings, evaluated, in one report."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from common.printable import printable
from configs.dump import dump
from configs.load import UNREADABLE, ConfigError, load, read_value
from configs.schema import SweepConfig
from configs.text import TextDumper
from launchers.cli import FAILURE, guarded
from launchers.cluster.plan_submission import Point, SubmitRequest, with_first_stages
from launchers.cluster.submission import submit
from launchers.options.sweep import parser
from launchers.submit import commented, load_cluster, of_run, where_of
from launchers.training.train import load_any_run

_MAX_NAME = 96
"""Characters of a point's name; folders allow 255 bytes, and logs and TensorBoard add to it."""
_LIKE_NUMBERS = re.compile(r"[-+.e0-9]+(x[-+.e0-9]+)+")
_HASH = 8


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb; 0 when everything is queued or, without SLURM, done."""
    options = parser().parse_intermixed_args(argv)
    sweep = load(SweepConfig, options.sweep, [] if options.root is None else [f"root={json.dumps(options.root)}"])
    where = where_of(options)
    cluster = load_cluster(options.cluster or sweep.cluster, options.overrides, nodes=options.nodes, where=where)
    made = points(sweep, of_run(options.overrides))
    if options.show_config:
        runs = "".join(f"# {point.run_dir.name}: {' '.join(point.overrides)}\n" for point in made)
        print(dump(sweep) + printable(runs) + commented("cluster", cluster), end="")
        return 0
    request = SubmitRequest(
        points=with_first_stages(made),
        root=Path(sweep.root),
        cluster=cluster,
        where=where,
        evaluate=sweep.evaluate and not options.no_evaluate,
        check=not options.no_check,
    )
    return 0 if submit(request, dry_run=options.dry_run) else FAILURE


def points(sweep: SweepConfig, extra: Sequence[str] = ()) -> list[Point]:
    """The runs of a sweep, in the order of the file; `extra` overrides are stronger than the file's own.

    Raises:
        ConfigError: a mistake in a point's settings, or two points that are the same; names the point.
    """
    made: dict[str, Point] = {}
    starts = [(name, run.base, run.overrides) for name, run in sweep.runs.items()]
    for run, base, own in starts if sweep.base is None else [("", sweep.base, ())]:
        for chosen in combinations(sweep):
            overrides = [*sweep.overrides, *own, *(f"{key}={value.given}" for key, value in chosen.items()), *extra]
            try:
                config = load_any_run(base, overrides)
            except ConfigError as error:
                name = _named(run, {key: value.meaning for key, value in chosen.items()})
                raise ConfigError(f"point {name}: {error}") from error
            name = _named(run, {key: _as_loaded(config, key, value.meaning) for key, value in chosen.items()})
            if name in made:
                raise ConfigError(f"two points of the sweep are the same run, {name}; remove one of them")
            config = dataclasses.replace(config, run_dir=str(Path(sweep.root) / name))
            made[name] = Point(config=config, overrides=tuple(overrides))
    return list(made.values())


def _named(run: str, values: Mapping[str, Any]) -> str:
    return "-".join(part for part in (run, point_name(values)) if part)


def _as_loaded(config: Any, key: str, value: Any) -> Any:
    """The value, or what became of it where the setting is text: 0027 is a drive, and not 23."""
    for part in key.split("."):
        config = getattr(config, part, None)
    texts = config if isinstance(config, tuple) else (config,)
    is_text = bool(texts) and all(isinstance(text, str) for text in texts)
    return config if is_text and yaml_value(value, _AsGiven) != yaml_value(config, _AsGiven) else value


@dataclass(frozen=True)
class Choice:
    """The value of a setting at a point.

    Attributes:
        given: right side of the override.
        meaning: the same as YAML reads it, for the point's name.
    """

    given: str
    meaning: Any


def combinations(sweep: SweepConfig) -> Iterable[dict[str, Choice]]:
    """Dotted name -> value of each point: every entry of `points` with every combination of `grid`."""
    listed = [_parsed(point) for point in sweep.points] or [{}]
    for point in listed:
        for values in itertools.product(*sweep.grid.values()):
            yield {**point, **{key: _choice(value) for key, value in zip(sweep.grid, values, strict=True)}}


def _choice(value: Any) -> Choice:
    """A value of a grid; texts that YAML reads as numbers stand for the value as it was given."""
    given = yaml_value(value, _AsGiven)
    return Choice(given=given, meaning=read_value(given))


def point_name(chosen: Mapping[str, Any]) -> str:
    """A folder's name for a point: what tells it from others, safe in file systems, the same at every call.

    "temperature_0.07-seed_1": the last words of the settings' names with their values. Where characters had to be
    replaced, or the name was too long, a hash of the settings keeps different points apart.
    """
    short = _short_keys(list(chosen))
    plain = "-".join(f"{short[key]}_{_text(value)}" for key, value in chosen.items())
    safe = re.sub(r"[^A-Za-z0-9_.+-]+", ".", plain).strip(".-")
    if safe == plain and len(safe) <= _MAX_NAME and not any(map(_ambiguous, chosen.values())):
        return safe
    digest = hashlib.sha256(yaml_value(dict(chosen)).encode()).hexdigest()[:_HASH]
    return f"{safe[: _MAX_NAME - _HASH - 1]}-{digest}"


class _AsGiven(TextDumper):
    """Writes texts that look like numbers, or like true and false, without quotes."""


_LIKE_VALUES = frozenset(f"tag:yaml.org,2002:{kind}" for kind in ("int", "float", "bool"))


def _as_given(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    tag = dumper.resolve(yaml.ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]
    if tag in _LIKE_VALUES:
        return dumper.represent_scalar(tag, text)
    return TextDumper.yaml_representers[str](dumper, text)


_AsGiven.add_representer(str, _as_given)


def yaml_value(value: Any, style: type[yaml.SafeDumper] = TextDumper) -> str:
    """A value on one line, as an override's right side."""
    # Never folded.
    text = yaml.dump(_plain(value), Dumper=style, default_flow_style=True, width=1 << 20, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("...").rstrip("\n")  # PyYAML ends a bare scalar with this mark


def _short_keys(keys: Sequence[str]) -> dict[str, str]:
    """Dotted name -> its last words, as few as tell it from the others (`backbone.name` is called backbone)."""
    trimmed = {key: key.removesuffix(".name") for key in keys}
    short = {}
    for key, name in trimmed.items():
        words = name.split(".")
        others = [other.split(".") for k, other in trimmed.items() if k != key]
        count = next(
            (n for n in range(1, len(words) + 1) if all(other[-n:] != words[-n:] for other in others)), len(words)
        )
        short[key] = ".".join(words[-count:])
    return short


def _parsed(point: Sequence[str]) -> dict[str, Choice]:
    pairs = {}
    for override in point:
        key, sign, value = override.partition("=")
        if not sign or not key:
            raise ConfigError(f"points: {override!r}, expected section.field=value")
        try:
            pairs[key] = Choice(given=value, meaning=yaml.safe_load(value))
        except UNREADABLE as error:
            raise ConfigError(f"points: {override!r}: the value is not valid YAML ({error})") from error
    return pairs


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "x".join(_text(item) for item in value)
    return yaml_value(value)


def _ambiguous(value: Any) -> bool:
    """Whether another value has the same text: a list reads as numbers joined by x only where it holds two or more."""
    if isinstance(value, (list, tuple)):
        return len(value) < 2 or not all(type(item) in (int, float) and math.isfinite(item) for item in value)
    return isinstance(value, str) and bool(_LIKE_NUMBERS.fullmatch(value))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


if __name__ == "__main__":
    sys.exit(guarded(main, sys.argv[1:]))
