"""Files of raw data sets: read whole, decoded, and named where they are absent or damaged.

Every converter reads through `read_bytes` and decodes through the other functions here, so that messages are alike and
`benchmarks/prepare.py` can tell reading from decoding.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import cv2
import numpy as np
from jaxtyping import Float, Float32, Shaped, UInt8

from common.printable import listed
from data.sample import CameraView
from data.storage.damage import DamagedError
from data.storage.decode import PNG_MARK, decode_jpeg, jpeg_size, png_size
from data.storage.encode import check_image_size
from data.storage.shard import ShardError
from data.storage.untrusted import parse_npy

JPEGS = (".jpg", ".jpeg")
"""Endings of the files that are stored unchanged."""

Size = tuple[int, int]
"""Height and width in pixels."""

MAX_FILE_BYTES = 1 << 30
"""Far above any file of one frame; a larger one is not what its name says."""

_LISTED = 8
"""Entries of a folder that a message shows."""


def layout_error(
    source: str | os.PathLike[str], data_set: str, expected: str, folder: Path | None = None
) -> ShardError:
    """The error for a source that is not a data set's official layout: what was looked for, where, what is there.

    `expected` is relative to `folder`, which is the source itself if None.
    """
    where = Path(source) if folder is None else folder
    return ShardError(f"{source} is no {data_set} folder: looked for {expected} in {where}, found {_contents(where)}")


def _contents(folder: Path) -> str:
    if not folder.exists():
        nearest = next((parent for parent in folder.parents if parent.is_dir()), None)
        return "no such folder" + ("" if nearest is None else f" ({nearest} holds {_contents(nearest)})")
    if not folder.is_dir():
        return "a file in its place"
    with os.scandir(folder) as entries:
        names = sorted(entry.name + ("/" if os.path.isdir(entry.path) else "") for entry in entries)
    if not names:
        return "an empty folder"
    return listed(names, _LISTED)


def read_bytes(path: Path) -> bytes:
    """A whole file.

    Raises:
        DamagedError: it is missing, cannot be read, or is far larger than a file of one frame.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise DamagedError("member-missing", f"{path} has {path.stat().st_size} bytes")
        return path.read_bytes()
    except OSError as error:
        raise DamagedError("member-missing", f"{path} ({error.strerror})") from error


def read_range(path: Path, offset: int, size: int) -> bytes:
    """A part of a file that holds many frames, from byte `offset` on.

    Raises:
        DamagedError: the file is missing, cannot be read, ends before the part does, or the part is far larger than a
            frame.
    """
    try:
        if size > MAX_FILE_BYTES:
            raise DamagedError("member-missing", f"{path}: {size} bytes from {offset} on")
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read(size)
    except OSError as error:
        raise DamagedError("member-missing", f"{path} ({error.strerror})") from error
    if len(data) < size:
        raise DamagedError("member-missing", f"{path} ends {size - len(data)} bytes before byte {offset + size}")
    return data


def read_image(path: Path, white: float | None = None) -> UInt8[np.ndarray, "H W 3"]:
    """A PNG or JPEG as RGB, as stored (EXIF orientation is not applied: calibration is that of the pixels).

    Args:
        path: of the file.
        white: the value of a 16-bit PNG that becomes 255, such as 4095 of a 12-bit camera; larger ones are clipped.

    Raises:
        DamagedError: the file is missing, larger than any camera's image, cannot be decoded, or has 16 bits and nobody
            says how many of them are used.
    """
    bgr = _decoded(path, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION)
    if bgr is None:
        raise DamagedError("image-broken", str(path))
    if bgr.dtype != np.uint8:
        if white is None:
            most = int(bgr.max())
            detail = f"{path} has 16 bits a channel, the largest value is {most} (of a {most.bit_length()}-bit camera?)"
            raise DamagedError("image-broken", f"{detail}; published images have 8; `custom` reads others (image_max)")
        bgr = np.rint(np.clip(bgr / np.float32(white), 0, 1) * 255).astype(np.uint8)
    return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB))


def read_plane(path: Path, expected: str, *types: type[np.generic]) -> Shaped[np.ndarray, "H W"]:
    """An image of one channel with numbers of these types, such as depth or labels.

    Raises:
        DamagedError: the file is missing or another kind of image than `expected` says.
    """
    plane = _decoded(path, cv2.IMREAD_UNCHANGED)
    if plane is None or plane.ndim != 2 or plane.dtype.type not in types:
        raise DamagedError("image-broken", f"{path}: expected {expected}")
    return np.asarray(plane)


def _decoded(path: Path, flags: int) -> Any:
    """What OpenCV makes of an image file; None where it is damaged.

    Raises:
        DamagedError: missing, neither PNG nor JPEG, or larger than any camera's image.
    """
    data = read_bytes(path)
    try:  # by its header, before the decoder allocates what the header states
        height, width = png_size(data) if data.startswith(PNG_MARK) else jpeg_size(data)
    except DamagedError as error:
        raise DamagedError(error.reason, f"{path}: {error.detail}") from error
    check_image_size(str(path), height, width)
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:  # sizes beyond OpenCV's limits, empty data
        raise DamagedError("image-broken", f"{path}: {error}") from error


_CENTRED = (0.45, 0.56)
"""Share of the width at which the principal point of an image that was not cropped lies; 0.47 to 0.54 in sets here."""


def check_image_fits(
    path: Path, K: Float[np.ndarray, "3 3"], size: tuple[int, ...], stated: Size | None = None
) -> None:
    """Refuse an image (height, width) of another size than its calibration is for: points would fall beside pixels.

    Where the calibration states no size, the principal point tells: it lies about the middle of the right one.

    Raises:
        DamagedError: says which size fits.
    """
    if stated is not None:
        fits, right = tuple(size) == stated, f"of {stated[0]}x{stated[1]}"
    else:
        fits = _CENTRED[0] <= K[0, 2] / size[1] <= _CENTRED[1]
        right = f"about {2 * K[0, 2]:.0f} wide, by its principal point ({K[0, 2]:.0f}, {K[1, 2]:.0f})"
    if not fits:
        is_so = f"{path} is {size[0]}x{size[1]} (height x width)"
        raise DamagedError("image-size", f"{is_so}, its calibration is for images {right}: give those as published")


def read_view(
    name: str,
    path: Path,
    K: Float[np.ndarray, "3 3"],
    T_cam_ego: Float[np.ndarray, "4 4"],
    T_world_ego: Float[np.ndarray, "4 4"],
    timestamp_us: int,
    size: Size | None = None,
) -> CameraView:
    """A camera's view whose image is the pixels of a file; `size` is what the calibration states, if it does.

    Raises:
        DamagedError: as `read_image`; or the image has another size than the calibration is for.
    """
    jpeg, image = read_jpeg(path) if path.suffix in JPEGS else (None, read_image(path))
    check_image_fits(path, K, image.shape[:2], size)
    return CameraView(
        name=name,
        image_size=(image.shape[0], image.shape[1]),
        K=K,
        T_cam_ego=T_cam_ego,
        T_world_ego=T_world_ego,
        timestamp_us=timestamp_us,
        image=image,
        jpeg=jpeg,
    )


def read_jpeg(path: Path) -> tuple[bytes, UInt8[np.ndarray, "H W 3"]]:
    """A JPEG's bytes, for `CameraView.jpeg` (stored unchanged, nothing is lost), and its pixels.

    Raises:
        DamagedError: the file is missing, cut, or no JPEG.
    """
    data = read_bytes(path)
    return data, decode_jpeg(str(path), data)


def read_records(path: Path, dtype: str, columns: int) -> Shaped[np.ndarray, "N columns"]:
    """A file of nothing but rows of numbers, as most sets store sweeps; `dtype` is of one number, e.g. "<f4".

    Raises:
        DamagedError: the file is missing, or its length is no whole number of rows.
    """
    data, row = read_bytes(path), columns * np.dtype(dtype).itemsize
    if len(data) % row:
        raise DamagedError("array-broken", f"{path}: {len(data)} bytes are no whole number of {row}-byte rows")
    rows: Shaped[np.ndarray, "N columns"] = np.frombuffer(data, dtype).reshape(-1, columns).copy()  # writable
    return rows


def read_sweep(path: Path, columns: int) -> Float32[np.ndarray, "N columns"]:
    """A sweep that is nothing but rows of float32, of which x, y, z come first.

    Raises:
        DamagedError: as `read_records`, or the rows seem to hold another number of columns.
    """
    rows = read_records(path, "<f4", columns)
    likely = likely_columns(rows)
    if likely not in (None, columns):
        detail = f"rows of {likely} numbers would fit, in those of {columns} neighbouring points are far apart"
        raise DamagedError("array-broken", f"{path}: {detail}")
    return rows


def likely_columns(rows: Float32[np.ndarray, "N columns"]) -> int | None:
    """How many numbers a row holds, by its neighbours: points that were measured one after another lie close together.

    Rows of zeros stand for nothing measured. None where no number of columns makes the rows clearly smoother than the
    others do, as in shuffled clouds.
    """
    jumps: dict[int, float] = {}
    stated: int = rows.shape[1]
    for count in sorted({*POSSIBLE_COLUMNS, stated}):
        if rows.size % count:
            continue
        points = rows.reshape(-1)[: _LOOKED_AT // count * count].reshape(-1, count)[:, :3].astype(np.float64)
        points = points[np.isfinite(points).all(axis=1) & points.any(axis=1)]  # those that were measured
        if len(points) > 100:
            spread = np.subtract(*np.quantile(points, (0.95, 0.05), axis=0))  # a single wrong value does not change it
            jumps[count] = float(np.median(np.abs(np.diff(points, axis=0)) / (spread + 1e-9)))
    best = sorted(jumps, key=lambda count: jumps[count])
    if not best or jumps[best[0]] > _SMOOTH or (len(best) > 1 and jumps[best[0]] > _SMOOTHER * jumps[best[1]]):
        return None
    # Every second point of right rows may be smoother than each one: of two scanners, or beams, in turn.
    in_turn = best[0] > stated and best[0] % stated == 0 and not _hold_other_things(rows, best[0] // stated)
    return stated if in_turn else best[0]


def _hold_other_things(rows: Float32[np.ndarray, "N columns"], period: int) -> bool:
    """Whether the first two columns of a row and of the next one, a period apart, are distributed differently."""
    for column in (0, 1):
        first, next_ = (np.sort(rows[start::period, column]) for start in (0, 1))
        shares = (np.searchsorted(part, first, side="right") / len(part) for part in (first, next_))
        if np.abs(np.subtract(*shares)).max() < _OTHER:  # Kolmogorov and Smirnov's distance
            return False
    return True


POSSIBLE_COLUMNS = range(3, 9)
"""Of sweeps."""
_LOOKED_AT = 10 * math.lcm(*POSSIBLE_COLUMNS)
"""Numbers of a file that its columns are judged by."""
_SMOOTH = 0.1
"""Median step from a point to the next over the spread of all, at most; a third in shuffled clouds."""
_SMOOTHER = 0.7
"""The smoothest reading over the next one, at most."""
_OTHER = 0.38
"""Distance of two distributions; normals, rings, times and colours beside x and y have 0.4 to 0.9, other beams 0.3."""


def read_npy(path: Path) -> Shaped[np.ndarray, "*shape"]:
    """An array; pickled objects are refused, and nothing is allocated that the file does not hold.

    Raises:
        DamagedError: the file is missing or no whole, plain .npy.
    """
    try:
        return parse_npy(read_bytes(path))
    except ValueError as error:
        raise DamagedError("array-broken", f"{path}: {error}") from error


Parsed = TypeVar("Parsed")


@dataclass(frozen=True, kw_only=True)
class FrameLines(Generic[Parsed]):
    """A text file with one line a frame: a damaged line is its own frame's, all others keep their places.

    Attributes:
        path: of the file.
        lines: what each line says; why it says nothing where it is empty or damaged.
    """

    path: Path
    lines: tuple[Parsed | DamagedError, ...]

    def __len__(self) -> int:
        """Lines, with empty ones, but for empty ones at the end of the file."""
        return len(self.lines)

    def __getitem__(self, number: int) -> Parsed:
        """What a line says, the first being 0.

        Raises:
            DamagedError: it is damaged.
        """
        line = self.lines[number]
        if isinstance(line, DamagedError):
            raise DamagedError(line.reason, line.detail)
        return line


def read_frame_lines(path: Path, parse: Callable[[str], Parsed]) -> FrameLines[Parsed]:
    """A text file with one line a frame; `parse` raises ValueError for a line that says nothing.

    Raises:
        DamagedError: the file is missing.
    """
    lines: list[Parsed | DamagedError] = []
    # Of bytes: text has more characters that end a line, such as a damaged byte may become.
    for number, line in enumerate(read_bytes(path).rstrip().splitlines(), start=1):
        text = line.decode("utf-8", errors="replace").strip()
        try:
            lines.append(parse(text))
        except ValueError as error:
            detail = f"{path}, line {number}: {f'{text!r:.80}: {error}' if text else 'empty'}"
            lines.append(DamagedError("meta-broken", detail))
    return FrameLines(path=path, lines=tuple(lines))


def numbers_of(text: str, columns: int) -> Float[np.ndarray, " columns"]:
    """A line of so many numbers.

    Raises:
        ValueError: it has other ones.
    """
    values = [float(word) for word in text.split()]
    if len(values) != columns:
        raise ValueError(f"{len(values)} numbers, expected {columns}")
    return np.array(values)


def read_numbers(path: Path, columns: int) -> Float[np.ndarray, "rows columns"]:
    """A text file of rows of `columns` numbers that belong together (a calibration); empty lines are left out.

    Raises:
        DamagedError: the file is missing, or a line has another form.
    """
    rows = []
    for number, line in enumerate(read_bytes(path).decode("utf-8", errors="replace").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            rows.append(numbers_of(line, columns))
        except ValueError as error:
            raise DamagedError("meta-broken", f"{path}, line {number}: {error}") from error
    return np.array(rows, dtype=np.float64).reshape(-1, columns)


def read_json(path: Path) -> Any:
    """A JSON file.

    Raises:
        DamagedError: the file is missing or no JSON.
    """
    try:
        return json.loads(read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise DamagedError("meta-broken", f"{path}: {error}") from error
