"""nuScenes' detection metric on simulated predictions of the size of the validation set, beside its development kit.

Part of `python -m benchmarks.detection_metrics`.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import REPOSITORY, markdown, seconds_of, setting
from engine.detection.judge import judge
from engine.scores import Scores
from tests.helpers.nuscenes_scenes import Frame, line_of, scene

VAL = 6019
"""Samples of the validation set."""
_KIT = REPOSITORY / "tests" / "reference" / "nuscenes_devkit_metric.py"
_ERRORS = {"ATE": "trans_err", "ASE": "scale_err", "AOE": "orient_err", "AVE": "vel_err", "AAE": "attr_err"}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Command line of the measurement."""
    parser.add_argument("--samples", type=int, default=VAL)
    parser.add_argument("--most", type=int, default=500, help="found objects of a sample, 0 to this many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--devkit", metavar="PYTHON", help="of an environment with nuscenes-devkit==1.2.0")


def measure(options: argparse.Namespace) -> None:
    """Seconds, memory, and the largest difference from the kit."""
    counts = np.random.default_rng(options.seed).integers(0, options.most + 1, options.samples)
    frames = [
        frame
        for number, count in enumerate(counts.tolist())
        for frame in scene([options.seed, number], frames=1, num_true=35, num_found=count, digits=9)
    ]
    truth, found = [frame[0] for frame in frames], [frame[1] for frame in frames]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    scores: list[Scores] = []
    seconds = seconds_of(lambda: scores.append(judge("nuscenes", truth, found)))
    more_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    rows = [["here", f"{seconds:.1f}", f"{more_mb:.0f}", "", ""]]
    if options.devkit:
        kit = _by_kit(frames, options.devkit)
        ratio, apart = f"{kit['seconds'] / seconds:.0f}", f"{largest_difference(scores[0], kit):.1e}"
        rows.append(["nuscenes-devkit 1.2.0", f"{kit['seconds']:.1f}", "", ratio, apart])
    print(setting(options.seed))
    print(f"{options.samples:,} samples, {sum(map(len, truth)):,} true and {sum(map(len, found)):,} found objects\n")
    print(markdown(("by", "seconds of a core", "peak MB beyond input", "times as long", "largest difference"), rows))


def _by_kit(frames: Sequence[Frame], python: str) -> dict[str, Any]:
    """What the development kit says about the same frames."""
    with tempfile.TemporaryDirectory() as folder:
        lines, output = Path(folder, "scene.jsonl"), Path(folder, "values.json")
        with lines.open("w") as file:
            file.writelines(f"{line_of(frame)}\n" for frame in frames)
        subprocess.run([python, str(_KIT), str(output), str(lines)], check=True, cwd=folder)
        values: dict[str, Any] = json.loads(output.read_text())["scene"]
    return values


def largest_difference(scores: Scores, kit: Mapping[str, Any]) -> float:
    """Between any of the kit's figures and ours; infinite where only one of them is NaN."""
    pairs = [(scores.headline["NDS"], kit["nd_score"]), (scores.headline["mAP"], kit["mean_ap"])]
    pairs += [(scores.headline[f"m{kind}"], kit["tp_errors"][name]) for kind, name in _ERRORS.items()]
    for category, by_limit in kit["label_aps"].items():
        pairs += [(scores.value(category, "", f"AP {float(limit):g} m"), value) for limit, value in by_limit.items()]
    for category, errors in kit["label_tp_errors"].items():
        pairs += [(scores.value(category, "", kind), errors[name]) for kind, name in _ERRORS.items()]
    both = [(ours, theirs) for ours, theirs in pairs if not (math.isnan(ours) and math.isnan(theirs))]
    return max(math.inf if math.isnan(ours - theirs) else abs(ours - theirs) for ours, theirs in both)
