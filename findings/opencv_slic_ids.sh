#!/usr/bin/env bash
# Library: OpenCV 5.0.0 (opencv-contrib-python-headless 5.0.0.93), ximgproc's SLIC superpixels. Seen: 2026-11-30.
# Surprise: with superpixels of one or two pixels a side and nothing merged (min_element_size 0), a quarter to a half of
# the ids below getNumberOfSuperpixels() belong to no pixel; merging on one-pixel superpixels leaves a count of 0 while
# every pixel has id 0.
# Why it matters: SLidR-like methods average features over superpixels. An id without a pixel is a mean of nothing
# (0 / 0), and a count of 0 an empty batch.
# Tandem: data/preparing/superpixels.py (`_consecutive`) numbers the ids that occur, and never asks for the count alone.
# Test: tests/data/preparing/test_superpixels.py, test_any_size_and_number_is_bounded (each id has a pixel).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check opencv-contrib-python-headless==5.0.0.93 numpy==2.4.6
"$work/venv/bin/python" - <<'PYTHON'
import sys

import cv2
import numpy as np

print("OpenCV", cv2.__version__)
print("expected (documentation): getNumberOfSuperpixels() is the actual amount of superpixels in getLabels()")
rng = np.random.default_rng(0)


def cut(size, side, min_element_size):
    image = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
    lab = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2Lab)
    slic = cv2.ximgproc.createSuperpixelSLIC(lab, cv2.ximgproc.SLIC, side, 10.0)
    slic.iterate(5)
    slic.enforceLabelConnectivity(min_element_size)
    count, used = slic.getNumberOfSuperpixels(), len(np.unique(slic.getLabels()))
    print(f"seen: {size}x{size} image, side {side}, min_element_size {min_element_size}: count {count}, ids in use {used}")
    return count, used


cases = [cut(64, 1, 0), cut(64, 2, 0), cut(8, 2, 0)]
zero = cut(2, 1, 25)
sound = cut(64, 8, 0)
as_stated = all(used < count for count, used in cases) and zero == (0, 1) and sound[0] == sound[1]
sys.exit(0 if as_stated else "OpenCV no longer does what this script states")
PYTHON
