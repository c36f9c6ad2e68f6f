"""Objects of other sweeps put into a sweep, with their points ("ground-truth sampling").

For each class in turn, some of its objects are taken from a database, those that would stand in another object are
dropped, and the rest are put where they stood in their own sweep. Points of the scene inside their boxes are removed.

Which objects a sweep gets is a function of (seed, epoch, sweep): the k-th sweep of the e-th epoch takes the
(e n + k)-th group of an endless row of permutations of the class's objects, n being the number of sweeps. So all
objects come equally often.

Source: Yan, Mao, Li, "SECOND: sparsely embedded convolutional detection", Sensors 2018, section 3.2.4; Team et al.,
OpenPCDet, released code, for the rules of collision. Deviations: OpenPCDet walks its permutation in the order in which
workers come, and a group at a permutation's end is short there.

Letters: K boxes, N points, C candidates.
"""

from __future__ import annotations

import dataclasses
import logging
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from common.boxes.overlap import bev_intersection
from common.nearby import nearest
from common.ranges import RangeError, at_least, expect
from data.batch_spec import GroundConfig
from data.order import SampleDraws, object_permutation
from data.sample import Sample
from data.storage.object_database import ObjectDatabase, ObjectTable, columns_of
from data.storage.shard import ShardError
from data.views.boxes import ViewBoxes, all_boxes, rows_inside
from data.views.ground import ground_mask

logger = logging.getLogger(__name__)

_PERMUTATIONS_KEPT = 64
_GROUND_WITHIN_M = 3.0
"""Ground points no farther than this from an object's centre say how high the ground is there."""


@dataclass(frozen=True, kw_only=True)
class ObjectSamplingConfig:
    """How many objects of which classes are put into a training sweep, and which ones may be.

    Attributes:
        counts: class -> number of its objects, in the order in which the classes are placed; {}: none are put in.
        fill_up: as many as `counts` says together with those that the sweep has itself; False: so many more.
        min_points: objects with fewer points are left out.
        unknown_difficulty: use objects whose difficulty is not known, of sets that state it.
        min_image_height_px: objects lower than this in their image are left out; 25 on KITTI, whose benchmark does.
        max_truncation: those outside of their image by a larger share; None: no limit. 0.5 on KITTI.
        max_occlusion: those of a higher level of occlusion; None: no limit. 2 on KITTI.
        ground: how the ground is found that objects are put onto; None: they keep their height, as they do in OpenPCDet
            but for KITTI, whose planes of the road are files that sets do not hold.
        epochs: the first epochs, in which objects are put in; None: in all. Papers end without for some epochs.
    """

    counts: dict[str, int] = field(default_factory=dict)
    fill_up: bool = True
    min_points: int = 5
    unknown_difficulty: bool = True
    min_image_height_px: float = 0.0
    max_truncation: float | None = None
    max_occlusion: int | None = None
    ground: GroundConfig | None = None
    epochs: int | None = None

    def __post_init__(self) -> None:
        expect(self, "counts", all(count >= 1 for count in self.counts.values()), "1 or more of each class")
        at_least(self, min_points=1, min_image_height_px=0, max_truncation=0, max_occlusion=0)
        at_least(self, "null: all", epochs=1)

    def usable(self, table: ObjectTable) -> Bool[np.ndarray, " K"]:
        """Which objects may be put into a sweep; what a limit is about must be known of them."""
        fits = table.num_points >= self.min_points
        if not self.unknown_difficulty:
            fits &= table.difficulties >= 0
        if self.min_image_height_px > 0:
            fits &= table.image_heights_px >= self.min_image_height_px  # false for NaN
        if self.max_truncation is not None:
            fits &= table.truncations <= self.max_truncation
        if self.max_occlusion is not None:
            fits &= (table.occlusions >= 0) & (table.occlusions <= self.max_occlusion)
        return fits


class ObjectSampler:
    """Puts objects of a database into sweeps; picklable.

    Attributes:
        database: objects, cut out of the sweeps in use.
    """

    def __init__(self, database: ObjectDatabase, names: Sequence[str], config: ObjectSamplingConfig) -> None:
        """Look up which objects may be used.

        Args:
            database: of the classes `names`.
            names: `BatchSpec.boxes`.
            config: how many, and which.

        Raises:
            RangeError: `config.counts` names a class that is not among `names`.
        """
        self.database = database
        self._config, self._names = config, tuple(names)
        self._counts = {}
        for name, count in config.counts.items():
            if name not in names:
                raise RangeError(
                    f"data.sampling.counts: got {name!r}, expected some of the detector's classes: {', '.join(names)}"
                    f"{nearest(name, names)}"
                )
            self._counts[names.index(name)] = count
        usable = config.usable(database.table)
        self._objects = {number: np.flatnonzero(usable & (database.table.classes == number)) for number in self._counts}
        self._permutations: OrderedDict[tuple[int, int, int], Int[np.ndarray, " k"]] = OrderedDict()

    def tell_lacking(self) -> None:
        """Warn of classes that are asked for and of which there is no object to put in."""
        lacking = [self._names[number] for number, objects in self._objects.items() if len(objects) == 0]
        if lacking:
            logger.warning(
                "data.sampling.counts: no %s is put in: the %d objects of the %d samples in use have none that "
                "data.sampling allows (min_points, difficulty, height in the image, truncation, occlusion). Use more "
                "labels (data.fraction), or looser limits",
                " and no ".join(lacking),
                len(self.database.table),
                len(self.database.samples),
            )

    def put_into(self, sample: Sample, boxes: ViewBoxes, index: int, draws: SampleDraws) -> tuple[Sample, ViewBoxes]:
        """The sweep with objects added: their points come first, their boxes last. Points have no classes any more.

        Args:
            sample: as recorded, with all its labelled boxes, of whatever class: nothing is put into any of them.
            boxes: those of the wanted classes.
            index: row of the sweep in the manifest.
            draws: its random numbers.

        Raises:
            ShardError: the sweep measures other things of a point than those that the objects were cut out of.
        """
        assert sample.boxes is not None
        groups = []
        for number, count in self._counts.items():
            present = int((boxes.classes == number).sum())
            wanted = max(count - present, 0) if self._config.fill_up else count
            groups.append(self._walk(number, count, index, draws)[:wanted])
        drawn = np.concatenate([*groups, np.zeros(0, dtype=np.int64)])
        free = _free(self.database.table.boxes[drawn], [len(group) for group in groups], all_boxes(sample.boxes))
        chosen = drawn[free]
        if len(chosen) == 0:
            return sample, boxes
        placed = self.database.table.boxes[chosen]
        if self._config.ground is not None:
            placed = _on_ground(placed, sample, self._config.ground, draws)
        added = ViewBoxes(
            boxes=placed,
            velocities_mps=self.database.table.velocities_mps[chosen],
            classes=self.database.table.classes[chosen],
        )
        return self._with_points(sample, chosen, placed), boxes.joined(added)

    def _walk(self, number: int, count: int, index: int, draws: SampleDraws) -> Int[np.ndarray, " k"]:
        """The group of a class's objects that is this sweep's; none occurs twice in it."""
        objects, samples = self._objects[number], self.database.samples
        count = min(count, len(objects))
        if count == 0:
            return objects[:0]
        start = count * (draws.epoch * len(samples) + int(np.searchsorted(samples, index)))
        passes = range(start // len(objects), (start + count - 1) // len(objects) + 1)
        orders = np.concatenate([self._permutation(draws.seed, number, nth) for nth in passes])
        places = orders[start - passes.start * len(objects) :][:count]
        # A group that spans two permutations may have an object twice.
        return np.asarray(objects[places[np.sort(np.unique(places, return_index=True)[1])]])

    def _permutation(self, seed: int, number: int, nth: int) -> Int[np.ndarray, " k"]:
        key = (seed, number, nth)
        if key not in self._permutations:
            while len(self._permutations) >= _PERMUTATIONS_KEPT:
                self._permutations.popitem(last=False)
            self._permutations[key] = object_permutation(seed, number, nth, len(self._objects[number]))
        self._permutations.move_to_end(key)
        return self._permutations[key]

    def _with_points(self, sample: Sample, chosen: Int[np.ndarray, " C"], placed: Float[np.ndarray, "C 7"]) -> Sample:
        sample = dataclasses.replace(sample, labels=None, instances=None)
        of_scene = sample.point_fields()
        if columns_of(of_scene) != self.database.columns:
            raise ShardError(
                f"{self.database.path}: its objects' points have {', '.join(self.database.columns)}, those of sample "
                f"{sample.key} {', '.join(columns_of(of_scene))}; delete that folder, and it is made again"
            )
        keep = np.ones(len(sample.points_lidar), dtype=bool)
        for rows in rows_inside(sample.points_lidar, placed):
            keep[rows] = False
        parts = [self.database.points(int(number)) for number in chosen]
        for part, box in zip(parts, placed, strict=True):
            part["points_lidar"] = (part["points_lidar"] + box[:3]).astype(np.float32)
        changed: dict[str, Any] = {
            name: np.concatenate([*(part[name] for part in parts), values[keep]]).astype(values.dtype)
            for name, values in of_scene.items()
        }
        return dataclasses.replace(sample, **changed)


def _free(
    candidates: Float[np.ndarray, "C 7"], groups: Sequence[int], standing: Float[np.ndarray, "K 7"]
) -> Bool[np.ndarray, " C"]:
    """Which candidates can be placed, group after group (`groups`: their sizes).

    Their footprints share no area with anything that stands, nor with any other candidate of their group, be it placed
    or not. What is placed of a group stands for the next one.
    """
    boxes = torch.from_numpy(np.concatenate((candidates, standing)))
    hit = (bev_intersection(boxes[: len(candidates)], boxes) > 0).numpy()
    np.fill_diagonal(hit, False)
    stands = np.arange(len(boxes)) >= len(candidates)
    start = 0
    for size in groups:
        group = np.zeros(len(boxes), dtype=bool)
        group[start : start + size] = True
        stands[start : start + size] = ~hit[start : start + size, stands | group].any(axis=1)
        start += size
    return np.asarray(stands[: len(candidates)])


def _on_ground(
    boxes: Float[np.ndarray, "C 7"], sample: Sample, config: GroundConfig, draws: SampleDraws
) -> Float[np.ndarray, "C 7"]:
    """The boxes with their bottoms on the scene's ground, where there are ground points near them."""
    ground = sample.points_lidar[ground_mask(sample.points_lidar, config, draws.ground())]
    x, y, z = (np.ascontiguousarray(ground[:, axis]) for axis in range(3))
    moved = boxes.copy()
    for box in moved:
        near = (np.abs(x - box[0]) <= _GROUND_WITHIN_M) & (np.abs(y - box[1]) <= _GROUND_WITHIN_M)
        if near.any():
            box[2] = float(np.median(z[near])) + box[5] / 2
    return np.asarray(moved)
