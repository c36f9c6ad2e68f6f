#!/usr/bin/env bash
# Library: pypcd4 1.5.1. Seen: 2026-11-30.
# Surprise: padding fields ("_", which PCL writes into binary files of its aligned point types) get a random name at every
# read. One file read twice has different fields, so sweeps with padding can be neither added nor joined by from_list.
# Why it matters: sweeps are joined to make a map or to stack several of them; with files from PCL's own tools that ends
# with "different fields", though the files agree in every byte of their headers.
# Tandem: reads PCD itself (data/convert/custom/formats.py) and takes fields by name only.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check pypcd4==1.5.1
"$work/venv/bin/python" - "$work/sweep.pcd" <<'PYTHON'
import importlib.metadata
import sys
from pathlib import Path

import numpy as np
from pypcd4 import PointCloud

# The layout of pcl::PointXYZI: 4 bytes behind z, 12 behind intensity.
points = np.zeros(2, dtype=[("xyz", "<f4", 3), ("a", "u1", 4), ("intensity", "<f4"), ("b", "u1", 12)])
header = (
    "VERSION 0.7\nFIELDS x y z _ intensity _\nSIZE 4 4 4 1 4 1\nTYPE F F F U F U\nCOUNT 1 1 1 4 1 12\n"
    "WIDTH 2\nHEIGHT 1\nVIEWPOINT 0 0 0 1 0 0 0\nPOINTS 2\nDATA binary\n"
)
path = Path(sys.argv[1])
path.write_bytes(header.encode() + points.tobytes())

print("pypcd4", importlib.metadata.version("pypcd4"))
print("expected: one file read twice has the same fields, and its points can be joined")
first, second = PointCloud.from_path(path), PointCloud.from_path(path)
same = first.fields == second.fields
print(f"seen: 20 of 20 fields equal: {same}; named {first.fields[3]!r} and {second.fields[3]!r}")
failed = []
for name, join in {"+": lambda: first + second, "from_list": lambda: PointCloud.from_list([first, second])}.items():
    try:
        join()
    except ValueError as error:
        failed.append(name)
        print(f"seen: {name}: ValueError: {str(error)[:70]}")
sys.exit(0 if not same and failed == ["+", "from_list"] else "pypcd4 no longer does what this script states")
PYTHON
