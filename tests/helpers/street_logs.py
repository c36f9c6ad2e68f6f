"""A few frames of the street world in memory: the matter that generators of official layouts write out."""

from __future__ import annotations

import functools
import itertools

from data.sample import Sample
from data.street.classes import CLASS_NAMES
from data.street.config import StreetCameraConfig, StreetConfig, StreetLidarConfig
from data.street.log import generate_log

__all__ = ["CLASS_NAMES", "street_log"]

RIG = {
    1: ((0.0,), ((1.1, 0.0, 1.65),)),
    2: ((0.0, 0.0), ((1.1, 0.27, 1.65), (1.1, -0.27, 1.65))),
    5: ((0.0, 45.0, -45.0, 90.0, -90.0), ((1.5, 0.0, 2.1),) * 5),
    6: ((0.0, 55.0, -55.0, 110.0, -110.0, 180.0), ((1.1, 0.0, 1.65),) * 6),
    7: ((0.0, 45.0, -45.0, 100.0, -100.0, 150.0, -150.0), ((1.1, 0.0, 1.65),) * 7),
}
"""Number of cameras -> their yaws in degrees and positions in the ego frame: the shapes of real rigs."""


@functools.lru_cache(maxsize=16)
def street_log(
    names: tuple[str, ...],
    *,
    frames: int = 3,
    log: int = 0,
    rate_hz: float = 2.0,
    image_size: tuple[int, int] = (96, 160),
    beams: int = 16,
    azimuths: int = 180,
) -> tuple[Sample, ...]:
    """Frames of one street, with labels, instances, boxes, ego poses and cameras at times of their own.

    Args:
        names: of the cameras; as many as one of `RIG`'s keys.
        frames: how many.
        log: which street.
        rate_hz: frames a second.
        image_size: height, width.
        beams: of the LiDAR.
        azimuths: of the LiDAR.
    """
    yaws, mounts = RIG[len(names)]
    world = StreetConfig(
        num_logs=log + 1,
        frames_per_log=frames,
        frame_rate_hz=rate_hz,
        view_range_m=60.0,
        lidar=StreetLidarConfig(beams=beams, azimuths=azimuths),
        cameras=StreetCameraConfig(
            names=names,
            image_size=image_size,
            yaws_deg=yaws,
            mounts_m=mounts,
            time_offsets_s=tuple(0.004 * number - 0.01 for number in range(len(names))),
        ),
    )
    return tuple(itertools.islice(generate_log(world, log), frames))
