#!/usr/bin/env bash
# Library: OpenCV 5.0.0 (opencv-contrib-python-headless 5.0.0.93), conversion to CIELAB. Seen: 2026-11-30.
# Surprise: cvtColor(float32 RGB from 0 to 1, COLOR_RGB2Lab) is up to half a unit of Lab off the formula that its own
# documentation states, since sRGB is read from a coarse table in floating point as well. The same pixels made linear by
# the caller and converted by COLOR_LRGB2Lab are right to a few hundredths.
# Why it matters: SLIC compares colours in Lab; such differences move pixels between superpixels at low compactness.
# Tandem: superpixels like scikit-image's linearise by themselves (data/preparing/slic.py); the tests hold them to a slow
# reference (tests/reference/superpixels.py).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check opencv-contrib-python-headless==5.0.0.93 numpy==2.4.6
"$work/venv/bin/python" - <<'PYTHON'
import sys

import cv2
import numpy as np

pixels = np.random.default_rng(0).random((200, 200, 3), dtype=np.float32)
linear = np.where(pixels > 0.04045, ((pixels.astype(np.float64) + 0.055) / 1.055) ** 2.4, pixels / 12.92)
to_xyz = np.array([[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]])
xyz = linear @ to_xyz.T / np.array([0.950456, 1.0, 1.088754])
f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
luminance = np.where(xyz[..., 1] > 0.008856, 116 * f[..., 1] - 16, 903.3 * xyz[..., 1])
lab = np.stack([luminance, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1)

direct = np.abs(cv2.cvtColor(pixels, cv2.COLOR_RGB2Lab) - lab).max()
by_linear = np.abs(cv2.cvtColor(linear.astype(np.float32), cv2.COLOR_LRGB2Lab) - lab).max()
print("OpenCV", cv2.__version__)
print("expected: float32 pixels within a few hundredths of the documented formula, by either way")
print(f"seen: largest difference {direct:.3f} from RGB, {by_linear:.3f} from linear RGB")
sys.exit(0 if direct > 0.3 and by_linear < 0.05 else "OpenCV no longer does what this script states")
PYTHON
