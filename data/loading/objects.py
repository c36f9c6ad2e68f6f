"""Makes the database of labelled objects of the sweeps that a run learns from, once for all processes and runs.

Only the sweeps in use are looked through: with few labels, no object of any other sweep is known to the run.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from common.file_lock import FileLock
from common.files import replacing
from data.batch_spec import BatchSpec
from data.loading.sequential import SequentialBatches
from data.order import SampleDraws
from data.sample import Batch, Boxes
from data.storage.object_database import (
    POINTS_FILE,
    TABLE_FILE,
    ObjectDatabase,
    ObjectTable,
    cloud_of,
    columns_of,
    database_key,
)
from data.storage.reader import SampleError, SampleReader
from data.storage.shard import ShardError
from data.storage.store import is_url
from data.views.boxes import all_boxes, class_numbers, rows_inside, wanted_boxes
from data.views.pairs import cut_to_cameras

logger = logging.getLogger(__name__)

_SWEEPS_AT_A_TIME = 8
_LOCK = "build.lock"
_POLL_S = 0.5
_TELL_EVERY_S = 60.0


@dataclass(frozen=True, kw_only=True)
class _SweepObjects:
    """Objects of one sweep that have points; and how many boxes of each class it has at all."""

    sample: int
    table: ObjectTable
    points: Float[np.ndarray, "N columns"]
    columns: tuple[str, ...]
    num_boxes: Int[np.ndarray, " C"]


@dataclass(frozen=True, kw_only=True)
class _Cuts(SequentialBatches[_SweepObjects]):
    """Cuts the objects out of sweeps (runs in the workers)."""

    classes: tuple[str, ...]
    cut_to_cameras: bool

    def read(self, index: int, draws: SampleDraws) -> _SweepObjects:
        sample = self.reader.read(index, images=False, superpixels=False)
        if sample.boxes is None:
            raise SampleError("no-boxes", sample.key, self.reader.shard_of(index), "nobody has labelled its objects")
        labelled = sample.boxes
        if self.cut_to_cameras:
            sample = cut_to_cameras(sample)
        numbers = class_numbers(self.reader.manifest, self.classes)
        wanted = np.flatnonzero(numbers[labelled.classes] >= 0)
        boxes = wanted_boxes(labelled, numbers)
        rows = rows_inside(sample.points_lidar, boxes.boxes)
        full = np.flatnonzero([len(part) > 0 for part in rows])
        fields = sample.point_fields()
        columns, cloud = columns_of(fields), cloud_of(fields)
        parts = [cloud[rows[number]] - np.pad(boxes.boxes[number, :3], (0, cloud.shape[1] - 3)) for number in full]
        return _SweepObjects(
            sample=index,
            table=_table(labelled, wanted[full], boxes.classes[full], index, [len(part) for part in parts]),
            points=np.concatenate([*parts, np.zeros((0, cloud.shape[1]))]).astype("<f4"),
            columns=columns,
            num_boxes=np.bincount(boxes.classes, minlength=len(self.classes)),
        )

    def collate(self, parts: Sequence[_SweepObjects]) -> Batch | None:
        return None

    def notes(self, parts: Sequence[_SweepObjects]) -> tuple[_SweepObjects, ...]:
        return tuple(parts)


def _table(
    boxes: Boxes, rows: Int[np.ndarray, " K"], classes: Int[np.ndarray, " K"], sample: int, num_points: Sequence[int]
) -> ObjectTable:
    """What is kept of some of a sweep's boxes."""
    nothing, unknown = np.full(len(rows), np.nan), np.full(len(rows), -1)
    image = boxes.image_boxes_px
    return ObjectTable(
        boxes=all_boxes(boxes)[rows],
        velocities_mps=boxes.velocities_mps[rows].astype(np.float64),
        classes=classes.astype(np.int64),
        samples=np.full(len(rows), sample),
        num_points=np.array(num_points, dtype=np.int64),
        difficulties=unknown if boxes.difficulties is None else boxes.difficulties[rows].astype(np.int64),
        truncations=nothing if boxes.truncations is None else boxes.truncations[rows].astype(np.float64),
        occlusions=unknown if boxes.occlusions is None else boxes.occlusions[rows].astype(np.int64),
        image_heights_px=nothing if image is None else (image[rows, 3] - image[rows, 1]).astype(np.float64),
    )


def open_objects(
    reader: SampleReader,
    samples: Int[np.ndarray, " n"],
    spec: BatchSpec,
    *,
    folder: str | None,
    cut_to_cameras: bool,
    num_workers: int,
    max_skip_share: float,
) -> ObjectDatabase:
    """The database of the boxes of `spec.boxes` in some sweeps; made if it is not there.

    Of several processes that want it, one makes it and the others wait; what it holds does not depend on which.

    Args:
        reader: of the set.
        samples: the sweeps in use.
        spec: names the classes.
        folder: where `objects/<key>` is kept; None: in the set's own folder.
        cut_to_cameras: see `ViewConfig`.
        num_workers: processes that read sweeps, where it has to be made.
        max_skip_share: of the sweeps, that may be damaged.

    Raises:
        ShardError: damaged samples or sweeps without labels beyond that share; or the folder cannot be read or written.
        ValueError: the set lies behind a URL and no folder is named.
    """
    manifest = reader.manifest
    if folder is None and is_url(manifest.root):
        raise ValueError(
            f"data.objects_folder: got null, expected a folder: objects are kept in files, which cannot lie in "
            f"{manifest.root}"
        )
    key = database_key(manifest, samples, spec.boxes, cut_to_cameras=cut_to_cameras)
    path = Path(folder or manifest.root) / "objects" / key
    cuts = _Cuts(
        reader=reader,
        indices=np.sort(samples),
        batch_size=_SWEEPS_AT_A_TIME,
        classes=spec.boxes,
        cut_to_cameras=cut_to_cameras,
    )
    told_at = 0.0
    while True:
        database = ObjectDatabase.open(path)
        if database is not None:
            return database
        try:
            path.mkdir(parents=True, exist_ok=True)
            with FileLock(path / _LOCK) as lock:
                if lock.take() and ObjectDatabase.open(path) is None:
                    _make(path, cuts, num_workers, max_skip_share)
                elif lock.holder and time.monotonic() - told_at >= _TELL_EVERY_S:
                    logger.info("waiting for the objects of %s: %s makes them", manifest.root, lock.holder)
                    told_at = time.monotonic()
        except OSError as error:
            raise ShardError(
                f"{path} cannot be written: {error}; set data.objects_folder to a folder that can"
            ) from error
        if not (path / TABLE_FILE).is_file():
            time.sleep(_POLL_S)


def _make(path: Path, cuts: _Cuts, num_workers: int, max_skip_share: float) -> None:
    began = time.monotonic()
    logger.info("cutting the objects out of %d sweeps into %s", len(cuts.indices), path)
    sweeps: list[_SweepObjects] = []
    with replacing(path / POINTS_FILE, durable=True) as temporary, temporary.open("wb") as file:
        for loaded in cuts.run_loaded(num_workers, max_skip_share):
            for sweep in loaded.notes:
                if sweeps and sweep.columns != sweeps[0].columns:
                    raise ShardError(
                        f"{cuts.reader.manifest.root}: points of sample {cuts.reader.manifest.key(sweep.sample)} have "
                        f"{', '.join(sweep.columns)}, those of others {', '.join(sweeps[0].columns)}; prepare it anew"
                    )
                file.write(sweep.points.tobytes())
                sweeps.append(dataclasses.replace(sweep, points=sweep.points[:0]))
    tables: dict[str, np.ndarray] = {
        name: np.concatenate([getattr(sweep.table, name) for sweep in sweeps])
        for name in ObjectTable.__dataclass_fields__
    }
    tables["columns"] = np.array([name.encode() for name in sweeps[0].columns])
    tables["scanned"] = np.array([sweep.sample for sweep in sweeps], dtype=np.int64)
    tables["num_boxes"] = np.stack([sweep.num_boxes for sweep in sweeps])
    with replacing(path / TABLE_FILE, durable=True) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **tables)
    logger.info("%d objects in %.0f s", len(tables["boxes"]), time.monotonic() - began)
