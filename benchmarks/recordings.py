"""Preparing recordings: frames a second and core by stage, beside `rosbags` alone; peak memory by size; the disk.

    python -m benchmarks.recordings                            # 0.5 GiB, some minutes
    python -m benchmarks.recordings --gib 0 --memory 0.5 2     # peak memory alone, each format
    python -m benchmarks.recordings --gib 20 --memory 20 --formats MCAP --folder /data/tmp  # reads, prepares all of it

A bag is generated as a vehicle would record it: one LiDAR of 120,000 points at 10 Hz (x, y, z, intensity, time,
float32), three cameras of 1280 x 800 as JPEG at 10 Hz with camera info, odometry at 100 Hz. The vehicle drives in a
circle, once a minute: the messages of the first minute are made once and written again and again with their times and
the stamps of their headers moved on; sweeps and images repeat after a second. MCAP has the chunks of ROS 2's recorder.
Rates are processor time of one process and one thread, which a busy machine shifts less than a clock's; what reads is
warm as far as the file fits in memory. Rows:

- rosbags alone: `AnyReader` reads and decodes every message of the topics that are used, and nothing is made of it;
- read raw: the messages' bytes by `data.convert.logs`; read: the same, decoded;
- convert: samples, JPEGs decoded: read, and clouds, poses and pairs by time; with deskew: each point moved as well;
- prepare: shards without and with superpixels.

The disk's rate is that of reading the file once past the system's cache. Peak memory is that of a process of its own
that prepares a recording from end to end without superpixels. Rows are said when they are measured.
"""

from __future__ import annotations

import argparse
import itertools
import mmap
import os
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from mcap.writer import CompressionType, Writer

from benchmarks.common import REPOSITORY, markdown, seconds_of, setting
from data.convert.logs.converter import RosbagConverter, forget_reader
from data.convert.logs.open import open_recording
from data.geometry import rigid, yaw_rotation
from data.preparing.prepare import PrepareConfig, prepare
from data.preparing.superpixels import SuperpixelConfig
from data.sample import Sample
from tests.helpers.recordings import Entry, Raw, Ros, in_order, raw_of, typestore, write_raw_ros1, write_raw_ros2

_GIB = 1 << 30
_T0_NS = 1_700_000_000_000_000_000
_PERIOD_NS = 100_000_000
_LAP = 600
"""Sweeps of a round."""
_REPEAT = 10
_POINTS = 120_000
_SIZE = (800, 1280)
_CHUNK_BYTES = 768 << 10
"""Of ROS 2's recorder (rosbag2_storage_mcap), by default."""
_YAWS = {"front": 0.0, "left": 1.0, "right": -1.0}


# ---- the recording
def messages(ros: int, num_bytes: int) -> Iterator[Raw]:
    """Messages of ROS 1 or 2 of about so many bytes in all, by the time of writing."""
    made = Ros(ros)
    yield from raw_of(ros, [_static()])
    lap = in_order(_lap())
    known: dict[tuple[str, int], bytes] = {}  # by topic and value, of which entries share some
    written = 0
    for later_ns in itertools.count(0, _LAP * _PERIOD_NS):
        for entry in lap:
            key = (entry.topic, id(entry.value))
            data = known[key] if key in known else known.setdefault(key, made.bytes_of(entry))
            stamp = struct.pack("<II", *divmod(entry.stamp_ns + later_ns, 10**9))
            # ROS 1 has a sequence number before the stamp, ROS 2 four bytes that say how numbers are laid out.
            moved_on = b"".join((data[:4], stamp, memoryview(data)[12:]))
            yield Raw(entry.topic, made.TYPES[entry.kind], entry.written_ns + later_ns, moved_on)
            written += len(data)
            if written >= num_bytes:
                return


def _static() -> Entry:
    optical = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])
    frames = [("base_link", "lidar", rigid(np.eye(3), np.array([0.0, 0, 1.8])))]
    frames += [
        ("base_link", f"{camera}_optical", rigid(yaw_rotation(yaw) @ optical, np.array([1.0, 0, 1.5])))
        for camera, yaw in _YAWS.items()
    ]
    return Entry.of("/tf_static", "transforms", _T0_NS - _PERIOD_NS, "", frames)


def _lap() -> Iterator[Entry]:
    """Of one round of the circle, one sweep's period after the other."""
    rng = np.random.default_rng(0)
    sweeps = [_sweep(rng) for _ in range(_REPEAT)]
    images = {camera: [_jpeg(rng) for _ in range(_REPEAT)] for camera in _YAWS}
    K = np.array([[700.0, 0, 639.5], [0, 700.0, 399.5], [0, 0, 1]])
    info = (K, _SIZE, "plumb_bob", ())
    for number in range(_LAP):
        start_ns = _T0_NS + number * _PERIOD_NS
        yield Entry.of("/lidar/points", "cloud", start_ns, "lidar", sweeps[number % _REPEAT])
        for camera, jpegs in images.items():
            frame, stamp_ns = f"{camera}_optical", start_ns + 10_000_000
            yield Entry.of(f"/{camera}/image/compressed", "jpeg", stamp_ns, frame, jpegs[number % _REPEAT])
            yield Entry.of(f"/{camera}/camera_info", "info", stamp_ns, frame, info)
        for time_ns in range(start_ns - _PERIOD_NS // 2, start_ns + _PERIOD_NS // 2, 10_000_000):
            yield Entry.of("/odometry", "odometry", time_ns, "odom", ("odom", "base_link", _ego(time_ns)))


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
    """On a circle at 10 m/s: who drives another way than he looks is refused."""
    rate = 2 * np.pi / (_LAP * _PERIOD_NS)
    yaw = rate * (time_ns - _T0_NS)
    return rigid(yaw_rotation(yaw), 10e-9 / rate * np.array([np.sin(yaw), 1 - np.cos(yaw), 0.0]))


def _write_mcap(folder: Path, num_bytes: int) -> Path:
    """Of ROS 2, in the chunks that its recorder writes if nobody asks for others: not compressed, with CRCs."""
    path, store = folder / "drive.mcap", typestore(2)
    channels: dict[str, int] = {}
    with path.open("wb") as file:
        writer = Writer(file, chunk_size=_CHUNK_BYTES, compression=CompressionType.NONE)
        writer.start("ros2")
        for topic, kind, written_ns, data in messages(2, num_bytes):
            if topic not in channels:
                definition, _ = store.generate_msgdef(kind, ros_version=2)
                schema = writer.register_schema(kind, "ros2msg", definition.encode())
                channels[topic] = writer.register_channel(topic, "cdr", schema, {"offered_qos_profiles": ""})
            writer.add_message(channels[topic], written_ns, data, written_ns)
        writer.finish()
    return path


FORMATS: dict[str, Callable[[Path, int], Path]] = {
    "MCAP": _write_mcap,
    "ROS1": lambda folder, num_bytes: write_raw_ros1(folder / "drive.bag", messages(1, num_bytes)),
    "SQLite": lambda folder, num_bytes: write_raw_ros2(folder / "drive", messages(2, num_bytes)),
}
"""Format -> what writes a recording of about so many bytes into a folder."""


# ---- what is measured
def rosbags_alone(bag: Path, topics: Sequence[str]) -> int:
    """Read and decode all messages of some topics; how many there are."""
    from rosbags.highlevel import AnyReader

    with AnyReader([bag]) as reader:
        connections = [one for one in reader.connections if one.topic in topics]
        return sum(reader.deserialize(data, one.msgtype) is not None for one, _, data in reader.messages(connections))


def raw_alone(bag: Path, topics: Sequence[str]) -> int:
    """Their bytes by the reader that is used here; how many messages there are."""
    with open_recording(bag) as recording:
        return sum(1 for _ in recording.raw_messages(topics))


def ours_alone(bag: Path, topics: Sequence[str]) -> int:
    """The same, decoded."""
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


def peak_mib(source: Path, every: int) -> float:
    """Largest resident memory of a process that prepares each n-th sweep of a recording without superpixels."""
    with tempfile.TemporaryDirectory(dir=source.parent) as folder:
        words = ["rosbag", str(source), f"{folder}/set", "--workers", "1", "--no-superpixels", f"every={every}"]
        code = (
            "import sys; from launchers.prepare import main; code = main(sys.argv[1:]); "
            "peak = [line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')]; "
            "print('peak', *peak); sys.exit(code)"  # getrusage's is that of the parent, where that has more
        )
        command = [sys.executable, "-c", code, *words]
        done = subprocess.run(command, cwd=REPOSITORY, check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout.rpartition("peak ")[2]) / 1024


def disk_rate(file: Path) -> float:
    """Bytes a second of reading a file once, past the system's cache; a busy processor adds little."""
    descriptor = os.open(file, os.O_RDONLY | os.O_DIRECT)
    block = mmap.mmap(-1, 8 << 20)  # begins at a page, without which nothing is read directly
    try:
        os.fsync(descriptor)
        began, num_bytes = time.perf_counter(), 0
        while num_bytes < file.stat().st_size:
            num_bytes += os.readv(descriptor, [block])
        return num_bytes / (time.perf_counter() - began)
    finally:
        os.close(descriptor)


def rates(bag: Path, most_frames: int) -> None:
    """Print frames a second by stage, beside the disk's rate."""
    disk = disk_rate(bag)
    with open_recording(bag) as recording:
        topics = [topic.name for topic in recording.topics.values()]
        sweeps = recording.topics["/lidar/points"].count
    num_bytes = bag.stat().st_size
    frames = min(most_frames, sweeps - 4)  # those at the ends have no poses around them
    index_s = seconds_of(lambda: RosbagConverter(source=str(bag)).logs())
    reads: dict[str, Callable[[], object]] = {
        "rosbags alone": lambda: rosbags_alone(bag, topics),
        "read raw": lambda: raw_alone(bag, topics),
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


def measure(args: argparse.Namespace) -> None:
    """Print the rates of an MCAP file, and peak memory by format and size; each recording is written once."""
    folder, formats, gib, memory_gib = args.folder or tempfile.gettempdir(), args.formats, args.gib, args.memory
    peaks: dict[str, dict[float, str]] = {name: {} for name in formats}
    for name in formats:
        for size in sorted({*memory_gib, *([gib] if name == "MCAP" and gib else [])}):
            with tempfile.TemporaryDirectory(dir=folder) as temporary:
                began = time.perf_counter()
                bag = FORMATS[name](Path(temporary), int(size * _GIB))
                print(
                    f"{name}, {size:g} GiB: written in {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True
                )
                if name == "MCAP" and size == gib:
                    rates(bag, args.frames)
                if size in memory_gib:
                    peaks[name][size] = f"{peak_mib(bag, args.every):.0f}"
                    print(name, size, peaks[name][size], file=sys.stderr, flush=True)
    if memory_gib:
        rows = [[name, *found.values()] for name, found in peaks.items()]
        print(markdown(["peak MiB", *(f"{size:g} GiB" for size in sorted(memory_gib))], rows))


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
    parser.add_argument("--every", type=int, default=1, help="of sweeps, for peak memory (default: %(default)s)")
    parser.add_argument("--formats", nargs="+", default=list(FORMATS), choices=FORMATS, help="(default: all)")
    parser.add_argument("--folder", help="for the recordings, on the disk to be judged (default: a temporary one)")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    print(setting(0), file=sys.stderr)
    measure(args)


if __name__ == "__main__":
    main()
