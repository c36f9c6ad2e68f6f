"""Preparing recordings: frames a second and core by stage, beside `rosbags` alone; peak memory at two sizes; the disk.

    python -m benchmarks.recordings                                 # 0.5 GiB, some minutes
    python -m benchmarks.recordings --gib 20 --folder /data/tmp     # reads all of it, prepares its first frames
    python -m benchmarks.recordings --gib 0 --memory 0.5 2          # peak memory alone, each format

A ROS 2 bag of MCAP is generated as a vehicle would record it: one LiDAR of 120,000 points at 10 Hz (x, y, z, intensity,
time, float32), three cameras of 1280 x 800 as JPEG at 10 Hz with camera info, odometry at 100 Hz. Sweeps and images
repeat after a second. Rates are processor time of one process and one thread, which a busy machine shifts less than a
clock's; what reads is warm as far as the file fits in memory. Rows:

- rosbags alone: `AnyReader` reads and decodes every message of the topics that are used, and nothing is made of it;
- read: the same by `data.convert.logs`;
- convert: samples, JPEGs decoded: read, and clouds, poses and pairs by time; with deskew: each point moved as well;
- prepare: shards without and with superpixels.

The disk's rate is that of reading the file once after the system was asked to forget it. Peak memory is that of a
process of its own that prepares a whole recording without superpixels. Rows are said as soon as they are measured.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

from benchmarks.common import REPOSITORY, markdown, seconds_of, setting
from data.convert.logs.converter import RosbagConverter, forget_reader
from data.convert.logs.open import open_recording
from data.geometry import rigid, yaw_rotation
from data.preparing.prepare import PrepareConfig, prepare
from data.preparing.superpixels import SuperpixelConfig
from data.sample import Sample
from tests.helpers.recordings import Entry, write_mcap, write_ros1, write_ros2

_GIB = 1 << 30
_T0_NS = 1_700_000_000_000_000_000
_PERIOD_NS = 100_000_000
_REPEAT = 10
_POINTS = 120_000
_SIZE = (800, 1280)
_YAWS = {"front": 0.0, "left": 1.0, "right": -1.0}


# ---- the recording
def entries(num_bytes: int) -> Iterator[Entry]:
    """Messages of about so many bytes in all, by the time of writing, one sweep's period after the other."""
    rng = np.random.default_rng(0)
    sweeps = [_sweep(rng) for _ in range(_REPEAT)]
    images = {camera: [_jpeg(rng) for _ in range(_REPEAT)] for camera in _YAWS}
    K = np.array([[700.0, 0, 639.5], [0, 700.0, 399.5], [0, 0, 1]])
    optical = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])
    static = [("base_link", "lidar", rigid(np.eye(3), np.array([0.0, 0, 1.8])))]
    static += [
        ("base_link", f"{camera}_optical", rigid(yaw_rotation(yaw) @ optical, np.array([1.0, 0, 1.5])))
        for camera, yaw in _YAWS.items()
    ]
    yield Entry.of("/tf_static", "transforms", _T0_NS - _PERIOD_NS, "", static)
    written = number = 0
    while written < num_bytes:
        start_ns = _T0_NS + number * _PERIOD_NS
        sweep = sweeps[number % _REPEAT]
        several = [Entry.of("/lidar/points", "cloud", start_ns, "lidar", sweep)]
        for camera, jpegs in images.items():
            frame, jpeg = f"{camera}_optical", jpegs[number % _REPEAT]
            several.append(Entry.of(f"/{camera}/image/compressed", "jpeg", start_ns + 10_000_000, frame, jpeg))
            several.append(
                Entry.of(f"/{camera}/camera_info", "info", start_ns + 10_000_000, frame, (K, _SIZE, "plumb_bob", ()))
            )
            written += len(jpeg)
        for time_ns in range(start_ns - _PERIOD_NS // 2, start_ns + _PERIOD_NS // 2, 10_000_000):
            several.append(Entry.of("/odometry", "odometry", time_ns, "odom", ("odom", "base_link", _ego(time_ns))))
        yield from sorted(several, key=lambda entry: entry.written_ns)
        written += 4 * len(sweep) * _POINTS
        number += 1


def _sweep(rng: np.random.Generator) -> dict[str, np.ndarray]:
    azimuth = np.linspace(np.pi, -np.pi, _POINTS)
    height = rng.uniform(-0.4, 0.2, _POINTS)
    range_m = np.minimum(rng.uniform(3, 80, _POINTS), 1.8 / np.maximum(-height, 0.02))
    return {
        "x": range_m * np.cos(azimuth),
        "y": range_m * np.sin(azimuth),
        "z": range_m * height,
        "intensity": rng.integers(0, 255, _POINTS),
        "time": np.linspace(-0.05, 0.05, _POINTS),
    }


def _jpeg(rng: np.random.Generator) -> bytes:
    coarse = rng.integers(0, 255, (_SIZE[0] // 16, _SIZE[1] // 16, 3), dtype=np.uint8)
    image = cv2.resize(coarse, _SIZE[::-1], interpolation=cv2.INTER_CUBIC).astype(np.float32)
    image += rng.normal(0, 4, _SIZE)[..., None]
    return cv2.imencode(".jpg", np.clip(image, 0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()


def _ego(time_ns: int) -> np.ndarray:
    """On a circle of 200 m at 10 m/s: who drives another way than he looks is refused."""
    yaw = 0.05 * (time_ns - _T0_NS) / 1e9
    return rigid(yaw_rotation(yaw), 200.0 * np.array([np.sin(yaw), 1 - np.cos(yaw), 0.0]))


# ---- what is measured
def rosbags_alone(bag: Path, topics: Sequence[str]) -> int:
    """Read and decode all messages of some topics; how many there are."""
    from rosbags.highlevel import AnyReader

    with AnyReader([bag]) as reader:
        connections = [one for one in reader.connections if one.topic in topics]
        return sum(reader.deserialize(data, one.msgtype) is not None for one, _, data in reader.messages(connections))


def ours_alone(bag: Path, topics: Sequence[str]) -> int:
    """The same by the reader that is used here."""
    with open_recording(bag) as recording:
        return sum(message.content is not None for message in recording.messages(topics))


def convert(bag: Path, frames: int, *, deskew: bool) -> None:
    """Samples of the first frames."""
    converter = RosbagConverter(source=str(bag), deskew=deskew)
    (log,) = converter.logs()
    for item in converter.frames(log, 0, frames):
        if not isinstance(item, Sample):
            raise RuntimeError(f"{item.key}: {item.detail}")
    forget_reader()


def prepare_frames(bag: Path, frames: int, superpixels: SuperpixelConfig | None) -> None:
    """Shards of the first frames."""
    with tempfile.TemporaryDirectory(dir=bag.parent) as folder:
        config = PrepareConfig(limit=frames, superpixels=superpixels)
        prepare(RosbagConverter(source=str(bag)), folder, config)
    forget_reader()


def peak_mib(set_name: str, source: Path) -> float:
    """Largest resident memory of a process that prepares a whole recording without superpixels."""
    with tempfile.TemporaryDirectory(dir=source.parent) as folder:
        words = [set_name, str(source), f"{folder}/set", "--workers", "1", "--no-superpixels"]
        code = (
            "import sys; from launchers.prepare import main; code = main(sys.argv[1:]); "
            "peak = [line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')]; "
            "print('peak', *peak); sys.exit(code)"  # getrusage's is that of the parent, where that has more
        )
        command = [sys.executable, "-c", code, *words]
        done = subprocess.run(command, cwd=REPOSITORY, check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout.rpartition("peak ")[2]) / 1024


FORMATS: dict[str, tuple[str, Callable[[Path, Iterator[Entry]], Path]]] = {
    "MCAP with protobuf": ("mcap", lambda folder, entries: write_mcap(folder / "drive.mcap", entries)),
    "ROS 1 bag": ("rosbag", lambda folder, entries: write_ros1(folder / "drive.bag", entries)),
    "ROS 2 database": ("rosbag", lambda folder, entries: write_ros2(folder / "drive", entries)),
}
"""Format -> the set that prepares it, and what writes one into a folder."""


def disk_rate(file: Path) -> float:
    """Bytes a second of reading a file from the disk once."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        began, num_bytes = time.perf_counter(), 0
        while block := os.read(descriptor, 8 << 20):
            num_bytes += len(block)
        return num_bytes / (time.perf_counter() - began)
    finally:
        os.close(descriptor)


def rates(bag: Path, most_frames: int) -> None:
    """Print frames a second by stage, beside the disk's rate."""
    (file,) = bag.glob("*.mcap")
    disk = disk_rate(file)
    with open_recording(bag) as recording:
        topics = [topic.name for topic in recording.topics.values()]
        sweeps = recording.topics["/lidar/points"].count
    num_bytes = file.stat().st_size
    frames = min(most_frames, sweeps - 4)  # those at the ends have no poses around them
    index_s = seconds_of(lambda: RosbagConverter(source=str(bag)).logs())
    reads: dict[str, Callable[[], object]] = {
        "rosbags alone": lambda: rosbags_alone(bag, topics),
        "read": lambda: ours_alone(bag, topics),
    }
    of_frames: dict[str, Callable[[], object]] = {
        "convert": lambda: convert(bag, frames, deskew=False),
        "convert, deskew": lambda: convert(bag, frames, deskew=True),
        "prepare, no superpixels": lambda: prepare_frames(bag, frames, None),
        "prepare": lambda: prepare_frames(bag, frames, SuperpixelConfig()),
    }
    rows = []
    for calls, count in ((reads, sweeps), (of_frames, frames)):
        for name, call in calls.items():
            rate = count / seconds_of(call)
            share = rate * num_bytes / sweeps / disk
            rows.append([name, str(count), f"{rate:.1f}", f"{1e3 / rate:.1f}", f"{share:.1%}"])
            print(*rows[-1], file=sys.stderr, flush=True)
    print(
        f"{num_bytes / _GIB:.2f} GiB, {sweeps} sweeps, {num_bytes / sweeps / 1e6:.2f} MB a sweep with its images; disk "
        f"{disk / 1e6:.0f} MB/s; counting and choosing sweeps {index_s:.1f} s"
    )
    print(markdown(["", "frames", "frames/s a core", "ms a frame", "of the disk's rate"], rows), flush=True)


def memory(folder: Path, sizes_gib: Sequence[float]) -> None:
    """Print peak memory of preparing recordings of each format in several sizes."""
    rows = []
    for name, (set_name, write) in FORMATS.items():
        peaks = []
        for size in sizes_gib:
            with tempfile.TemporaryDirectory(dir=folder) as temporary:
                source = write(Path(temporary), entries(int(size * _GIB)))
                peaks.append(f"{peak_mib(set_name, source):.0f}")
            print(name, size, peaks[-1], file=sys.stderr, flush=True)
        rows.append([name, *peaks])
    print(markdown(["peak MiB", *(f"{size:g} GiB" for size in sizes_gib)], rows))


def main() -> None:
    """Generate, measure, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=0.5, help="rates are measured on; 0: none (default: %(default)s)")
    parser.add_argument(
        "--frames", type=int, default=100, help="that are converted and prepared (default: %(default)s)"
    )
    parser.add_argument(
        "--memory", type=float, nargs="+", default=[], metavar="GIB", help="measure peak memory at these"
    )
    parser.add_argument("--folder", help="for the recordings, on the disk to be judged (default: a temporary one)")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    print(setting(0), file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=args.folder) as temporary:
        if args.gib:
            bag = write_ros2(Path(temporary) / "drive", entries(int(args.gib * _GIB)), "mcap")
            rates(bag, args.frames)
            shutil.rmtree(bag)
        if args.memory:
            memory(Path(temporary), args.memory)


if __name__ == "__main__":
    main()
