"""Settings of the street world; ranges are checked when a config is made."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from common.ranges import above, at_least, at_most, below, between, different, expect, one_of


@dataclass(frozen=True, kw_only=True)
class StreetLidarConfig:
    """The spinning LiDAR.

    Attributes:
        beams: number of elevations, evenly spaced.
        azimuths: firings a turn.
        elevation_min_deg: lowest beam.
        elevation_max_deg: highest beam.
        max_range_m: returns from farther away are lost.
        min_range_m: returns from nearer are lost.
        range_noise_m: standard deviation of the range.
        dropout: share of returns lost at random, at zero range; more are lost far away and where little comes back.
        intensity_noise: standard deviation of the intensity, which lies in 0..1.
        sweep_duration_s: time of one turn; the sweep's stamp is the middle of it, when the beam points forward.
        sweep_motion: "none": the whole sweep is taken at its stamp. "compensated": ego and actors move while the
            sensor turns and the points are moved into the sensor's frame at the stamp (the ego's motion is known,
            the actors' is not). "raw": each point stays in the sensor's frame at its own firing.
        mount_m: position in the ego frame (its origin is on the ground below the vehicle's centre).
        mount_rpy_deg: roll, pitch, yaw of the sensor in the ego frame.
    """

    beams: int = 32
    azimuths: int = 720
    elevation_min_deg: float = -24.0
    elevation_max_deg: float = 10.0
    max_range_m: float = 70.0
    min_range_m: float = 1.0
    range_noise_m: float = 0.02
    dropout: float = 0.05
    intensity_noise: float = 0.04
    sweep_duration_s: float = 0.1
    sweep_motion: Literal["none", "compensated", "raw"] = "none"
    mount_m: tuple[float, float, float] = (0.3, 0.0, 1.84)
    mount_rpy_deg: tuple[float, float, float] = (0.4, -0.6, 0.8)

    def __post_init__(self) -> None:
        between(self, beams=(1, 256), azimuths=(8, 8192), range_noise_m=(0, 1), intensity_noise=(0, 1))
        above(self, elevation_min_deg=-89, sweep_duration_s=0)
        above(self, "elevation_min_deg", elevation_max_deg=self.elevation_min_deg)
        above(self, "min_range_m", max_range_m=self.min_range_m)
        at_least(self, min_range_m=0, dropout=0)
        below(self, elevation_min_deg=89, elevation_max_deg=89, min_range_m=20, dropout=1)
        at_most(self, max_range_m=200, sweep_duration_s=1)
        one_of(self, sweep_motion=("none", "compensated", "raw"))


@dataclass(frozen=True, kw_only=True)
class StreetCameraConfig:
    """The pinhole cameras; the tuples have one entry a camera.

    Attributes:
        names: sensor names: letters, digits, underscores.
        image_size: height, width in pixels, the same for all.
        horizontal_fov_deg: opening angle over the image's width.
        yaws_deg: viewing direction in the ego frame, counter-clockwise from forward.
        pitch_deg: positive looks down.
        mounts_m: positions in the ego frame.
        time_offsets_s: exposure relative to the sweep's stamp.
        noise: standard deviation of the sensor noise, in 8-bit grey levels.
        labels: store the class of each pixel; False gives the bytes of sets from before there were any.
    """

    names: tuple[str, ...] = ("front_left", "front", "front_right")
    image_size: tuple[int, int] = (160, 320)
    horizontal_fov_deg: float = 66.0
    yaws_deg: tuple[float, ...] = (60.0, 0.0, -60.0)
    pitch_deg: float = 4.0
    mounts_m: tuple[tuple[float, float, float], ...] = ((0.9, 0.35, 1.62), (1.1, 0.0, 1.65), (0.9, -0.35, 1.62))
    time_offsets_s: tuple[float, ...] = (-0.018, 0.004, 0.021)
    noise: float = 2.0
    labels: bool = True

    def __post_init__(self) -> None:
        between(self, image_size=(8, 4096), horizontal_fov_deg=(5, 150), pitch_deg=(-45, 45), noise=(0, 64))
        names_ok = all(name.replace("_", "").isalnum() and name.isascii() for name in self.names)
        expect(self, "names", names_ok, "names of letters, digits, underscores")
        different(self, "names")
        for listed in ("yaws_deg", "mounts_m", "time_offsets_s"):
            expect(self, listed, len(getattr(self, listed)) == len(self.names), f"{len(self.names)} entries, as names")
        between(self, time_offsets_s=(-0.5, 0.5))

    @property
    def boxes_camera(self) -> int | None:
        """Number of the camera that 2D boxes are in: the one that looks ahead most; None where there is none."""
        return min(range(len(self.names)), key=lambda n: abs(math.remainder(self.yaws_deg[n], 360)), default=None)


@dataclass(frozen=True, kw_only=True)
class StreetConfig:
    """A set of logs of the street world; everything in a log is a function of (this config, log index).

    Attributes:
        seed: of the whole set.
        num_logs: logs in the set; each is a world of its own.
        frames_per_log: samples in a log.
        frame_rate_hz: samples a second of world time.
        val_share: share of the logs that are in "val", spread evenly over the log indices.
        density: scales how many pedestrians, cyclists, vehicles, trees, poles and signs there are.
        view_range_m: the world's length behind and ahead of the ego.
        lidar: the LiDAR.
        cameras: the cameras.
    """

    seed: int = 0
    num_logs: int = 60
    frames_per_log: int = 6
    frame_rate_hz: float = 2.0
    val_share: float = 0.2
    density: float = 1.0
    view_range_m: float = 110.0
    lidar: StreetLidarConfig = field(default_factory=StreetLidarConfig)
    cameras: StreetCameraConfig = field(default_factory=StreetCameraConfig)

    def __post_init__(self) -> None:
        between(self, seed=(0, 2**63 - 1), num_logs=(1, 1_000_000), frames_per_log=(1, 10_000))
        between(self, frame_rate_hz=(0.1, 100), val_share=(0, 1), density=(0, 3), view_range_m=(40, 400))

    @property
    def duration_s(self) -> float:
        """World time from the first to the last sample of a log."""
        return (self.frames_per_log - 1) / self.frame_rate_hz

    def log_name(self, log_index: int) -> str:
        """Name of a log, for example street-000012.

        Raises:
            ValueError: if there is no such log.
        """
        if not 0 <= log_index < self.num_logs:
            raise ValueError(f"log_index: got {log_index}, expected 0 to {self.num_logs - 1}")
        return f"street-{log_index:06d}"

    def split_of_index(self, log_index: int) -> str:
        """The split of a log, "train" or "val": the split rule of the set.

        Raises:
            ValueError: if there is no such log.
        """
        self.log_name(log_index)
        # The running count of val logs steps up exactly at the val logs; 1e-9 guards against 0.2 * 5 < 1.
        before = math.floor(log_index * self.val_share + 1e-9)
        return "val" if math.floor((log_index + 1) * self.val_share + 1e-9) > before else "train"
