"""`tandem score`: judge anybody's detections as a benchmark does, from files."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from configs.load import ArgumentError
from engine.detection.argoverse2 import score_argoverse2
from engine.detection.formats import argoverse2 as argoverse2_files
from engine.detection.formats import kitti as kitti_files
from engine.detection.formats import nuscenes as nuscenes_files
from engine.detection.formats import once as once_files
from engine.detection.formats import waymo as waymo_files
from engine.detection.frames import FoundObjects, JudgeError, TrueObjects, paired
from engine.detection.kitti import score_kitti
from engine.detection.kitti_rules import KittiSettings
from engine.detection.nuscenes import score_nuscenes
from engine.detection.once import OnceSettings, score_once
from engine.detection.pairs import FramePair
from engine.detection.scores import Scores
from engine.detection.waymo import score_waymo
from launchers.cli import guarded
from launchers.evaluation import nuscenes_truth
from launchers.options.score import parse
from launchers.runs.terminal import terminal

_WIDTH = 120
_OBJECTS = "objects"
_MOST_CLASSES = 12
"""That are shown whether they have objects or not: all of nuScenes, not of Argoverse 2."""


Sides = tuple[Sequence[TrueObjects], Sequence[FoundObjects]]
_Options = argparse.Namespace


@dataclass(frozen=True, kw_only=True)
class _Benchmark:
    """How a benchmark's files are read, predictions and ground truth of the frames that are wanted, and its metric."""

    read: Callable[[Path, Path, Sequence[str] | None, _Options], Sides]
    score: Callable[[Sequence[FramePair], _Options], Scores]


def _read_kitti(predictions: Path, ground_truth: Path, keys: Sequence[str] | None, options: _Options) -> Sides:
    truth = kitti_files.read_truth(ground_truth, keys)
    return truth, kitti_files.read_found(predictions, [frame.key for frame in truth])


def _read_once(predictions: Path, ground_truth: Path, keys: Sequence[str] | None, options: _Options) -> Sides:
    truth = once_files.read_truth(ground_truth, keys)
    return truth, once_files.read_found(predictions, [frame.key for frame in truth])


def _read_nuscenes(predictions: Path, ground_truth: Path, keys: Sequence[str] | None, options: _Options) -> Sides:
    truth = nuscenes_truth.read_truth(ground_truth, keys, options.split)
    found, _ = nuscenes_files.read_results(predictions)
    return truth, found if keys is None else [frame for frame in found if frame.key in set(keys)]


def _read_waymo(predictions: Path, ground_truth: Path, keys: Sequence[str] | None, options: _Options) -> Sides:
    return _only(waymo_files.read_pair(predictions, ground_truth), keys)


def _read_argoverse2(predictions: Path, ground_truth: Path, keys: Sequence[str] | None, options: _Options) -> Sides:
    return _only(argoverse2_files.read_pair(predictions, ground_truth), keys)


def _only(sides: Sides, keys: Sequence[str] | None) -> Sides:
    """The wanted frames; files of these benchmarks do not tell frames without objects from forgotten ones."""
    if keys is None:
        return sides
    wanted = set(keys)
    truth, found = sides
    return [frame for frame in truth if frame.key in wanted], [frame for frame in found if frame.key in wanted]


_BENCHMARKS: Mapping[str, _Benchmark] = {
    "kitti": _Benchmark(
        read=_read_kitti,
        score=lambda frames, options: score_kitti(frames, KittiSettings(height_rule=options.height_rule)),
    ),
    "nuscenes": _Benchmark(read=_read_nuscenes, score=lambda frames, options: score_nuscenes(frames)),
    "waymo": _Benchmark(read=_read_waymo, score=lambda frames, options: score_waymo(frames)),
    "once": _Benchmark(
        read=_read_once,
        score=lambda frames, options: score_once(frames, OnceSettings(max_distance_m=options.max_distance)),
    ),
    "argoverse2": _Benchmark(read=_read_argoverse2, score=lambda frames, options: score_argoverse2(frames)),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb.

    Raises:
        ArgumentError: a file is missing, malformed, or does not fit the others.
    """
    options = parse(argv)
    predictions, ground_truth = (_existing(path) for path in (options.predictions, options.ground_truth))
    keys = None if options.frames is None else _listed(_existing(options.frames))
    benchmark = _BENCHMARKS[options.benchmark]
    try:
        truth, found = benchmark.read(predictions, ground_truth, keys, options)
        scores = benchmark.score(paired(truth, found), options)
    except JudgeError as error:
        raise ArgumentError(str(error)) from error
    _print(scores, options.worst)
    if options.out is not None:
        out = Path(options.out)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(scores.as_json(), indent=1) + "\n", encoding="utf-8")
        terminal(width=_WIDTH).print(f"all figures: {out}", soft_wrap=True)
    return 0


def _existing(path: str) -> Path:
    if not Path(path).exists():
        raise ArgumentError(f"{path}: no such file or folder")
    return Path(path)


def _listed(file: Path) -> list[str]:
    """Names of frames in a list, with or without the mark that editors put before UTF-8."""
    try:
        keys = file.read_text(encoding="utf-8-sig").split()
    except UnicodeDecodeError as error:
        raise ArgumentError(f"{file} is no text in UTF-8 ({error}); expected the frames' names, one a line") from error
    twice = next((key for key, number in Counter(keys).items() if number > 1), None)
    if twice is not None:
        raise ArgumentError(f"{file}: frame {twice} is listed twice; name each frame once")
    return keys


def _print(scores: Scores, num_worst: int) -> None:
    console = terminal(width=_WIDTH)
    console.print(f"{scores.benchmark}{f', {scores.unit}' if scores.unit else ''}", soft_wrap=True)
    console.print(_table(scores))
    hidden = len({row.category for row in scores.rows}) - len(_shown(scores))
    if hidden:
        console.print(f"not shown: {hidden} classes without objects")
    for name, value in scores.headline.items():
        console.print(f"{name}: {_number(value, scores.unit)} {scores.unit}".rstrip(), soft_wrap=True)
    for note in scores.notes:
        console.print(f"note: {note}", soft_wrap=True)
    for frame in scores.worst_frames(num_worst):
        console.print(f"frame {frame.key}: {len(frame.missed)} missed, {len(frame.false)} false", soft_wrap=True)


def _table(scores: Scores) -> Table:
    """For each class the number of objects, then a line a metric; a column a subset."""
    subsets = list(dict.fromkeys(row.subset for row in scores.rows))
    table = Table()
    table.add_column("class")
    table.add_column("metric")
    for subset in subsets:
        table.add_column(subset or "all", justify="right")
    for category in _shown(scores):
        rows = [row for row in scores.rows if row.category == category]
        counts = {row.subset: row.num_true for row in rows}
        table.add_row(category, _OBJECTS, *(f"{counts[subset]:,}" if subset in counts else "" for subset in subsets))
        for metric in dict.fromkeys(row.metric for row in rows):
            values = {row.subset: _number(row.value, row.unit) for row in rows if row.metric == metric}
            table.add_row("", metric, *(values.get(subset, "") for subset in subsets))
        table.add_section()
    return table


def _shown(scores: Scores) -> list[str]:
    """Classes of the table: of many, only those with objects."""
    categories = list(dict.fromkeys(row.category for row in scores.rows))
    some = {row.category for row in scores.rows if row.num_true}
    return categories if len(categories) <= _MOST_CLASSES else [name for name in categories if name in some]


def _number(value: float, unit: str) -> str:
    return "–" if math.isnan(value) else f"{value:.2f}" if unit == "%" else f"{value:.4f}"


if __name__ == "__main__":
    sys.exit(guarded(main, sys.argv[1:]))
