"""`tandem score`: judge anybody's detections, or classes and objects of points, as a benchmark does, from files."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from configs.load import ArgumentError
from engine.detection.argoverse2 import score_argoverse2
from engine.detection.formats import argoverse2 as argoverse2_files
from engine.detection.formats import kitti as kitti_files
from engine.detection.formats import nuscenes as nuscenes_files
from engine.detection.formats import once as once_files
from engine.detection.formats import waymo as waymo_files
from engine.detection.formats.tables import united
from engine.detection.frames import FoundObjects, TrueObjects, paired
from engine.detection.judge import note_of_classes
from engine.detection.kitti import score_kitti
from engine.detection.kitti_rules import KittiSettings
from engine.detection.nuscenes import score_nuscenes
from engine.detection.once import OnceSettings, score_once
from engine.detection.pairs import FramePair
from engine.detection.waymo import score_waymo
from engine.scores import JudgeError, Scores
from launchers.cli import guarded
from launchers.evaluation import nuscenes_truth, prepared_truth
from launchers.evaluation.prepared_truth import is_prepared
from launchers.evaluation.score_table import print_scores
from launchers.evaluation.segment_files import score_kitti_files, score_nuscenes_files
from launchers.options.score import OF_POINTS, parse
from launchers.runs.terminal import terminal

_WIDTH = 120

Sides = tuple[Sequence[TrueObjects], Sequence[FoundObjects]]
_Options = argparse.Namespace


@dataclass(frozen=True, kw_only=True)
class _Benchmark:
    """How a benchmark's files are read, and its metric.

    Attributes:
        truth: ground truth of the frames that are wanted (None: of all), from the benchmark's own files.
        sides: that with what was found, of the same frames.
        score: the metric.
    """

    truth: Callable[[Path, Sequence[str] | None, _Options], Sequence[TrueObjects]]
    sides: Callable[[Path, Sequence[TrueObjects], Sequence[str] | None], Sides]
    score: Callable[[Sequence[FramePair], _Options], Scores]


def _kitti_sides(predictions: Path, truth: Sequence[TrueObjects], keys: Sequence[str] | None) -> Sides:
    return truth, kitti_files.read_found(predictions, [frame.key for frame in truth])


def _once_sides(predictions: Path, truth: Sequence[TrueObjects], keys: Sequence[str] | None) -> Sides:
    return truth, once_files.read_found(predictions, [frame.key for frame in truth])


def _nuscenes_sides(predictions: Path, truth: Sequence[TrueObjects], keys: Sequence[str] | None) -> Sides:
    found, _ = nuscenes_files.read_results(predictions)
    return truth, found if keys is None else [frame for frame in found if frame.key in set(keys)]


def _waymo_sides(predictions: Path, truth: Sequence[TrueObjects], keys: Sequence[str] | None) -> Sides:
    return _only(united(truth, waymo_files.read_found(predictions), predictions), keys)


def _argoverse2_sides(predictions: Path, truth: Sequence[TrueObjects], keys: Sequence[str] | None) -> Sides:
    return _only(united(truth, argoverse2_files.read_found(predictions), predictions), keys)


def _only(sides: Sides, keys: Sequence[str] | None) -> Sides:
    """The wanted frames; files of these benchmarks do not tell frames without objects from forgotten ones."""
    if keys is None:
        return sides
    wanted = set(keys)
    truth, found = sides
    return [frame for frame in truth if frame.key in wanted], [frame for frame in found if frame.key in wanted]


_BENCHMARKS: Mapping[str, _Benchmark] = {
    "kitti": _Benchmark(
        truth=lambda path, keys, options: kitti_files.read_truth(path, keys),
        sides=_kitti_sides,
        score=lambda frames, options: score_kitti(frames, KittiSettings(height_rule=options.height_rule)),
    ),
    "nuscenes": _Benchmark(
        truth=lambda path, keys, options: nuscenes_truth.read_truth(path, keys, options.split),
        sides=_nuscenes_sides,
        score=lambda frames, options: score_nuscenes(frames),
    ),
    "waymo": _Benchmark(
        truth=lambda path, keys, options: waymo_files.read_truth(path),
        sides=_waymo_sides,
        score=lambda frames, options: score_waymo(frames),
    ),
    "once": _Benchmark(
        truth=lambda path, keys, options: once_files.read_truth(path, keys),
        sides=_once_sides,
        score=lambda frames, options: score_once(frames, OnceSettings(max_distance_m=options.max_distance)),
    ),
    "argoverse2": _Benchmark(
        truth=lambda path, keys, options: argoverse2_files.read_truth(path),
        sides=_argoverse2_sides,
        score=lambda frames, options: score_argoverse2(frames),
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb.

    Raises:
        ArgumentError: a file is missing, malformed, or does not fit the others.
        ShardError: a prepared set cannot be read.
    """
    options = parse(argv)
    predictions, ground_truth = (_existing(path) for path in (options.predictions, options.ground_truth))
    keys = None if options.frames is None else _listed(_existing(options.frames))
    out = None if options.out is None else _to_be_written(Path(options.out))
    if options.benchmark in OF_POINTS:
        return _shown(_of_points(predictions, ground_truth, keys, options), options.worst, out)
    benchmark = _BENCHMARKS[options.benchmark]
    try:
        if is_prepared(ground_truth):
            known = prepared_truth.read_truth(ground_truth, options.benchmark, keys, options.split)
        else:
            known = list(benchmark.truth(ground_truth, keys, options))
        truth, found = benchmark.sides(predictions, known, keys)
        scores = benchmark.score(paired(truth, found), options)
        said = (*scores.notes, *note_of_classes(options.benchmark, found))
    except JudgeError as error:
        raise ArgumentError(str(error)) from error
    return _shown(dataclasses.replace(scores, notes=said), options.worst, out)


def _of_points(predictions: Path, ground_truth: Path, keys: Sequence[str] | None, options: _Options) -> Scores:
    if options.benchmark == "panoptic_nuscenes":
        return score_nuscenes_files(predictions, ground_truth, keys)
    return score_kitti_files(predictions, ground_truth, keys, by_word=options.stuff == "words")


def _shown(scores: Scores, worst: int, out: Path | None) -> int:
    console = terminal(width=_WIDTH)
    print_scores(scores, console, worst)
    if out is not None:
        out.write_text(json.dumps(scores.as_json(), indent=1) + "\n", encoding="utf-8")
        console.print(f"all figures: {out}", soft_wrap=True)
    return 0


def _existing(path: str) -> Path:
    if not Path(path).exists():
        raise ArgumentError(f"{path}: no such file or folder")
    return Path(path)


def _to_be_written(out: Path) -> Path:
    """A file that can be written, as is seen before anything is judged; its folder is made."""
    if out.is_dir():
        raise ArgumentError(f"--out {out}: is a folder; expected a file, for example --out {out / 'scores.json'}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArgumentError(f"--out {out}: its folder cannot be made ({error})") from error
    return out


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


if __name__ == "__main__":
    sys.exit(guarded(main, sys.argv[1:]))
