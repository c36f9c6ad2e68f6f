#!/usr/bin/env bash
# Libraries: mcap 1.6.0 (Python) and rosbags 0.11.9. Seen: 2026-11-30.
# Surprise: a file that mcap's own Writer makes with repeat_channels=False or repeat_schemas=False (the format lets the
# summary hold copies, and does not ask for them) cannot be read by mcap's make_reader: KeyError with a bare number.
# Without channels, rosbags finds no message in it and says nothing. NonSeekingReader reads the same bytes.
# Why it matters: "KeyError: 1" looks like a damaged log and no message like an empty one, so a conversion that skips
# damaged or empty logs would leave out a sound one.
# Tandem: reads no MCAP itself; logs come in by the layout of data/convert/custom/converter.py. Nothing to test there.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check mcap==1.6.0 rosbags==0.11.9
cat >"$work/lean.py" <<'PYTHON'
import importlib.metadata
import sys
from pathlib import Path

from mcap.reader import NonSeekingReader, make_reader
from mcap.writer import Writer
from rosbags.highlevel import AnyReader
from rosbags.typesys import Stores, get_typestore

STORE = get_typestore(Stores.ROS2_HUMBLE)
TYPE = "std_msgs/msg/String"


def record(path, **options):
    with path.open("wb") as stream:
        writer = Writer(stream, **options)
        writer.start(profile="ros2", library="")
        channel = writer.register_channel("/note", "cdr", writer.register_schema(TYPE, "ros2msg", b"string data"))
        for time in (10, 20):
            data = bytes(STORE.serialize_cdr(STORE.types[TYPE](data="x"), TYPE))
            writer.add_message(channel, log_time=time, data=data, publish_time=time)
        writer.finish()


def times(reader, path):
    with path.open("rb") as stream:
        try:
            return [message.log_time for _, _, message in reader(stream).iter_messages()]
        except KeyError as error:
            return repr(error)


def times_of_rosbags(path):
    with AnyReader([path], default_typestore=STORE) as reader:
        return [time for _, time, _ in reader.messages()]


print("mcap", importlib.metadata.version("mcap"), "rosbags", importlib.metadata.version("rosbags"))
print("expected (format: the summary may hold copies of channels and schemas): all readers give [10, 20]")
as_stated = True
for options in ({}, {"repeat_channels": False}, {"repeat_schemas": False}):
    path = Path(sys.argv[1]) / f"{'_'.join(options) or 'plain'}.mcap"
    record(path, **options)
    seen = times(make_reader, path), times(NonSeekingReader, path), times_of_rosbags(path)
    print(f"seen: {path.stem}: make_reader {seen[0]}, NonSeekingReader {seen[1]}, rosbags {seen[2]}")
    of_rosbags = [] if "repeat_channels" in options else [10, 20]
    as_stated &= seen == ("KeyError(1)" if options else [10, 20], [10, 20], of_rosbags)
sys.exit(0 if as_stated else "mcap or rosbags no longer does what this script states")
PYTHON
"$work/venv/bin/python" "$work/lean.py" "$work"
