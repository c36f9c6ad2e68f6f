#!/usr/bin/env bash
# Library: mcap 1.6.0 (Python). Seen: 2026-11-30.
# Surprise: iter_messages(reverse=True) of `make_reader` is ignored for a file without a chunk index (chunks are optional
# in the format): messages come oldest first, without a word. With an index, or by NonSeekingReader, they come newest first.
# Why it matters: "the last calibration or pose before the end" is read with reverse=True; recorders that write unchunked
# files then give the first one instead, and every projection of the log is made with it.
# Tandem: reads no MCAP itself; its own layout (data/convert/custom/converter.py) takes calibration as one file and sorts
# poses by time. Nothing to test there.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check mcap==1.6.0
"$work/venv/bin/python" - <<'PYTHON'
import importlib.metadata
import io
import sys

from mcap.reader import NonSeekingReader, make_reader
from mcap.writer import Writer


def recording(**options):
    stream = io.BytesIO()
    writer = Writer(stream, **options)
    writer.start(profile="", library="")
    schema = writer.register_schema("pose", "jsonschema", b"{}")
    channel = writer.register_channel("/pose", "json", schema)
    for time in (10, 20, 30):
        writer.add_message(channel, log_time=time, data=b"{}", publish_time=time)
    writer.finish()
    stream.seek(0)
    return stream


def newest_first(reader):
    return [message.log_time for _, _, message in reader.iter_messages(reverse=True)]


print("mcap", importlib.metadata.version("mcap"))
print("expected (documentation of iter_messages): reverse=True gives descending log time, [30, 20, 10]")
seen = {
    "make_reader, chunked": newest_first(make_reader(recording())),
    "make_reader, unchunked": newest_first(make_reader(recording(use_chunking=False))),
    "NonSeekingReader, unchunked": newest_first(NonSeekingReader(recording(use_chunking=False))),
}
for name, times in seen.items():
    print(f"seen: {name}: {times}")
stated = [[30, 20, 10], [10, 20, 30], [30, 20, 10]]
sys.exit(0 if list(seen.values()) == stated else "mcap no longer does what this script states")
PYTHON
