"""Classes and objects of points in the files that panoptic benchmarks take, written and read.

SemanticKITTI: ``sequences/NN/predictions/NNNNNN.label``, a 32-bit word a point, its low half the class's word, its high
half the object; the truth is in ``labels`` in place of ``predictions``. nuScenes: ``panoptic/SPLIT/TOKEN_panoptic.npz``
by the sweep's token, 1000 * class + object a point, classes from 1 on; the truth has categories in place of classes.

Sources: semantic-kitti-api (its README and `config/semantic-kitti.yaml`); nuscenes-devkit 1.2.0 (released code),
`eval/panoptic`.
"""

from __future__ import annotations

import json
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from common.files import replace_file
from configs.load import ArgumentError
from data.convert.kitti.semantickitti import CLASS_WORDS, IGNORED_WORDS
from data.convert.kitti.sequences import class_table
from data.convert.nuscenes.names import CATEGORIES, CLASS_OF, CLASSES
from data.convert.nuscenes.tables import read_columns
from data.loading.segment_frames import PointTruth
from data.sample import IGNORE_LABEL
from engine.scores import Scores
from engine.segmentation.frames import SegmentNames
from engine.segmentation.panoptic import NUSCENES, SEMANTICKITTI, PanopticRules, count_segments, score_panoptic
from launchers.evaluation.segments import FoundSegments

_OBJECTS = 1000
"""Of a class, in nuScenes' numbers."""
_WORDS = {name: words[0] for name, words in CLASS_WORDS.items()} | {"other-vehicle": 20}
"""The word that SemanticKITTI's files of predictions have for each class."""

KITTI_NAMES = SegmentNames(classes=tuple(CLASS_WORDS), things=tuple(CLASS_WORDS)[:8], dataset="semantickitti")
NUSCENES_NAMES = SegmentNames(classes=tuple(CLASSES), things=tuple(CLASSES)[:10], dataset="nuscenes")


class SegmentFiles(ABC):
    """Writes frames as a benchmark takes them."""

    @abstractmethod
    def write(self, truth: PointTruth, found: FoundSegments) -> None:
        """One frame.

        Raises:
            ArgumentError: the benchmark cannot name it, or takes no such frame.
        """

    @abstractmethod
    def finish(self) -> None:
        """What belongs beside the frames, which have been written."""


@dataclass(frozen=True, kw_only=True)
class KittiFiles(SegmentFiles):
    """SemanticKITTI's, in a folder, of a network's classes."""

    folder: Path
    names: SegmentNames

    def write(self, truth: PointTruth, found: FoundSegments) -> None:
        """See `SegmentFiles`."""
        log, _, frame = truth.frame.key.rpartition("_")
        path = self.folder / "sequences" / log / "predictions" / f"{frame}.label"
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, kitti_words(found, self.names).astype("<u4").tobytes(), durable=False)

    def finish(self) -> None:
        """See `SegmentFiles`: nothing."""


@dataclass(frozen=True, kw_only=True)
class NuScenesFiles(SegmentFiles):
    """NuScenes', in a folder, of a network's classes.

    Attributes:
        split: of the frames, by its name there.
        tokens: token of a sample -> token of its LiDAR sweep, which files are named by.
        pretrained: whether the network began with weights from elsewhere.
    """

    folder: Path
    names: SegmentNames
    split: str
    tokens: Mapping[str, str]
    pretrained: bool

    def write(self, truth: PointTruth, found: FoundSegments) -> None:
        """See `SegmentFiles`; sweeps between the samples, which have no labels, are left out."""
        if truth.gathered:
            raise ArgumentError(
                f"--submission: frame {truth.frame.key} is a cloud of several sweeps, whose points are not those of "
                "the benchmark's file; prepare the set with num_sweeps=1"
            )
        if truth.frame.token is None:
            return
        token = self.tokens.get(truth.frame.token)
        if token is None:
            raise ArgumentError(f"--submission: sample {truth.frame.token} is not in the tables; expected this set's")
        path = self.folder / "panoptic" / self.split / f"{token}_panoptic.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            np.savez_compressed(file, data=nuscenes_numbers(found, self.names).astype(np.uint16))

    def finish(self) -> None:
        """See `SegmentFiles`: what was used."""
        uses = {f"use_{name}": name == "lidar" for name in ("camera", "lidar", "radar", "map")}
        meta = {"meta": {"task": "segmentation", **uses, "use_external": self.pretrained}}
        folder = self.folder / self.split
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(folder / "submission.json", (json.dumps(meta, indent=1) + "\n").encode())


def kitti_words(found: FoundSegments, names: SegmentNames) -> Int64[np.ndarray, " N"]:
    """SemanticKITTI's label of each point: the word of its class, never a moving one, and its object, 0 for none."""
    words = np.array([_WORDS[name] for name in names.classes] + [0])
    objects = np.where(np.append(names.is_thing, np.False_)[found.found_class], found.found_object + 1, 0)
    if objects.max(initial=0) >= 1 << 16:
        raise ArgumentError(f"--submission: {objects.max()} objects in a frame, SemanticKITTI's files hold 65535")
    return np.asarray(words[found.found_class] | (objects << 16))


def nuscenes_numbers(found: FoundSegments, names: SegmentNames) -> Int64[np.ndarray, " N"]:
    """NuScenes' label of each point: 1000 * its class, from 1 on, plus its object among those of its class.

    The objects of most points are numbered from 1; any beyond 999 share the number 0, which stuff has.
    """
    classes = np.array([NUSCENES_NAMES.classes.index(name) + 1 for name in names.classes] + [0])
    numbers = np.zeros(len(found.found_class), dtype=np.int64)
    for kind in np.flatnonzero(names.is_thing):
        rows = np.flatnonzero((found.found_class == kind) & (found.found_object >= 0))
        _, of_row, sizes = np.unique(found.found_object[rows], return_inverse=True, return_counts=True)
        rank = np.empty(len(sizes), dtype=np.int64)
        rank[np.argsort(-sizes, kind="stable")] = np.arange(1, len(sizes) + 1)
        numbers[rows] = np.where(rank < _OBJECTS, rank, 0)[of_row.reshape(-1)]
    return np.asarray(classes[found.found_class] * _OBJECTS + numbers)


def files_of(
    benchmark: str, folder: Path, names: SegmentNames, *, split: str, tables: Path | None, pretrained: bool
) -> SegmentFiles:
    """What writes a benchmark's files.

    Args:
        benchmark: that they are for.
        folder: made when the first frame is written.
        names: the network's.
        split: of the frames.
        tables: folder of nuScenes' tables, which know the sweeps' tokens.
        pretrained: whether the network began with weights from elsewhere.

    Raises:
        ArgumentError: the benchmark has no such files here, or not these classes; or nuScenes' tables are not given.
        ShardError: the tables cannot be read.
    """
    known = {"panoptic_semantickitti": KITTI_NAMES, "panoptic_nuscenes": NUSCENES_NAMES}
    if benchmark not in known:
        raise ArgumentError(f"--submission: no files of {benchmark} can be written here, only of {', '.join(known)}")
    strange = sorted(set(names.classes) - set(known[benchmark].classes))
    if strange:
        raise ArgumentError(f"--submission: {benchmark} has no class {strange[0]!r}, which the network tells apart")
    if benchmark == "panoptic_semantickitti":
        return KittiFiles(folder=folder, names=names)
    if tables is None:
        raise ArgumentError(
            "--submission: nuScenes names files by the token of the sweep, which its tables know: add "
            "--tables /data/nuscenes/v1.0-trainval"
        )
    return NuScenesFiles(folder=folder, names=names, split=split, tokens=sweep_tokens(tables), pretrained=pretrained)


def sweep_tokens(tables: Path) -> dict[str, str]:
    """Of each sample, the token of its LiDAR sweep.

    Raises:
        ShardError: the tables cannot be read.
    """
    columns = ("token", "sample_token", "is_key_frame", "filename")
    rows = (row for block in read_columns(tables, "sample_data", *columns) for row in zip(*block, strict=True))
    return {sample: token for token, sample, key, file in rows if key and "/LIDAR_TOP/" in file}


# ---- from files


def score_kitti_files(
    predictions: Path, ground_truth: Path, keys: Sequence[str] | None = None, *, by_word: bool = False
) -> Scores:
    """SemanticKITTI's panoptic quality of label files.

    Args:
        predictions: folder with `sequences`; those of its sequences count.
        ground_truth: folder with `sequences`, or with `dataset/sequences`.
        keys: frames that count, "08_000123"; None: all of the truth.
        by_word: whole words tell segments apart, as in the official script: road and its lane markings are two.

    Raises:
        ArgumentError: a file is missing or malformed.
    """
    table = class_table(CLASS_WORDS, IGNORED_WORDS)
    sequences = [path.name for path in sorted((predictions / "sequences").glob("*")) if path.is_dir()]
    inside = ground_truth / "dataset" if (ground_truth / "dataset").is_dir() else ground_truth
    frames = [
        (f"{name}_{path.stem}", path, predictions / "sequences" / name / "predictions" / path.name)
        for name in sequences
        for path in sorted((inside / "sequences" / name / "labels").glob("*.label"))
    ]

    def read(path: Path) -> _Labels:
        words = _words(path)
        classes = table[words & 0xFFFF].astype(np.int64)
        classes[(classes == IGNORE_LABEL) | (classes < 0)] = -1
        objects = words if by_word else np.where(classes < len(KITTI_NAMES.things), words >> 16, -1)
        return classes, objects

    return _score(frames, keys, read, read, KITTI_NAMES, SEMANTICKITTI, f"no labels in {inside / 'sequences'}")


def score_nuscenes_files(predictions: Path, ground_truth: Path, keys: Sequence[str] | None = None) -> Scores:
    """NuScenes' panoptic quality of its files.

    Args:
        predictions: folder of `TOKEN_panoptic.npz`; its frames count.
        ground_truth: the same, of the labels.
        keys: tokens of the sweeps that count; None: all predictions.

    Raises:
        ArgumentError: a file is missing or malformed.
    """
    of_category = np.array([CLASS_OF.get(name, -1) for name in CATEGORIES])

    def numbers(path: Path, highest: int) -> Int64[np.ndarray, " N"]:
        try:
            with np.load(path, allow_pickle=False) as archive:
                values = archive["data"].astype(np.int64).reshape(-1)
        except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise ArgumentError(f"{path}: cannot be read as nuScenes' panoptic labels: {error}") from error
        if values.size and not 0 <= int(values.min()) <= int(values.max()) < highest * _OBJECTS:
            raise ArgumentError(f"{path}: labels from {values.min()} to {values.max()}, expected below {highest}000")
        return np.asarray(values)

    def read_true(path: Path) -> _Labels:
        values = numbers(path, len(CATEGORIES))
        return of_category[values // _OBJECTS], values

    def read_found(path: Path) -> _Labels:
        values = numbers(path, len(CLASSES) + 1)
        return values // _OBJECTS - 1, values

    frames = [
        (path.name.removesuffix("_panoptic.npz"), ground_truth / path.name, path)
        for path in sorted(predictions.glob("*_panoptic.npz"))
    ]
    return _score(frames, keys, read_true, read_found, NUSCENES_NAMES, NUSCENES, f"no *_panoptic.npz in {predictions}")


_Labels = tuple[Int64[np.ndarray, " N"], Int64[np.ndarray, " N"]]
"""Class of each point, -1 for none, and the number that tells its segment apart."""


def _score(
    frames: Iterable[tuple[str, Path, Path]],
    keys: Sequence[str] | None,
    read_true: Callable[[Path], _Labels],
    read_found: Callable[[Path], _Labels],
    names: SegmentNames,
    rules: PanopticRules,
    nothing: str,
) -> Scores:
    known = {key: (true, found) for key, true, found in frames}
    if not known:
        raise ArgumentError(nothing)
    missing = sorted(set(keys or ()) - set(known))
    if missing:
        raise ArgumentError(f"frame {missing[0]} of the list is not there")
    kept = {}
    for key in known if keys is None else keys:
        true, found = known[key]
        (true_class, true_id), (found_class, found_id) = read_true(true), read_found(found)
        if len(true_class) != len(found_class):
            raise ArgumentError(f"{found}: {len(found_class)} points, {true} has {len(true_class)}")
        kept[key] = count_segments(
            true_class,
            true_id,
            found_class,
            found_id,
            num_classes=len(names.classes),
            min_points=rules.min_points,
            key=key,
        )
    return score_panoptic(kept, names, rules)


def _words(path: Path) -> Int64[np.ndarray, " N"]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ArgumentError(f"{path}: cannot be read ({error.strerror}); each frame needs a file") from error
    if len(content) % 4:
        raise ArgumentError(f"{path}: {len(content)} bytes, expected a 32-bit word for each point")
    return np.frombuffer(content, dtype="<u4").astype(np.int64)
