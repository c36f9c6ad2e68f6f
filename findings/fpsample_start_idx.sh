#!/usr/bin/env bash
# Library: fpsample 1.0.2. Seen: 2026-11-30.
# Surprise: the two "bucket" forms (the fast ones) do not start at `start_idx`. They build their tree first, which moves
# the points, and only then take the point at that place; the plain forms start where asked. No error, no warning.
# Why it matters: farthest point sampling picks the centres of point-cloud methods. A start that is drawn from a seed,
# or the same start on two processes, is then another point, and results depend on the form that was chosen for speed.
# Tandem: models/points/sampling.py (`_start_keeps_place`) orders the points so that the tree leaves the start in place.
# Test: tests/models/points/test_sampling.py, test_tree_is_used_and_starts_where_asked.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check fpsample==1.0.2 numpy==2.4.6
"$work/venv/bin/python" - <<'PYTHON'
import importlib.metadata
import sys

import fpsample
import numpy as np

print("fpsample", importlib.metadata.version("fpsample"))
print("expected (documentation of the functions): the first chosen index is start_idx")
points = np.random.default_rng(0).uniform(-50, 50, (20_000, 3)).astype(np.float32)
starts = list(range(0, 20_000, 1000))


def kept(sample):
    return sum(int(sample(points, 8, start)[0]) == start for start in starts)


seen = {
    "fps_sampling": kept(lambda p, n, s: fpsample.fps_sampling(p, n, start_idx=s)),
    "bucket_fps_kdtree_sampling": kept(lambda p, n, s: fpsample.bucket_fps_kdtree_sampling(p, n, start_idx=s)),
    "bucket_fps_kdline_sampling": kept(lambda p, n, s: fpsample.bucket_fps_kdline_sampling(p, n, h=5, start_idx=s)),
}
for name, count in seen.items():
    print(f"seen: {name} starts where asked in {count} of {len(starts)} cases")
plain, *buckets = seen.values()
as_stated = plain == len(starts) and max(buckets) < len(starts) // 2
sys.exit(0 if as_stated else "fpsample no longer does what this script states")
PYTHON
