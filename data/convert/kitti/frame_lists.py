"""Lists of frames of KITTI raw as works on depth hand them on, and the depth that was annotated for those frames.

A line names a drive and a frame, in one of two forms:

    2011_09_26/2011_09_26_drive_0002_sync/image_02/data/0000000069.png ...    (what follows is not read)
    2011_09_26/2011_09_26_drive_0002_sync 69 l

Depth: ``<drive>/proj_depth/groundtruth/image_0N/NNNNNNNNNN.png``, 16 bits, 256 a metre, 0 where unknown: eleven sweeps
together, made consistent with the stereo pair. The first and the last five frames of a drive have none.

Source: the lists of Eigen et al. (NeurIPS 2014), as Lee et al. (2019) and Godard et al. (ICCV 2019) write them;
Uhrig et al., Sparsity Invariant CNNs (3DV 2017).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path

from data.storage.shard import ShardError

_LINE = re.compile(r"(?P<drive>\d{4}_\d\d_\d\d_drive_\d{4}_sync)(?:/image_0\d/data/|\s+)(?P<frame>\d{1,10})\b")
_DEPTH_FOLDERS = ("", "train", "val")


def read_frame_list(path: str) -> dict[str, set[str]]:
    """Frames (ten digits) of each drive that a list names.

    Raises:
        ShardError: the file cannot be read, a line names no frame, or there is none.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise ShardError(f"cannot read the list of frames {path}: {error}") from error
    frames: dict[str, set[str]] = {}
    for number, line in enumerate(lines, start=1):
        found = _LINE.search(line)
        if found is not None:
            frames.setdefault(found["drive"], set()).add(found["frame"].zfill(10))
        elif line.strip():
            raise ShardError(
                f"{path}, line {number}: {line[:80]!r} names no frame; expected "
                "<date>/<drive>_sync/image_02/data/NNNNNNNNNN.png, or <date>/<drive>_sync N l"
            )
    if not frames:
        raise ShardError(f"{path} names no frames")
    return frames


def check_disjoint(train: Mapping[str, object], val: Mapping[str, object]) -> None:
    """Refuse lists that share a drive: a drive has one split here, and its frames show one street.

    Raises:
        ShardError: names the drive.
    """
    both = sorted(set(train) & set(val))
    if both:
        raise ShardError(f"drive {both[0]} is in train_list and in val_list")


def annotated_depth(root: str, drive: str, camera: str) -> Path | None:
    """Folder of a camera's annotated depth; None where there is none of this drive.

    `root` holds the drives, or the published `train` and `val` that hold them.
    """
    folders = (Path(root) / part / drive / "proj_depth" / "groundtruth" / camera for part in _DEPTH_FOLDERS)
    return next((folder for folder in folders if folder.is_dir()), None)


def with_depth(names: Collection[str], root: str, drive: str, cameras: Collection[str]) -> list[str]:
    """Those of some frames whose depth was annotated for all of these cameras."""
    kept = sorted(names)
    for camera in cameras:
        folder = annotated_depth(root, drive, camera)
        known = set() if folder is None else {path.stem for path in folder.glob("*.png")}
        kept = [name for name in kept if name in known]
    return kept
