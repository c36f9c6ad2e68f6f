"""Bytes of a sample in a prepared set, by member, and what other ways to store them would cost and save.

    python -m benchmarks.storage --nuscenes DIR    # the first key frame of a folder in nuScenes' layout

Times are processor time of all images of the sample, the best of five.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import simplejpeg

from benchmarks.common import markdown, setting
from benchmarks.ordinary import write_copies
from data.storage.encode import CodecConfig, encode_sample
from data.storage.run_lengths import decode_runs, encode_runs


def _best_ms(call: Callable[[], object]) -> float:
    taken = []
    for _ in range(5):
        start = time.process_time()
        call()
        taken.append(time.process_time() - start)
    return 1e3 * min(taken)


def _row(name: str, encode: Callable[[], Sequence[bytes]], decode: Callable[[bytes], object]) -> list[str]:
    stored = encode()
    sizes = f"{sum(map(len, stored)) / 1000:.0f}"
    return [name, sizes, f"{_best_ms(encode):.1f}", f"{_best_ms(lambda: [decode(data) for data in stored]):.1f}"]


def _png(plane: np.ndarray, level: int) -> bytes:
    return bytes(cv2.imencode(".png", plane, [cv2.IMWRITE_PNG_COMPRESSION, level])[1].tobytes())


def _unpng(data: bytes) -> np.ndarray:
    return np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED))


def _jpeg(image: np.ndarray, quality: int) -> bytes:
    return bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality, colorsubsampling="420"))


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
    size = (maps[0].shape[0], maps[0].shape[1])
    table = []
    for level in (1, 3, 6, 9):
        table.append(
            _row(
                f"superpixels: runs, level {level}",
                lambda: [encode_runs(m, level) for m in maps],  # noqa: B023
                lambda d: decode_runs(d, size),
            )
        )
    for level in (1, 3, 6, 9):
        table.append(_row(f"superpixels: PNG, level {level}", lambda: [_png(m, level) for m in maps], _unpng))  # noqa: B023
    for quality in (95, 85):
        table.append(
            _row(
                f"images: JPEG of quality {quality}",
                lambda: [_jpeg(i, quality) for i in images],  # noqa: B023
                simplejpeg.decode_jpeg,
            )
        )
    for kind in ("<f4", "<f2"):
        table.append(
            _row(
                f"points: {kind[1:]}",
                lambda: [points.astype(kind).tobytes()],  # noqa: B023
                lambda d: np.frombuffer(d, kind).astype("<f4"),  # noqa: B023
            )
        )
    table.append(
        _row("points: f4, zlib level 3", lambda: [zlib.compress(points.astype("<f4").tobytes(), 3)], zlib.decompress)
    )
    print(markdown(("way", "kB a sample", "encode, ms", "decode, ms"), table))
    error = np.abs(points[:, :3].astype("<f2").astype("<f4") - points[:, :3])
    print(
        f"half precision moves coordinates by up to {error.max() * 100:.1f} cm, {error.mean() * 100:.2f} cm on average"
    )


if __name__ == "__main__":
    main()
