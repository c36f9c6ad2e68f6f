"""`tandem fit RUN SET`: will weights trained on one sensor serve another?

Measures some sweeps of the set that the run was trained on and of SET: density by range, height of the ground,
intensities, field of view, lines, range, how full voxels are at the run's size, cameras. Says what differs by more than
a stated threshold and which settings would help. Seconds; nothing is trained, and no network is run.

What is measured of the run's own set is kept in the run's folder (sensors.json): later the set may be gone. `tandem fit
RUN` does that alone.

Examples:
    tandem fit runs/slidr_street /data/my_set
    tandem fit runs/slidr_nuscenes runs/kitti/shards --split train --out runs/fit
    tandem fit runs/slidr_nuscenes
"""

from __future__ import annotations

import argparse

from launchers.cli import verb_parser
from launchers.options.common import completed, offer_paths, offer_runs


def parser() -> argparse.ArgumentParser:
    """Options of the verb."""
    p = verb_parser("tandem fit", __doc__)
    completed(p.add_argument("run", metavar="RUN", help="folder of a run"), offer_runs)
    other = p.add_argument("set", metavar="SET", nargs="?", help="folder or URL of a prepared set")
    completed(other, offer_paths)
    p.add_argument("--split", metavar="NAME", help="of SET (default: all of it)")
    p.add_argument("--out", metavar="FOLDER", help="write fit.html and its pictures there")
    p.add_argument("--json", action="store_true", help="measurements and comparison as JSON, for scripts")
    return p
