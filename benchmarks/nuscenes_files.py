"""Files of results for nuScenes, as `tandem evaluate --detector RUN --submission` writes them, read by its own kit.

    python -m benchmarks.nuscenes_files --devkit PYTHON [--nuscenes ROOT] [--updates 20] [--seed 0]

PYTHON: of an environment of its own with nuscenes-devkit==1.2.0. Made-up scenes in nuScenes' layout, with boxes,
classes and objects of points, are prepared; CenterPoint and the panoptic network are trained for some updates; and two
kinds of files go to the kit and to `tandem score`: what these find, and the truth with errors, whose figures are not
near 0. With ROOT, a folder with v1.0-mini, the latter are written of its boxes, too. Printed is the largest difference
of any figure.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from benchmarks.common import REPOSITORY, markdown, setting
from benchmarks.detection_nuscenes import largest_difference
from data.convert.nuscenes.names import CLASSES
from data.loading.detection_frames import frame_truth
from data.loading.segment_frames import point_truth
from data.storage.manifest import Manifest, load_manifest
from data.storage.reader import SampleReader
from engine.detection.formats.nuscenes import read_results
from engine.detection.frames import paired
from engine.detection.nuscenes import score_nuscenes
from engine.scores import MEAN, Scores
from launchers.cli import main as tandem
from launchers.evaluation.detections import Found, JudgedFrame
from launchers.evaluation.nuscenes_truth import read_truth
from launchers.evaluation.segment_files import NUSCENES_NAMES, files_of, score_nuscenes_files
from launchers.evaluation.segments import FoundSegments
from launchers.evaluation.submission import write_submission
from tests.helpers.layouts.nuscenes import NuscenesLayout, write_nuscenes

_KIT = REPOSITORY / "tests" / "reference" / "nuscenes_devkit_files.py"
_VERSION, _SPLIT = "v1.0-mini", "mini_val"
_LAYOUT = NuscenesLayout(scenes=("scene-0061", "scene-0103", "scene-0916"), frames=9, without_image=())
"""One scene of the official split mini_train, and both of mini_val: the kit asks for all scenes of a split."""
_KINDS = ("car", "truck", "bus", "trailer", "construction_vehicle", "pedestrian", "motorcycle", "bicycle",
          "traffic_cone", "barrier")  # fmt: skip
_METRICS = ("PQ", "SQ", "RQ")


def quiet(*words: str) -> None:
    """Run a verb without its tables.

    Raises:
        RuntimeError: it failed; its last words.
    """
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = tandem(words)
    if code:
        raise RuntimeError(f"tandem {' '.join(words)} ended with {code}: {said.getvalue()[-2000:]}")


def trained(name: str, shards: Path, run: Path, settings: Sequence[str]) -> Path:
    """A network of the street world with nuScenes' classes after some updates, and the files that it makes."""
    common = [f"run_dir={run}", f"data.shards={shards}", "data.num_workers=0", "data.split=mini_train"]
    common += ["judge.split=mini_val", "judge.every_epochs=0", "judge.limit=null"]
    common += ["engine.device=cpu", "monitor.tensorboard=false"]
    quiet("finetune", name, *common, *settings)
    return run


def near_the_truth(manifest: Manifest, split: str, rng: np.random.Generator) -> list[JudgedFrame]:
    """Four of five objects of each frame, a little beside where they are, and as many more where none is."""
    reader, frames = SampleReader(manifest), []
    for index in manifest.indices(split).tolist():
        truth = frame_truth(reader, index)
        boxes = truth.boxes
        assert boxes is not None
        known = np.array([manifest.class_names[n] if n < len(manifest.class_names) else "" for n in boxes.classes])
        rows = np.flatnonzero(np.isin(known, _KINDS) & (rng.random(len(known)) < 0.8))
        right = np.column_stack([boxes.centers_m, boxes.sizes_m, boxes.yaws])[rows].astype(np.float64)
        right += rng.normal(0, [0.4, 0.4, 0.1, 0.05, 0.05, 0.05, 0.2], right.shape)
        wrong = right + rng.normal(0, [9.0, 9.0, 0, 0, 0, 0, 2.0], right.shape)
        speeds = boxes.velocities_mps[rows].astype(np.float64) + rng.normal(0, 0.3, (len(rows), 2))
        classes = np.array([_KINDS.index(name) for name in known[rows]], dtype=np.int64)
        found = Found(
            boxes=np.concatenate([right, wrong]),
            velocities_mps=np.concatenate([speeds, speeds]),
            classes=np.concatenate([classes, classes]),
            scores=np.concatenate([rng.uniform(0.3, 1, len(rows)), rng.uniform(0, 0.7, len(rows))]),
        )
        frames.append(JudgedFrame(truth=truth, found=found))
    return frames


def points_near_the_truth(manifest: Manifest, split: str, tables: Path, folder: Path, rng: np.random.Generator) -> None:
    """Classes and objects of points, a tenth of them another class's, a tenth of the objects one with the next."""
    writer = files_of("panoptic_nuscenes", folder, NUSCENES_NAMES, split=split, tables=tables, pretrained=False)
    of_set = np.array([NUSCENES_NAMES.classes.index(name) for name in manifest.class_names] + [0])
    for index in manifest.indices(split).tolist():
        truth = point_truth(SampleReader(manifest), index)
        assert truth.labels is not None
        assert truth.instances is not None
        classes = of_set[np.minimum(truth.labels.astype(np.int64), len(manifest.class_names))]
        classes = np.where(rng.random(len(classes)) < 0.1, rng.integers(0, len(of_set) - 1, len(classes)), classes)
        numbers = truth.instances.astype(np.int64)
        objects = np.where(rng.random(numbers.max() + 2)[numbers] < 0.1, numbers + 1, numbers)
        things = NUSCENES_NAMES.is_thing[classes]
        count = int(objects.max()) + 1
        writer.write(
            truth,
            FoundSegments(
                found_class=classes,
                found_object=np.where(things, objects, -1),
                object_class=np.zeros(count, np.int64),
                object_score=np.ones(count),
            ),
        )
    writer.finish()


def with_a_map(root: Path, folder: Path) -> Path:
    """The tables of ROOT with a map for each log, which the kit does not do without; sensor files are not needed."""
    tables = folder / _VERSION
    tables.mkdir(parents=True)
    for path in (root / _VERSION).glob("*.json"):
        (tables / path.name).write_bytes(path.read_bytes())
    logs = [row["token"] for row in json.loads((tables / "log.json").read_text())]
    row = {"token": "map", "log_tokens": logs, "category": "semantic_prior", "filename": "maps/map.png"}
    (tables / "map.json").write_text(json.dumps([row]))
    (folder / "maps").mkdir()
    cv2.imwrite(str(folder / "maps" / "map.png"), np.zeros((8, 8), np.uint8))
    return folder


def by_kit(
    python: str, root: Path, split: str, detections: Path | None = None, panoptic: Path | None = None
) -> dict[str, Any]:
    """What the kit says of the files."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "said.json")
        given = [] if detections is None else ["--detections", str(detections)]
        given += [] if panoptic is None else ["--panoptic", str(panoptic)]
        words = [python, str(_KIT), str(root), _VERSION, split, str(output), *given]
        subprocess.run(words, check=True, cwd=folder, env={"MPLCONFIGDIR": folder}, stdout=subprocess.DEVNULL)
        said: dict[str, Any] = json.loads(output.read_text())
    return said


def boxes_row(name: str, said: Mapping[str, Any], root: Path, split: str, file: Path) -> list[str]:
    """The kit's figures beside those of `tandem score nuscenes`."""
    scores = score_nuscenes(paired(read_truth(root / _VERSION, None, split), read_results(file)[0]))
    sizes = f"{said['samples']}, {said['true']}, {said['found']}"
    figures = f"mAP {100 * said['mean_ap']:.2f}, NDS {100 * said['nd_score']:.2f}"
    return [name, sizes, figures, f"{largest_difference(scores, said):.0e}"]


def points_row(name: str, said: Mapping[str, Any], root: Path, split: str, folder: Path) -> list[str]:
    """The kit's figures beside those of `tandem score panoptic_nuscenes`."""
    scores = score_nuscenes_files(folder / "panoptic" / split, root / "panoptic" / _VERSION)
    mean = said["classes"]["all"]
    figures = f"PQ {100 * mean['PQ']:.2f}, mIoU {100 * mean['mIoU']:.2f}"
    return [name, f"{said['samples']}", figures, f"{points_difference(scores, said['classes']):.0e}"]


def points_difference(scores: Scores, kit: Mapping[str, Mapping[str, float]]) -> float:
    """Between any figure of the kit, 0 to 1, and ours; a class that is nowhere has none here and 0 there."""
    pairs = [(scores.value(MEAN, "", metric), kit["all"][metric]) for metric in _METRICS]
    pairs.append((scores.value(MEAN, "", "IoU"), kit["all"]["mIoU"]))
    for category in NUSCENES_NAMES.classes:
        pairs += [(scores.value(category, "", metric), kit[category][metric]) for metric in (*_METRICS, "IoU")]
    return max(abs(ours / 100 - theirs) for ours, theirs in pairs if not math.isnan(ours))


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devkit", metavar="PYTHON", required=True)
    parser.add_argument("--nuscenes", metavar="ROOT", type=Path, help="a folder with v1.0-mini")
    parser.add_argument("--updates", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    print(setting(options.seed))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_nuscenes(folder / "raw", _LAYOUT)
        root, shards = folder / "raw", folder / "shards"
        quiet("prepare", "nuscenes", str(root), str(shards), "--workers=1", "labels=required", "--no-superpixels")
        manifest = load_manifest(str(shards))
        settings = (f"schedule.steps={options.updates}", f"seed={options.seed}")
        kinds = f"model.classes=[{','.join(_KINDS)}]"
        boxes = trained(
            "centerpoint_street", shards, folder / "boxes", (*settings, kinds, "judge.benchmarks=[nuscenes]")
        )
        classes, things = list(CLASSES), list(CLASSES)[:10]
        names = (f"model.classes=[{','.join(classes)}]", f"model.things=[{','.join(things)}]")
        points = trained(
            "panoptic_street", shards, folder / "points", (*settings, *names, "judge.benchmarks=[panoptic_nuscenes]")
        )
        for run in (boxes, points):
            tables = ("--tables", str(root / _VERSION)) if run is points else ()
            quiet("evaluate", "--detector", str(run), "--submission", str(run / "files"), "--device=cpu", *tables)
        network = (boxes / "files" / "nuscenes" / "results.json", points / "files" / "panoptic_nuscenes")
        near = write_submission(folder / "near", "nuscenes", near_the_truth(manifest, _SPLIT, rng), manifest, _KINDS)
        points_near_the_truth(manifest, _SPLIT, root / _VERSION, folder / "near", rng)
        rows, of_points = [], []
        for name, (file, panoptic) in {"networks": network, "truth with errors": (near, folder / "near")}.items():
            said = by_kit(options.devkit, root, _SPLIT, file, panoptic)
            rows.append(boxes_row(name, said["detections"], root, _SPLIT, file))
            of_points.append(points_row(name, said["panoptic"], root, _SPLIT, panoptic))
        if options.nuscenes is not None:
            quiet("prepare", "nuscenes", str(options.nuscenes), str(folder / "real"), "--workers=1", "--no-superpixels")
            real = load_manifest(str(folder / "real"))
            (split,) = {*real.splits}
            file = write_submission(folder / "found", "nuscenes", near_the_truth(real, split, rng), real, _KINDS)
            whole = with_a_map(options.nuscenes, folder / "tables")
            said = by_kit(options.devkit, whole, split, file)
            rows.append(boxes_row("real frame, truth with errors", said["detections"], whole, split, file))
    header = ("found by", "samples, true and found objects that count", "the kit's figures, %", "largest difference")
    print("\nDetections\n\n" + markdown(header, rows))
    print("\nPoints\n\n" + markdown((header[0], "samples", *header[2:]), of_points))


if __name__ == "__main__":
    main()
