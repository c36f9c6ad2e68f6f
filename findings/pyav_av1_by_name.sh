#!/usr/bin/env bash
# Library: PyAV 18.1.0 (its wheel, FFmpeg inside). Seen: 2026-12-01.
# Surprise: CodecContext.create("av1", "r") is made without complaint and refuses every picture with NotImplementedError:
# the name is that of FFmpeg's own decoder, which needs a GPU. The wheel holds a decoder that does not, "libdav1d"; with
# "h264", "hevc" and "vp9" the codec's name gives one that works.
# Why it matters: messages of a recording are decoded one by one, without av.open, which would choose by itself; code that
# works for three codecs by their names fails for the fourth, as if its data were damaged.
# Tandem: asks for libdav1d (data/convert/logs/video.py).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check --only-binary :all: av==18.1.0
SVT_LOG=0 "$work/venv/bin/python" - <<'PYTHON'
import fractions
import sys

import av

encoder = av.CodecContext.create("libsvtav1", "w")
encoder.width = encoder.height = 64
encoder.pix_fmt, encoder.time_base = "yuv420p", fractions.Fraction(1, 10)
frame = av.VideoFrame(64, 64, "yuv420p")
frame.pts = 0
stream = [bytes(packet) for packet in (*encoder.encode(frame), *encoder.encode(None))]

print("PyAV", av.__version__)
print("expected: a decoder by either name gives the one picture of the stream")
seen = {}
for name in ("av1", "libdav1d"):
    decoder = av.CodecContext.create(name, "r")
    try:
        pictures = [one for data in stream for one in decoder.decode(av.Packet(data))] + decoder.decode(None)
        seen[name] = f"{len(pictures)} picture"
    except NotImplementedError as error:
        seen[name] = f"NotImplementedError: {error}"
    print(f"seen: {name}: {seen[name]}")
fails = seen["av1"].startswith("NotImplementedError") and seen["libdav1d"] == "1 picture"
sys.exit(0 if fails else "PyAV no longer does what this script states")
PYTHON
