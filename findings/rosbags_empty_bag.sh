#!/usr/bin/env bash
# Library: rosbags 0.11.9. Seen: 2026-11-30.
# Surprise: a bag with topics and no message (a recording stopped at once) has start_time 2^63 - 1, end_time 0 and a
# duration of -(2^63 - 1) ns, for both storages; and one message at time t gives a duration of 1 ns, not 0, because
# end_time is one after the last message.
# Why it matters: logs are summed up and cut by time. One empty bag turns the hours of a fleet negative, and a split at
# start + share * duration lands outside every log.
# Tandem: reads no bags itself; times of its own layout (data/convert/custom/converter.py) are those of sweeps and images
# that are there. Nothing to test there.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check rosbags==0.11.9
cat >"$work/empty.py" <<'PYTHON'
import importlib.metadata
import sys
from pathlib import Path

from rosbags.highlevel import AnyReader
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

STORE = get_typestore(Stores.ROS2_HUMBLE)
TYPE = "std_msgs/msg/String"


def span(plugin, times):
    path = Path(sys.argv[1]) / f"{plugin.name}_{len(times)}"
    with Writer(path, version=9, storage_plugin=plugin) as writer:
        topic = writer.add_connection("/note", TYPE, typestore=STORE)
        for time in times:
            writer.write(topic, time, STORE.serialize_cdr(STORE.types[TYPE](data=""), TYPE))
    with AnyReader([path]) as reader:
        seen = reader.start_time, reader.end_time, reader.duration
    print(f"seen: {plugin.name}, messages at {times}: start, end, duration {seen}")
    return seen


print("rosbags", importlib.metadata.version("rosbags"))
print("expected (documentation): duration is from the earliest to the latest message; here 0")
most = 2**63 - 1
as_stated = True
for plugin in StoragePlugin:
    as_stated &= span(plugin, ()) == (most, 0, -most)
    as_stated &= span(plugin, (1000,)) == (1000, 1001, 1)
sys.exit(0 if as_stated else "rosbags no longer does what this script states")
PYTHON
"$work/venv/bin/python" "$work/empty.py" "$work"
