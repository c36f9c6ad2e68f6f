"""`tandem inspect`: look into a prepared set, a run or a recording; numbers on the terminal, pictures into a folder.

    tandem inspect SHARDS [--sample KEY|INDEX ...] [--out FOLDER] [--check] [--calibration [N]]
    tandem inspect RUN [--frame KEY|INDEX ...] [--out FOLDER]
    tandem inspect SHARDS|RUN [--log NAME] [--rerun FILE.rrd] [--foxglove FILE.mcap]
    tandem inspect RECORDING [--settings FILE.yaml] [--out FOLDER]

A recording is a ROS 1 bag, a ROS 2 bag or an MCAP file, or a folder of one: its topics with rates, gaps, sizes and
clocks, its frames, and what deserves a look. --settings writes which topics are what, by a first guess, for
`tandem prepare rosbag ... topics=FILE.yaml`; it needs `pip install 'tandem-pretrain[logs]'`.

--rerun and --foxglove write a drive for these 3D viewers: sweeps, boxes, images with superpixels and pairs, along time;
of a run a drive of its set, with what its newest weights make of the points as colours. They need `pip install
'tandem-pretrain[rerun]'` and `pip install 'tandem-pretrain[foxglove]'`.

With --out, each picture becomes a PNG, and `inspect.html` shows everything in one file that needs no other.

Examples:
    tandem inspect runs/street --num 2 --out runs/street_pictures
    tandem inspect /data/my_set --calibration
    tandem inspect runs/slidr_street --out runs/slidr_street_pictures
    tandem inspect runs/street --log street-000003 --rerun street.rrd
    tandem inspect runs/slidr_street --foxglove learnt.mcap --num 20
    tandem inspect drive.bag --settings topics.yaml
    tandem inspect runs/second_street --frame street-000050-00003 --out frame
"""

from __future__ import annotations

import argparse

from launchers.cli import verb_parser
from launchers.options.common import completed, offer_runs, whole_number

DRAWN_SAMPLES = 4
_CALIBRATION_SAMPLES = 40
"""Enough to tell shifts of a few pixels in streets; see docs/custom_data.md."""


def parser() -> argparse.ArgumentParser:
    """Options of the verb."""
    p = verb_parser("tandem inspect", __doc__)
    target = p.add_argument(
        "target", metavar="TARGET", help="folder or URL of a prepared set, folder of a run, or a recording"
    )
    completed(target, offer_runs)
    p.add_argument(
        "--sample",
        action="append",
        default=[],
        metavar="KEY|INDEX",
        help="a sample of the set, may be repeated (default: --num of them, evenly spread)",
    )
    p.add_argument(
        "--frame",
        action="append",
        default=[],
        metavar="KEY|INDEX",
        help="of a detector's run: what it finds in this sample of the set that it is judged on, may be repeated",
    )
    p.add_argument(
        "--num",
        type=whole_number,
        metavar="N",
        help=f"samples to draw, evenly spread (default: {DRAWN_SAMPLES}); for 3D viewers a log's first (default: all)",
    )
    p.add_argument("--rerun", metavar="FILE.rrd", help="write a drive for the Rerun viewer")
    p.add_argument("--foxglove", metavar="FILE.mcap", help="write a drive as MCAP for Foxglove")
    p.add_argument("--log", metavar="NAME", help="drive for --rerun and --foxglove (default: the first one)")
    p.add_argument("--out", metavar="FOLDER", help="write PNG pictures and inspect.html there")
    p.add_argument("--settings", metavar="FILE.yaml", help="of a recording: write a first guess at its topics there")
    p.add_argument("--check", action="store_true", help="read every shard and compare it with its checksum (slow)")
    p.add_argument(
        "--calibration",
        type=int,
        nargs="?",
        const=_CALIBRATION_SAMPLES,
        metavar="N",
        help="do depth borders of N samples (or of those given) lie on the images' edges, or would a shift or another "
        "time fit better (default: %(const)s samples)",
    )
    return p
