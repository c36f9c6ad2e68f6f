#!/usr/bin/env bash
# Library: pypcd4 1.5.1 (with python-neo-lzf 0.3.5). Seen: 2026-12-01.
# Surprise: in a `binary_compressed` file, a field with COUNT above 1 comes out with its numbers mixed up between points,
# without an error: 10, 20 in every point is read as 10, 10 in the first half and 20, 20 in the second.
# Why it matters: PCL, whose format this is, writes the data field by field, and inside a field point by point, so the numbers of
# one point lie together (`PCDWriter::writeBinaryCompressed` copies size times count bytes a point). Normals, descriptors
# and covariances are stored that way. Uncompressed files of the same points are read right.
# Tandem: reads .pcd by a reader of its own (data/convert/pcd_file.py; both layouts in tests/data/convert/test_pcd.py).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check pypcd4==1.5.1 python-neo-lzf==0.3.5 numpy
"$work/venv/bin/python" - "$work" <<'PYTHON'
import importlib.metadata
import struct
import sys
from pathlib import Path

import lzf
import numpy as np
from pypcd4 import PointCloud

POINTS = 64
folder = Path(sys.argv[1])
cloud = np.zeros(POINTS, dtype=[("x", "<f4"), ("n", "<f4", 2)])
cloud["x"], cloud["n"] = np.arange(POINTS), (10, 20)


def header(data):
    return (
        f"VERSION 0.7\nFIELDS x n\nSIZE 4 4\nTYPE F F\nCOUNT 1 2\nWIDTH {POINTS}\nHEIGHT 1\n"
        f"VIEWPOINT 0 0 0 1 0 0 0\nPOINTS {POINTS}\nDATA {data}\n"
    ).encode()


def read(name):
    points = PointCloud.from_path(folder / name).pc_data
    return [[float(points[field][place]) for field in points.dtype.names] for place in (0, POINTS - 1)]


(folder / "plain.pcd").write_bytes(header("binary") + cloud.tobytes())
by_field = cloud["x"].tobytes() + np.ascontiguousarray(cloud["n"]).tobytes()
packed = lzf.compress(by_field)
(folder / "packed.pcd").write_bytes(
    header("binary_compressed") + struct.pack("<II", len(packed), len(by_field)) + packed
)

print("pypcd4", importlib.metadata.version("pypcd4"))
expected = [[0.0, 10.0, 20.0], [63.0, 10.0, 20.0]]
plain, compressed = read("plain.pcd"), read("packed.pcd")
print(f"expected: first and last point {expected}")
print(f"seen: binary {plain}; binary_compressed {compressed}")
stated = plain == expected and compressed == [[0.0, 10.0, 10.0], [63.0, 20.0, 20.0]]
sys.exit(0 if stated else "pypcd4 no longer does what this script states")
PYTHON
