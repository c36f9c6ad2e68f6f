"""The newest judgement of a run in full, with curves and frames: `verdict.json` in the run's folder.

What came of the earlier ones is in `detections.jsonl`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.files import replace_file
from common.small_files import DamagedFileError, read_json
from configs.load import ConfigError
from engine.scores import FrameErrors, Scores
from launchers.runs.files import VERDICT_FILE

_COUNTED = "counted_from"


@dataclass(frozen=True, kw_only=True)
class BenchmarkVerdict:
    """What one benchmark says.

    Attributes:
        curves: precision over recall, as `engine.scores.Curve` in lists, None where it has no number.
        frames: errors of each frame.
        counted_from: class of a detector -> score from which on its objects count in `frames`; a class that is not
            there has none that count. {} of a segmenter.
    """

    curves: Sequence[Mapping[str, Any]]
    frames: Sequence[FrameErrors]
    counted_from: Mapping[str, float]

    def errors_of(self, key: str) -> FrameErrors | None:
        """Errors of one frame; None where it was not judged."""
        return next((frame for frame in self.frames if frame.key == key), None)

    def worst(self, count: int) -> list[FrameErrors]:
        """Frames with most errors first, of equally many by their key; those without errors are left out."""
        wrong = [frame for frame in self.frames if frame.count]
        return sorted(wrong, key=lambda frame: (-frame.count, frame.key))[:count]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Of one judgement.

    Attributes:
        step: updates done.
        split: that was judged.
        benchmarks: by name, in the config's order.
    """

    step: int
    split: str
    benchmarks: Mapping[str, BenchmarkVerdict]


def write_verdict(
    run_dir: Path,
    step: int,
    split: str,
    scores: Mapping[str, Scores],
    counted_from: Mapping[str, Mapping[str, float]],
) -> None:
    """Replace the run's verdict.

    Args:
        run_dir: of the run.
        step: updates done.
        split: of the frames.
        scores: of each benchmark.
        counted_from: of each benchmark, see `BenchmarkVerdict`.
    """
    benchmarks = {}
    for name, verdict in scores.items():
        tree = verdict.as_json()
        benchmarks[name] = {key: tree[key] for key in ("curves", "frames")}
        benchmarks[name][_COUNTED] = dict(counted_from[name])
    tree = {"step": step, "split": split, "benchmarks": benchmarks}
    replace_file(run_dir / VERDICT_FILE, (json.dumps(tree) + "\n").encode())


def read_verdict(run_dir: Path) -> Verdict | None:
    """The run's newest verdict; None where it was not judged yet.

    Raises:
        ConfigError: the file is damaged.
    """
    path = run_dir / VERDICT_FILE
    try:
        tree = read_json(path, {"step": "count", "split": "text", "benchmarks": "mapping"})
        return None if tree is None else _verdict(tree)
    except (DamagedFileError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"{path}: is damaged ({error!r}); remove it, and the run's next judgement writes it"
        ) from error


def _verdict(tree: Mapping[str, Any]) -> Verdict:
    benchmarks = {
        name: BenchmarkVerdict(
            curves=part["curves"],
            frames=tuple(
                FrameErrors(
                    key=frame["key"],
                    **{kind: np.array(frame[kind], dtype=np.int64) for kind in ("missed", "false", "right")},
                )
                for frame in part["frames"]
            ),
            counted_from={str(key): float(value) for key, value in part[_COUNTED].items()},
        )
        for name, part in tree["benchmarks"].items()
    }
    return Verdict(step=int(tree["step"]), split=str(tree["split"]), benchmarks=benchmarks)
