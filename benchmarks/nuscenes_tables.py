"""Seconds and peak memory of reading nuScenes' tables at full size, and what a worker's copy of them takes.

    python -m benchmarks.nuscenes_tables                    # v1.0-trainval: 2.6 million frames and poses
    python -m benchmarks.nuscenes_tables --scenes 10 --keep DIR

The tables are made up, with the published columns, number of rows and text lengths, in a temporary folder.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import pickle
import resource
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.common import markdown, seconds_of
from data.convert.nuscenes.converter import NuscenesConverter
from data.convert.nuscenes.names import CAMERAS

RADARS = ("RADAR_FRONT", "RADAR_FRONT_LEFT", "RADAR_FRONT_RIGHT", "RADAR_BACK_LEFT", "RADAR_BACK_RIGHT")
CHANNELS = ("LIDAR_TOP", *CAMERAS, *RADARS)
KEY_FRAMES = 40
"""Of a scene of 20 s."""
FRAMES = {"LIDAR_TOP": 396, **dict.fromkeys(CAMERAS, 234), **dict.fromkeys(RADARS, 258)}
"""Of a scene; with 850 scenes 2.6 million."""
OBJECTS, SEEN = 76, 18
"""Of a scene, and key frames that each is annotated in; 1.16 million annotations."""


def token(kind: int, number: int) -> str:
    """32 digits, scattered as those of the real tables."""
    return f"{(number * 0x9E3779B97F4A7C15F39CC0605CEDC835 + kind * 0x1234567) % (1 << 128):032x}"


def write_tables(folder: Path, scenes: int) -> int:
    """All tables, one value a line as the published ones are written; gives their bytes."""
    folder.mkdir(parents=True)
    for name, rows in _tables(scenes):
        with (folder / f"{name}.json").open("w") as file:
            file.write("[\n")
            for number, row in enumerate(rows):
                file.write((",\n" if number else "") + json.dumps(row, indent=0))
            file.write("\n]")
    return sum(path.stat().st_size for path in folder.iterdir())


def _tables(scenes: int) -> Iterator[tuple[str, Iterable[dict[str, Any]]]]:
    """Name and rows of each table."""
    rotation = [0.5720320374256816, -0.00169777685601556, 0.01179800196323108, -0.8201446658133225]
    place = [411.3039, 1180.8903, 0.0]
    K = [[1266.4, 0, 816.2], [0, 1266.4, 491.5], [0, 0, 1]]
    yield "sensor", ({"token": token(1, c), "channel": name} for c, name in enumerate(CHANNELS))
    yield "category", [{"token": token(2, 0), "name": "vehicle.car"}]
    yield "attribute", [{"token": token(3, 0), "name": "vehicle.parked"}]
    yield (
        "scene",
        ({"token": token(4, s), "name": f"scene-{s + 1:04d}", "description": "a street"} for s in range(scenes)),
    )
    fixed = {"translation": place, "rotation": rotation}
    yield (
        "calibrated_sensor",
        (
            {"token": token(5, s * 12 + c), "sensor_token": token(1, c)}
            | fixed
            | {"camera_intrinsic": K if "CAM" in name else []}
            for s in range(scenes)
            for c, name in enumerate(CHANNELS)
        ),
    )
    linked = {"prev": "", "next": ""}
    yield (
        "sample",
        (
            {"token": token(6, s * KEY_FRAMES + k), "timestamp": s * 10**8 + k * 500_000}
            | linked
            | {"scene_token": token(4, s)}
            for s in range(scenes)
            for k in range(KEY_FRAMES)
        ),
    )
    yield "sample_data", _frames(scenes)
    yield (
        "ego_pose",
        (
            {"token": token(7, n), "timestamp": n, "rotation": rotation, "translation": [n * 1e-4, *place[1:]]}
            for n in range(scenes * sum(FRAMES.values()))
        ),
    )
    ends = {"nbr_annotations": SEEN, "first_annotation_token": "", "last_annotation_token": ""}
    yield "instance", ({"token": token(8, n), "category_token": token(2, 0)} | ends for n in range(scenes * OBJECTS))
    yield "sample_annotation", _annotations(scenes)


def _frames(scenes: int) -> Iterable[dict[str, Any]]:
    number = 0
    for s in range(scenes):
        for c, name in enumerate(CHANNELS):
            for f in range(FRAMES[name]):
                share = f * KEY_FRAMES // FRAMES[name]
                key = f == 0 or share != (f - 1) * KEY_FRAMES // FRAMES[name]
                time_us = 1532402927647951 + s * 10**8 + f * 20_000_000 // FRAMES[name]
                kind, ending = ("samples" if key else "sweeps"), ("jpg" if "CAM" in name else "pcd.bin")
                yield {
                    "token": token(7, number),
                    "sample_token": token(6, s * KEY_FRAMES + share),
                    "ego_pose_token": token(7, number),
                    "calibrated_sensor_token": token(5, s * 12 + c),
                    "timestamp": time_us,
                    "fileformat": ending[:3],
                    "is_key_frame": key,
                    "height": 900,
                    "width": 1600,
                    "filename": f"{kind}/{name}/n015-2018-07-24-11-22-45+0800__{name}__{time_us}.{ending}",
                    "prev": token(7, number - 1),
                    "next": token(7, number + 1),
                }
                number += 1


def _annotations(scenes: int) -> Iterable[dict[str, Any]]:
    for n in range(scenes * OBJECTS * SEEN):
        thing, seen = divmod(n, SEEN)
        sample = thing // OBJECTS * KEY_FRAMES + thing % OBJECTS % (KEY_FRAMES - SEEN) + seen
        yield {
            "token": token(9, n),
            "sample_token": token(6, sample),
            "instance_token": token(8, thing),
            "visibility_token": "4",
            "attribute_tokens": [token(3, 0)],
            "translation": [373.2559893478688 + seen, 1130.419001882279, 0.7999999779936307],
            "size": [1.621, 4.669, 1.642],
            "rotation": [0.9829057752393237, 0.0, 0.0, -0.18311509513940125],
            "prev": token(9, n - 1) if seen else "",
            "next": token(9, n + 1) if seen < SEEN - 1 else "",
            "num_lidar_pts": 5,
            "num_radar_pts": 0,
        }


# ---- measuring
def measure(source: str, sweeps: bool) -> tuple[str, ...]:
    """In a process of its own: seconds, peak memory, and the bytes that a copy of the converter travels as."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    converter = NuscenesConverter(source=source, sweeps=sweeps)
    counts: list[int] = []
    seconds = seconds_of(lambda: counts.extend(converter.num_frames(log) for log in converter.logs()))
    peak_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    copy = pickle.dumps(converter)
    opened_ms = 1e3 * seconds_of(lambda: pickle.loads(copy).num_frames(converter.logs()[-1]))
    numbers = (f"{sum(counts)}", f"{seconds:.1f}", f"{peak_mb:.0f}", f"{len(copy) / 1e6:.1f}", f"{opened_ms:.1f}")
    return ("all sweeps" if sweeps else "key frames", *numbers)


def main() -> None:
    """Write, measure, print a table."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--scenes", type=int, default=850)
    p.add_argument("--keep", metavar="DIR", help="write the tables there and leave them; use those that are there")
    options = p.parse_args()
    with TemporaryDirectory() as temporary:
        root = Path(options.keep or temporary)
        if not (root / "v1.0-trainval").is_dir():
            for kind in ("samples", "sweeps"):
                for name in CHANNELS:
                    (root / kind / name).mkdir(parents=True, exist_ok=True)
            print(f"tables of {write_tables(root / 'v1.0-trainval', options.scenes) / 1e9:.2f} GB")
        rows = []
        for sweeps in (False, True):
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                rows.append(pool.apply(measure, (str(root), sweeps)))
        print(markdown(("", "frames", "CPU s", "peak MB", "copy MB", "opening a copy, ms"), rows))


if __name__ == "__main__":
    main()
