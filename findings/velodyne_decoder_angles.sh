#!/usr/bin/env bash
# Library: velodyne-decoder 3.1.0. Seen: 2026-11-30.
# Surprise: a sector across azimuth 0 (min_angle=350, max_angle=10: the 20 degrees ahead of the sensor) is taken as its
# complement: the two bounds are swapped without a word and the 340 degrees from 10 to 350 are returned.
# Why it matters: straight ahead is azimuth 0, so the sector that a front camera sees is such a one; what is kept then is
# everything that the camera does not see.
# Tandem: decodes no packets; which points a camera sees is decided by projection (data/views/pairs.py). Nothing to test.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check velodyne-decoder==3.1.0
"$work/venv/bin/python" - <<'PYTHON'
import importlib.metadata
import struct
import sys

import numpy as np
import velodyne_decoder


def packet(first_azimuth):
    """VLP-16, one return: 12 blocks 0.4 degrees apart, all points at 5 m."""
    blocks = [
        struct.pack("<HH", 0xEEFF, (first_azimuth + 40 * block) % 36000) + struct.pack("<HB", 2500, 100) * 32
        for block in range(12)
    ]
    return b"".join(blocks) + struct.pack("<IBB", 0, 0x37, 0x22)


def whole_degrees(**window):
    """Azimuths of the points of one revolution, in steps of one degree."""
    packets = velodyne_decoder.PacketVector()
    for number in range(75):
        packets.append(velodyne_decoder.VelodynePacket(number * 1.3e-3, list(packet(480 * number))))
    _, points = velodyne_decoder.ScanDecoder(velodyne_decoder.Config(**window)).decode(packets)
    return set(np.floor(np.degrees(np.arctan2(-points[:, 1], points[:, 0])) % 360).astype(int).tolist())


print("velodyne-decoder", importlib.metadata.version("velodyne-decoder"))
print("expected: a window from 350 to 10 degrees holds azimuth 0 and not 180")
usual, across = whole_degrees(min_angle=10, max_angle=350), whole_degrees(min_angle=350, max_angle=10)
print(f"seen: 350 to 10 has {len(across)} whole degrees; 0 in it: {0 in across}; 180 in it: {180 in across}")
print(f"seen: the same as 10 to 350: {usual == across}")
stated = usual == across and 0 not in across and 180 in across
sys.exit(0 if stated else "velodyne-decoder no longer does what this script states")
PYTHON
