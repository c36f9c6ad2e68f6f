#!/usr/bin/env bash
# Library: laspy 2.7.0 (LAS point clouds). Seen: 2026-11-30.
# Surprise: `laspy.convert` between the old point formats (0 to 5) and the new ones (6 to 10) drops the scan angle without
# a word. The old field (scan_angle_rank, degrees) and the new one (scan_angle, steps of 0.006 degrees) have different
# names; convert copies what has the same name, and the angle is 0 afterwards, in both directions.
# Why it matters: incidence angle explains a laser's intensity. After an upgrade to LAS 1.4 every point looks
# as if it had been measured straight down, and a correction by angle does nothing.
# Tandem: reads no LAS itself; points come as NumPy arrays by data/convert/custom/converter.py. Nothing to test there.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check laspy==2.7.0 numpy==2.4.6
"$work/venv/bin/python" - <<'PYTHON'
import sys

import laspy
import numpy as np


def cloud(point_format, version):
    las = laspy.LasData(laspy.LasHeader(point_format=point_format, version=version))
    las.x = las.y = las.z = np.array([0.0, 1.0, 2.0])
    las.intensity = np.array([7, 8, 9])
    return las


print("laspy", laspy.__version__)
print("expected: 10, -20 and 90 degrees are still there after the conversion, as the intensities are")
old = cloud(1, "1.2")
old.scan_angle_rank = np.array([10, -20, 90])
new = laspy.convert(old, point_format_id=6)
up = np.asarray(new.scan_angle).tolist()
print(f"seen: format 1 to 6: angles {up}, intensities {np.asarray(new.intensity).tolist()}")
recent = cloud(6, "1.4")
recent.scan_angle = np.array([1667, -3333, 15000])
back = laspy.convert(recent, point_format_id=1)
down = np.asarray(back.scan_angle_rank).tolist()
print(f"seen: format 6 to 1: angles {down}, intensities {np.asarray(back.intensity).tolist()}")
kept = np.asarray(new.intensity).tolist() == np.asarray(back.intensity).tolist() == [7, 8, 9]
as_stated = kept and up == down == [0, 0, 0]
sys.exit(0 if as_stated else "laspy no longer does what this script states")
PYTHON
