"""Where the vehicle and its sensors are at any time of a part of a recording."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Float, Float32, Int, Int64

from data.convert.logs.base import Transform
from data.convert.logs.transform_tree import TransformTree
from data.geometry import rigid
from data.storage.damage import DamagedError

Pose = Float[np.ndarray, "4 4"]

_KNOT_NS = 2_500_000
"""Between two of these, points of a sweep move evenly: turning by 60 degrees/s, 80 m away, that is right to 0.1 mm."""
_LONGEST_SWEEP_NS = 2_000_000_000


class Motion:
    """Poses of the vehicle, and places of the sensors on it.

    Attributes:
        tree: of the transforms; what holds always, and what moves.
    """

    def __init__(
        self,
        transforms: Iterable[Transform],
        odometry: Iterable[Transform],
        *,
        ego_frame: str,
        world_frame: str,
        max_gap_ms: float,
        origin_m: Float[np.ndarray, " 3"] | None = None,
        places: Mapping[str, Pose] | None = None,
    ) -> None:
        """Of transforms that hold always, and of those that were written about the time that is asked for.

        Args:
            transforms: of the transform topics.
            odometry: of the odometry topic; none where the transforms have the vehicle's pose.
            ego_frame: of the vehicle.
            world_frame: of the transforms, that stands still; "" without one. Odometry has its own.
            max_gap_ms: poses further apart are not interpolated between.
            origin_m: what the world's origin is moved to.
            places: sensor's frame -> T_ego_sensor, stronger than the transforms.

        Raises:
            DamagedError: the transforms contradict each other.
        """
        transforms, odometry = list(transforms), list(odometry)
        self._ego, self._world = ego_frame, world_frame
        self._places = dict(places or {})
        self._max_gap_ns = round(max_gap_ms * 1e6)
        self._origin = np.zeros(3) if origin_m is None else origin_m
        self.tree = TransformTree(transforms, max_gap_ms=max_gap_ms)
        self._stamps = _stamps(transforms)
        self._track = TransformTree(odometry, max_gap_ms=max_gap_ms) if odometry else None
        self._track_frames = (odometry[0].parent, odometry[0].child) if odometry else ("", "")
        self._track_stamps = _stamps(odometry)

    def ego_at(self, time_ns: int) -> Pose:
        """T_world_ego.

        Raises:
            DamagedError: there is no pose before or after that time, or only one too far away.
        """
        if self._track is not None:
            world, child = self._track_frames
            self._covered(self._track_stamps, child, time_ns)
            T = self._track.T(world, child, time_ns)
            if child != self._ego:
                T = T @ self._between(child, self._ego, time_ns)
        elif self._world:
            T = self._between(self._world, self._ego, time_ns, moves=True)
        else:
            return np.eye(4)
        return rigid(T[:3, :3], T[:3, 3] - self._origin)

    def sensor(self, frame: str, time_ns: int) -> Pose:
        """T_ego_sensor of the frame of a sensor.

        Raises:
            DamagedError: no transforms lead there.
        """
        if frame in self._places:
            return self._places[frame]
        return self._between(self._ego, frame, time_ns)

    def sensor_at(self, frame: str, time_ns: int) -> Pose:
        """T_world_sensor; errors as of the two it is made of."""
        return np.asarray(self.ego_at(time_ns) @ self.sensor(frame, time_ns))

    def _between(self, target: str, source: str, time_ns: int, *, moves: bool = False) -> Pose:
        if target == source:
            return np.eye(4)
        if moves:
            frame: str | None = source
            while frame is not None and frame != target:
                self._covered(self._stamps, frame, time_ns)
                frame = self.tree.parent_of(frame)
        try:
            return self.tree.T(target, source, time_ns)
        except DamagedError as error:
            remedy = "see `tandem inspect` of the recording; name other frames or topics in the topics file"
            raise DamagedError(error.reason, f"{error.detail} ({remedy}, or give calibration=FILE.json)") from error

    def _covered(self, stamps: Mapping[str, Int64[np.ndarray, " n"]], child: str, time_ns: int) -> None:
        """Refuse a time without poses around it: one that is seen once would pass for one that holds always."""
        if child not in stamps:
            return
        of_child = stamps[child]
        right = int(np.searchsorted(of_child, time_ns))
        if right < len(of_child) and of_child[right] == time_ns:
            return
        allowed = f"allowed are {self._max_gap_ns / 1e6:g} ms (max_pose_gap_ms)"
        if right in (0, len(of_child)):
            near = int(of_child[0] if right == 0 else of_child[-1])
            way = "before the first" if right == 0 else "after the last"
            detail = f"no pose of {child} at {time_ns} ns: it is {abs(near - time_ns) / 1e6:.0f} ms {way} one nearby"
            raise DamagedError("calibration-missing", detail)
        gap = int(of_child[right] - of_child[right - 1])
        if gap > self._max_gap_ns:
            detail = f"no pose of {child} at {time_ns} ns: its neighbours are {gap / 1e6:.0f} ms apart, {allowed}"
            raise DamagedError("calibration-missing", detail)


def on_the_way(transforms: Sequence[Transform], frames: Iterable[str]) -> list[Transform]:
    """The transforms that lead from some frames up to their roots: those of arms and wheels are none of a sensor's."""
    parents = {transform.child: transform.parent for transform in transforms}
    wanted: set[str] = set()
    for start in frames:
        frame = start
        while frame in parents and frame not in wanted:
            wanted.add(frame)
            frame = parents[frame]
    return [transform for transform in transforms if transform.child in wanted]


def _stamps(transforms: Iterable[Transform]) -> dict[str, Int64[np.ndarray, " n"]]:
    """Times of the poses of each frame that does not hold its place always."""
    found: dict[str, list[int]] = {}
    for transform in transforms:
        if transform.stamp_ns is not None:
            found.setdefault(transform.child, []).append(transform.stamp_ns)
    return {child: np.unique(np.array(stamps, dtype=np.int64)) for child, stamps in found.items()}


def moved(
    points: Float32[np.ndarray, "N 3"],
    times_ns: Int[np.ndarray, " N"],
    T_to_at: Callable[[int], Pose],
    where: str,
) -> Float32[np.ndarray, "N 3"]:
    """Points, each measured in a frame at a time of its own, in one frame.

    Args:
        points: metres.
        times_ns: of each.
        T_to_at: time -> what maps points measured then to the one frame.
        where: for messages.

    Raises:
        DamagedError: the times spread over more than a sweep can last; no pose at one of them.
    """
    if len(points) == 0:
        return points
    first, last = int(times_ns.min()), int(times_ns.max())
    if last - first > _LONGEST_SWEEP_NS:
        detail = f"{where}: times of points spread over {(last - first) / 1e9:.3g} s; is their unit another one?"
        raise DamagedError("points-range", f"{detail} (deskew=false leaves them out)")
    count = max(-(-(last - first) // _KNOT_NS), 1)
    knots = first + (np.arange(count + 1) * (last - first)) // count
    poses = np.stack([T_to_at(int(time)) for time in knots])
    if last == first:
        number, share = np.zeros(len(points), dtype=np.int64), np.zeros(len(points))
    else:
        number = np.clip(np.searchsorted(knots, times_ns, side="right") - 1, 0, count - 1)
        share = (times_ns - knots[number]) / np.diff(knots)[number]
    found = np.empty(points.shape, dtype=np.float32)
    order = np.argsort(number, kind="stable")
    ends = np.searchsorted(number[order], np.arange(count + 1))
    for knot in range(count):  # some hundred products of matrices; one for each point would be 30 times as slow
        rows = order[ends[knot] : ends[knot + 1]]
        if len(rows):
            part = points[rows].astype(np.float64)
            start, stop = (part @ poses[n, :3, :3].T + poses[n, :3, 3] for n in (knot, knot + 1))
            found[rows] = start + share[rows, None] * (stop - start)
    return found
