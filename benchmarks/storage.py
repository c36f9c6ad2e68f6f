"""Bytes of a sample in a prepared set, by member, and what other ways to store them would cost and save.

    python -m benchmarks.storage --nuscenes DIR    # the first key frame of a folder in nuScenes' layout

Times are processor time of all images of the sample, the best of five.
"""

from __future__ import annotations

import argparse
import functools
import tempfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg

from benchmarks.common import markdown, seconds_of, setting
from benchmarks.ordinary import write_copies
from data.storage.encode import CodecConfig, encode_sample
from data.storage.run_lengths import decode_runs, encode_runs


def _best_ms(call: Callable[[], object]) -> float:
    return 1e3 * min(seconds_of(call) for _ in range(5))


def _row(
    name: str, encode: Callable[[Any], bytes], parts: Sequence[Any], decode: Callable[[bytes], object]
) -> list[str]:
    stored = list(map(encode, parts))
    spent = (_best_ms(lambda: list(map(encode, parts))), _best_ms(lambda: list(map(decode, stored))))
    return [name, f"{sum(map(len, stored)) / 1000:.0f}", *(f"{ms:.1f}" for ms in spent)]


def _png(plane: np.ndarray, level: int) -> bytes:
    return bytes(cv2.imencode(".png", plane, [cv2.IMWRITE_PNG_COMPRESSION, level])[1].tobytes())


def _unpng(data: bytes) -> np.ndarray:
    return np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED))


def _jpeg(image: np.ndarray, quality: int) -> bytes:
    return bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality, colorsubsampling="420"))


def _floats(points: np.ndarray, kind: str) -> bytes:
    return points.astype(kind).tobytes()


def _unfloats(data: bytes, kind: str) -> np.ndarray:
    return np.frombuffer(data, kind).astype("<f4")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nuscenes", required=True)
    arguments = parser.parse_args()
    cv2.setNumThreads(0)
    print(setting(0))
    with tempfile.TemporaryDirectory() as folder:
        frames = write_copies(Path(arguments.nuscenes), Path(folder), 1)
        sample = frames.sample(frames.tokens[0], "log_000000")
    members = encode_sample(sample, CodecConfig())
    kinds = {"images as in the source": ".jpg", "points": ".npy", "superpixels": ".npy.gz", "meta": ".json"}
    rows = [
        [kind, f"{sum(len(data) for name, data in members.items() if name.endswith(ending)) / 1000:.0f}"]
        for kind, ending in kinds.items()
    ]
    print(markdown(("member", "kB a sample"), [*rows, ["all", f"{sum(map(len, members.values())) / 1000:.0f}"]]))
    images = [np.asarray(camera.image) for camera in sample.cameras]
    maps = [np.asarray(camera.superpixels).astype(np.uint8) for camera in sample.cameras]
    points = np.concatenate((sample.points_lidar, sample.intensity[:, None]), axis=1)
    # name, encoder of one thing, the things, decoder of one
    ways: list[tuple[str, Callable[[Any], bytes], list[Any], Callable[[bytes], object]]] = []
    unruns = functools.partial(decode_runs, size=(maps[0].shape[0], maps[0].shape[1]))
    for level in (1, 3, 6, 9):
        ways.append((f"superpixels: runs, level {level}", functools.partial(encode_runs, level=level), maps, unruns))
    for level in (1, 3, 6, 9):
        ways.append((f"superpixels: PNG, level {level}", functools.partial(_png, level=level), maps, _unpng))
    for quality in (95, 85):
        encode = functools.partial(_jpeg, quality=quality)
        ways.append((f"images: JPEG of quality {quality}", encode, images, simplejpeg.decode_jpeg))
    for kind in ("<f4", "<f2"):
        encode, decode = functools.partial(_floats, kind=kind), functools.partial(_unfloats, kind=kind)
        ways.append((f"points: {kind[1:]}", encode, [points], decode))
    ways.append(("points: f4, zlib level 3", lambda p: zlib.compress(_floats(p, "<f4"), 3), [points], zlib.decompress))
    table = [_row(*way) for way in ways]
    print(markdown(("way", "kB a sample", "encode, ms", "decode, ms"), table))
    error = np.abs(points[:, :3].astype("<f2").astype("<f4") - points[:, :3])
    largest_cm, mean_cm = 100 * error.max(), 100 * error.mean()
    print(f"half precision moves coordinates by up to {largest_cm:.1f} cm, {mean_cm:.2f} cm on average")


if __name__ == "__main__":
    main()
