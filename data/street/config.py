"""Settings of the street world; ranges are checked when a config is made."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal


def _require(ok: bool, name: str, value: object, expected: str) -> None:
    if not ok:
        raise ValueError(f"{name}: got {value!r}, expected {expected}")


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
        _require(1 <= self.beams <= 256, "lidar.beams", self.beams, "1 to 256")
        _require(8 <= self.azimuths <= 8192, "lidar.azimuths", self.azimuths, "8 to 8192")
        low, high = self.elevation_min_deg, self.elevation_max_deg
        _require(-89 < low < 89, "lidar.elevation_min_deg", low, "-89 to 89")
        _require(low < high < 89, "lidar.elevation_max_deg", high, f"more than elevation_min_deg {low}, below 89")
        _require(0 <= self.min_range_m < 20, "lidar.min_range_m", self.min_range_m, "0 to 20")
        _require(
            self.min_range_m < self.max_range_m <= 200, "lidar.max_range_m", self.max_range_m, "min_range_m to 200"
        )
        _require(0 <= self.range_noise_m <= 1, "lidar.range_noise_m", self.range_noise_m, "0 to 1")
        _require(0 <= self.dropout < 1, "lidar.dropout", self.dropout, "0 to 1, 1 excluded")
        _require(0 <= self.intensity_noise <= 1, "lidar.intensity_noise", self.intensity_noise, "0 to 1")
        _require(0 < self.sweep_duration_s <= 1, "lidar.sweep_duration_s", self.sweep_duration_s, "above 0, to 1")
        motions = ("none", "compensated", "raw")
        _require(self.sweep_motion in motions, "lidar.sweep_motion", self.sweep_motion, f"one of {motions}")


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
        height, width = self.image_size
        _require(8 <= height <= 4096 and 8 <= width <= 4096, "cameras.image_size", self.image_size, "8 to 4096 each")
        fov = self.horizontal_fov_deg
        _require(5 <= fov <= 150, "cameras.horizontal_fov_deg", fov, "5 to 150")
        _require(abs(self.pitch_deg) <= 45, "cameras.pitch_deg", self.pitch_deg, "-45 to 45")
        _require(0 <= self.noise <= 64, "cameras.noise", self.noise, "0 to 64")
        names_ok = all(name.replace("_", "").isalnum() and name.isascii() for name in self.names)
        unique = len(set(self.names)) == len(self.names)
        _require(names_ok and unique, "cameras.names", self.names, "different names of letters, digits, underscores")
        for name in ("yaws_deg", "mounts_m", "time_offsets_s"):
            value = getattr(self, name)
            _require(len(value) == len(self.names), f"cameras.{name}", value, f"{len(self.names)} entries, as names")
        offsets_ok = all(abs(offset) <= 0.5 for offset in self.time_offsets_s)
        _require(offsets_ok, "cameras.time_offsets_s", self.time_offsets_s, "-0.5 to 0.5 each")


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
        _require(0 <= self.seed < 2**63, "seed", self.seed, "0 to 2**63 - 1")
        _require(1 <= self.num_logs <= 1_000_000, "num_logs", self.num_logs, "1 to 1000000")
        _require(1 <= self.frames_per_log <= 10_000, "frames_per_log", self.frames_per_log, "1 to 10000")
        _require(0.1 <= self.frame_rate_hz <= 100, "frame_rate_hz", self.frame_rate_hz, "0.1 to 100")
        _require(0 <= self.val_share <= 1, "val_share", self.val_share, "0 to 1")
        _require(0 <= self.density <= 3, "density", self.density, "0 to 3")
        _require(40 <= self.view_range_m <= 400, "view_range_m", self.view_range_m, "40 to 400")

    @property
    def duration_s(self) -> float:
        """World time from the first to the last sample of a log."""
        return (self.frames_per_log - 1) / self.frame_rate_hz

    def log_name(self, log_index: int) -> str:
        """Name of a log, for example street-000012.

        Raises:
            ValueError: if there is no such log.
        """
        _require(0 <= log_index < self.num_logs, "log_index", log_index, f"0 to {self.num_logs - 1}")
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
