"""Where any frame of a recording is in any other one, at any time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation

from common.printable import listed
from data.convert.custom.pose_track import PoseTrack
from data.convert.logs.base import Transform
from data.storage.damage import DamagedError

MAX_GAP_MS = 1000.0
"""Neighbours in time further apart than this are not interpolated between, unless a caller says otherwise."""
_STILL = 1e-6
"""Entries of transforms of one pair of frames that differ by less: metres, radians."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Edge:
    """Where a frame is in its parent: a pose that holds always, or a track of them."""

    parent: str
    place: Float[np.ndarray, "4 4"] | PoseTrack


class TransformTree:
    """All frames of a recording: T(target, source) at any time.

    A frame whose transforms are all the same stands still in its parent, before the first and after the last of them,
    too: old publishers send static transforms again and again. Others are interpolated between neighbours in time
    (rotations spherically), never extrapolated. Times are kept to the microsecond.

    Attributes:
        notes: what had to be assumed, in words.
    """

    def __init__(self, transforms: Iterable[Transform], *, max_gap_ms: float = MAX_GAP_MS) -> None:
        """Take in all transforms of a recording, in any order.

        Args:
            transforms: of all topics; the same one may be there twice.
            max_gap_ms: neighbours further apart are not interpolated between.

        Raises:
            DamagedError: a frame has two parents, or is its own ancestor.
        """
        self.notes: list[str] = []
        self._max_gap_us = round(max_gap_ms * 1e3)
        by_child: dict[str, list[Transform]] = defaultdict(list)
        for transform in transforms:
            by_child[transform.child].append(transform)
        self._edges = {child: self._edge(child, stated) for child, stated in by_child.items()}
        self._check_loops()

    @property
    def frames(self) -> tuple[str, ...]:
        """Every frame, by name."""
        return tuple(sorted({*self._edges, *(edge.parent for edge in self._edges.values())}))

    def parent_of(self, frame: str) -> str | None:
        """The frame that another one is stated in; None for a root and for frames that are not there."""
        return self._edges[frame].parent if frame in self._edges else None

    def is_static(self, target: str, source: str) -> bool:
        """Whether two frames keep their places to each other: a camera and a LiDAR of one vehicle, as a rule.

        Raises:
            DamagedError: as `T`, but for times.
        """
        up_source, up_target = self._ways(target, source)
        return not any(isinstance(self._edges[frame].place, PoseTrack) for frame in (*up_source, *up_target))

    def T(self, target: str, source: str, time_ns: int) -> Float[np.ndarray, "4 4"]:  # noqa: N802
        """What maps points of the source frame to the target frame at a time.

        Raises:
            DamagedError: a frame is not there; the two are not connected; on the way between them the time is before
                the first or after the last transform, or in a gap.
        """
        up_source, up_target = self._ways(target, source)
        return np.asarray(np.linalg.inv(self._climb(up_target, time_ns)) @ self._climb(up_source, time_ns))

    def times_of(self, frame: str) -> tuple[int, int] | None:
        """First and last time at which a frame's place in its parent is known, in ns; None where it always is.

        Raises:
            DamagedError: the frame is not there, or a root.
        """
        if frame not in self._edges:
            raise DamagedError("calibration-missing", self._unknown(frame))
        place = self._edges[frame].place
        return (int(place.times_us[0]) * 1000, int(place.times_us[-1]) * 1000) if isinstance(place, PoseTrack) else None

    # ---- building
    def _edge(self, child: str, stated: list[Transform]) -> _Edge:
        parents = sorted({transform.parent for transform in stated})
        if len(parents) > 1:
            detail = f"frame {child} has {len(parents)} parents, {', '.join(parents)}"
            raise DamagedError("meta-broken", f"{detail}: leave out the topics of all but one (transforms, odometry)")
        first = stated[0].T_parent_child
        if all(np.abs(transform.T_parent_child - first).max() < _STILL for transform in stated):
            moving = sum(transform.stamp_ns is not None for transform in stated)
            if moving:
                self.notes.append(f"{parents[0]} -> {child} is the same in {moving} transforms: taken to hold always")
            return _Edge(parent=parents[0], place=first)
        always = [transform for transform in stated if transform.stamp_ns is None]
        if always and len(always) < len(stated):
            others = f"{len(stated) - len(always)} others that move"
            detail = f"frame {child} has {len(always)} transforms from {parents[0]} that hold always, and {others}"
            raise DamagedError("meta-broken", f"{detail}: leave out one of the topics")
        if always:
            detail = f"frame {child} has {len(always)} different transforms from {parents[0]} that hold always"
            raise DamagedError("meta-broken", f"{detail} (was the recording put together of two?)")
        return _Edge(parent=parents[0], place=self._track(parents[0], child, stated))

    def _track(self, parent: str, child: str, stated: list[Transform]) -> PoseTrack:
        """In order of time; one of several at the same time counts where they agree, none where they do not."""
        poses: dict[int, Float[np.ndarray, "4 4"]] = {}
        apart: set[int] = set()
        for transform in stated:
            time_us = round((transform.stamp_ns or 0) / 1000)
            known = poses.setdefault(time_us, transform.T_parent_child)
            if np.abs(known - transform.T_parent_child).max() > _STILL:
                apart.add(time_us)
        times = sorted(set(poses) - apart)
        if apart:
            detail = f"{parent} -> {child} has different transforms at {len(apart)} times, which are left out"
            self.notes.append(f"{detail}; the first at {min(apart) * 1000} ns")
        if not times:
            raise DamagedError("calibration-missing", f"{parent} -> {child}: {self.notes[-1]}")
        damage = {int(np.searchsorted(times, time)): f"different transforms at {time}" for time in sorted(apart)}
        return PoseTrack(
            times_us=np.array(times, dtype=np.int64),
            positions_m=np.stack([poses[time][:3, 3] for time in times]),
            quaternions=Rotation.from_matrix(np.stack([poses[time][:3, :3] for time in times])).as_quat(),
            max_gap_us=self._max_gap_us,
            damage=damage,
        )

    def _check_loops(self) -> None:
        sound: set[str] = set()
        for start in self._edges:
            way: list[str] = []
            frame = start
            while frame in self._edges and frame not in sound:
                way.append(frame)
                frame = self._edges[frame].parent
                if frame in way:
                    loop = [*way[way.index(frame) :], frame]
                    raise DamagedError("meta-broken", f"frames go round in a circle: {' -> '.join(reversed(loop))}")
            sound.update(way)

    # ---- answering
    def _ways(self, target: str, source: str) -> tuple[list[str], list[str]]:
        """The frames whose edges lead from the source and from the target up to the nearest frame above both."""
        known = self.frames
        for frame in (target, source):
            if frame not in known:
                raise DamagedError("calibration-missing", self._unknown(frame))
        up_source, up_target = self._above(source), self._above(target)
        shared = next((frame for frame in up_source if frame in up_target), None)
        if shared is None:
            roots = f"{source} hangs from {up_source[-1]}, {target} from {up_target[-1]}"
            raise DamagedError("calibration-missing", f"no transforms lead from {source} to {target}: {roots}")
        return up_source[: up_source.index(shared)], up_target[: up_target.index(shared)]

    def _above(self, frame: str) -> list[str]:
        way = [frame]
        while way[-1] in self._edges:
            way.append(self._edges[way[-1]].parent)
        return way

    def _climb(self, way: list[str], time_ns: int) -> Float[np.ndarray, "4 4"]:
        T = np.eye(4)
        for frame in way:
            place = self._edges[frame].place
            T = (self._moving(frame, place, time_ns) if isinstance(place, PoseTrack) else place) @ T
        return T

    def _moving(self, frame: str, track: PoseTrack, time_ns: int) -> Float[np.ndarray, "4 4"]:
        try:
            return track.at(round(time_ns / 1000))
        except DamagedError as error:
            raise DamagedError(error.reason, f"{self._edges[frame].parent} -> {frame}: {error.detail}") from error

    def _unknown(self, frame: str) -> str:
        return f"no transform has the frame {frame!r}; there are {listed(self.frames, 20) or 'none'}"
