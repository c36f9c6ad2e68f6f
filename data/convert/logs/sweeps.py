"""The cloud of a sample: the sweeps of all LiDARs of a vehicle in one frame at one time."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float32

from data.convert.intensity import scaled_intensity
from data.convert.logs.base import Cloud, LogSettings, Recording
from data.convert.logs.clouds import read_cloud
from data.convert.logs.motion import Motion, Pose, moved
from data.convert.logs.pairing import ReadSettings, near
from data.convert.logs.window import Held, Window
from data.geometry import transform
from data.storage.damage import DamagedError

_SECOND_NS = 1_000_000_000


class SweepReader:
    """Reads the LiDARs of one recording."""

    def __init__(self, recording: Recording, topics: LogSettings, settings: ReadSettings) -> None:
        self._recording, self._topics, self._settings = recording, topics, settings

    def points(
        self, window: Window[Any], sweep: Held[Any], motion: Motion
    ) -> tuple[Float32[np.ndarray, "N 3"], Float32[np.ndarray, " N"], Float32[np.ndarray, " N"] | None]:
        """Of all LiDARs, in the first one's frame at the sweep's stamp; intensities; seconds before the stamp."""
        first = self._cloud(sweep)
        clouds = [(first, sweep.stamp_ns)]
        for topic in self._topics.lidars[1:]:
            other = self._near(topic, window, sweep)
            clouds.append((self._cloud(other), other.stamp_ns))
        points, intensity, times_s = [], [], []
        for number, (cloud, stamp_ns) in enumerate(clouds):
            topic = self._topics.lidars[number]
            points.append(self._in_first(topic, cloud, stamp_ns, first.frame, sweep.stamp_ns, motion, number == 0))
            intensity.append(self._intensity(topic, cloud))
            if self._settings.keep_times:
                before_ns = sweep.stamp_ns - stamp_ns - self._times(topic, cloud)
                times_s.append((before_ns / _SECOND_NS).astype(np.float32))
        times = np.concatenate(times_s) if times_s else None
        return np.concatenate(points), np.concatenate(intensity), times

    def _cloud(self, held: Held[Any]) -> Cloud:
        topic = self._recording.topics[held.topic]
        times = self._settings.deskew or self._settings.keep_times
        return read_cloud(topic, held.content, times=times)

    def _times(self, topic: str, cloud: Cloud) -> Any:
        if cloud.time_ns is None:
            detail = f"{topic}: its points have no time of their own, which deskew=true and keep_times=true need"
            raise DamagedError("array-broken", detail)
        return cloud.time_ns

    def _in_first(
        self, topic: str, cloud: Cloud, stamp_ns: int, frame: str, reference_ns: int, motion: Motion, is_first: bool
    ) -> Float32[np.ndarray, "N 3"]:
        if is_first and not self._settings.deskew:
            return cloud.points
        T_first_world = np.linalg.inv(motion.sensor_at(frame, reference_ns))

        def to_first(time_ns: int) -> Pose:
            return np.asarray(T_first_world @ motion.sensor_at(cloud.frame, time_ns))

        if self._settings.deskew:
            return moved(cloud.points, stamp_ns + self._times(topic, cloud), to_first, topic)
        return transform(to_first(stamp_ns), cloud.points).astype(np.float32)

    def _intensity(self, topic: str, cloud: Cloud) -> Float32[np.ndarray, " N"]:
        maximum = self._settings.intensity_max
        if maximum is None:
            return np.zeros(len(cloud.points), dtype=np.float32)
        if cloud.intensity is None:
            remedy = "intensity_max=null makes it 0 everywhere (train with data.voxel.features=occupancy)"
            raise DamagedError("array-broken", f"{topic}: its points have no intensity; {remedy}")
        remedy = "intensity_max=N is the raw value that becomes 1, null for a sensor that measures none"
        return scaled_intensity(cloud.intensity, maximum, topic, remedy)

    def _near(self, topic: str, window: Window[Any], sweep: Held[Any]) -> Held[Any]:
        gap_ms = self._settings.max_lidar_gap_ms
        return near(topic, window, sweep, self._settings, max_gap_ms=gap_ms, what="sweep", setting="max_lidar_gap_ms")
