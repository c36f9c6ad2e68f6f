#!/usr/bin/env bash
# Library: pykitti 0.3.1. Seen: 2026-11-30.
# Surprise: frames are counted by position in the list of files, not by the number in the name. Where a scan is absent, as
# in official drives of KITTI raw (2011_09_26_drive_0009 lacks 177 to 180), get_velo(i) is the scan of a later moment than
# get_cam2(i) and timestamps[i] for all frames behind the gap, and len() still counts every image.
# Why it matters: points are paired with an image of another moment, without an error until the last index.
# Tandem: KITTI raw's files are found by their number; a frame without its scan is a counted skip
# (data/convert/kitti/kitti_raw.py; tests/data/convert/test_kitti.py).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
# It imports OpenCV and does not ask for it.
"$work/venv/bin/pip" install --quiet --disable-pip-version-check pykitti==0.3.1 opencv-python-headless==5.0.0.93
"$work/venv/bin/python" - "$work/kitti" <<'PYTHON'
import importlib.metadata
import sys
from pathlib import Path

import numpy as np
import pykitti
from PIL import Image

DATE, FRAMES, ABSENT = "2011_09_26", 5, 2

root = Path(sys.argv[1])
day, drive = root / DATE, root / DATE / f"{DATE}_drive_0009_sync"
for folder in ("oxts/data", "image_02/data", "velodyne_points/data"):
    (drive / folder).mkdir(parents=True)
identity = "1 0 0 0 1 0 0 0 1"
for name in ("imu_to_velo", "velo_to_cam"):
    (day / f"calib_{name}.txt").write_text(f"R: {identity}\nT: 0 0 0\n")
cameras = [f"P_rect_0{n}: 1 0 0 0 0 1 0 0 0 0 1 0\nR_rect_0{n}: {identity}\n" for n in range(4)]
(day / "calib_cam_to_cam.txt").write_text("".join(cameras))
(drive / "oxts" / "timestamps.txt").write_text("".join(f"2011-09-26 13:02:0{n}.000000000\n" for n in range(FRAMES)))
for n in range(FRAMES):  # image and scan carry their frame's number
    (drive / "oxts" / "data" / f"{n:010d}.txt").write_text(" ".join(["0"] * 30))
    Image.new("RGB", (2, 2), (n, n, n)).save(drive / "image_02" / "data" / f"{n:010d}.png")
    if n != ABSENT:
        np.full((1, 4), n, dtype=np.float32).tofile(drive / "velodyne_points" / "data" / f"{n:010d}.bin")

print("pykitti", importlib.metadata.version("pykitti"))
print(f"expected: image and scan of an index are of the same frame; frame {ABSENT} has no scan")
log = pykitti.raw(str(root), DATE, "0009")
seen = []
for index in range(len(log)):
    try:
        scan = int(log.get_velo(index)[0, 0])
    except IndexError:
        scan = None
    seen.append((log.get_cam2(index).getpixel((0, 0))[0], scan))
    print(f"seen: index {index}: image of frame {seen[-1][0]}, scan of frame {scan}, time {log.timestamps[index]:%S} s")
stated = [(0, 0), (1, 1), (2, 3), (3, 4), (4, None)]
sys.exit(0 if seen == stated else "pykitti no longer does what this script states")
PYTHON
