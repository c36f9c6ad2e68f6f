"""Milliseconds a sweep of ground removal and clustering, and how good the ground is where labels tell.

    python -m benchmarks.segments runs/street/shards runs/kitti/shards

Prepared sets are given; sweeps are taken evenly from each. Times are processor time, the median over sweeps of the best
of --repeat (a busy machine disturbs them less than wall time). Clusters are made of what the line fits leave. Ground
classes by name: see `GROUND`; sets without such classes have no precision and recall. --all-pairs adds the plain way to
cluster (list all pairs within the radius, connect them), which takes seconds and gigabytes on dense sweeps.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from jaxtyping import Bool, Float
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from benchmarks.common import markdown, seconds_of, setting
from data.batch_spec import GroundConfig, PointClusterConfig
from data.sample import Sample
from data.storage.manifest import load_manifest
from data.storage.reader import SampleReader
from data.views.clusters import clusters
from data.views.ground import ground_mask

T = TypeVar("T")
GROUND = ("road", "parking", "sidewalk", "terrain")
"""Classes of the street world that lie on the ground."""
GROUNDS = {"lines": GroundConfig(kind="lines"), "plane": GroundConfig(kind="plane")}
CLUSTERS = {
    "radius 0.5 m": PointClusterConfig(radius_m=0.5),
    "radius 0.5 m, filtered": PointClusterConfig(radius_m=0.5, max_extent_m=15.0, max_aspect=10.0),
    "DBSCAN 0.25 m": PointClusterConfig(kind="dbscan", radius_m=0.25),
}


def sweeps(root: str, num: int) -> tuple[list[Sample], tuple[str, ...]]:
    """Samples from the whole length of a set, without images, and the set's class names."""
    manifest = load_manifest(root)
    rows = np.unique(np.linspace(0, len(manifest) - 1, num).astype(int))
    reader = SampleReader(manifest)
    return [reader.read(int(row), images=False, superpixels=False) for row in rows], manifest.class_names


def timed(run: Callable[[], T], repeat: int) -> tuple[T, float]:
    """The result, and the best processor time in milliseconds."""
    results: list[T] = []
    best_s = min(seconds_of(lambda: results.append(run())) for _ in range(repeat))
    return results[-1], 1e3 * best_s


def ground_rows(samples: Sequence[Sample], names: Sequence[str], repeat: int) -> list[list[str]]:
    """A row of the table for each way to find the ground."""
    found = []
    classes = [index for index, name in enumerate(names) if name in GROUND]
    for title, config in GROUNDS.items():
        masks, times = [], []
        for sample in samples:
            mask, ms = timed(lambda s=sample, c=config: _ground(s, c), repeat)  # type: ignore[misc]
            masks.append(mask)
            times.append(ms)
        quality = ["", ""]
        if classes:
            labels = [sample.labels for sample in samples if sample.labels is not None]
            true, mask = np.isin(np.concatenate(labels), classes), np.concatenate(masks)
            quality = [f"{true[mask].mean():.4f}", f"{mask[true].mean():.4f}"]
        share = np.median([mask.mean() for mask in masks])
        points = np.median([len(sample.points_lidar) for sample in samples])
        found.append([f"ground, {title}", f"{points:,.0f}", f"{np.median(times):.1f}", f"{share:.2f}", *quality])
    return found


def cluster_rows(samples: Sequence[Sample], repeat: int, all_pairs: bool) -> list[list[str]]:
    """A row of the table for each way to cluster what is not ground."""
    standing = [sample.points_lidar[~_ground(sample, GROUNDS["lines"])].astype(np.float64) for sample in samples]
    points = np.median([len(rows) for rows in standing])
    found = []
    for title, config in CLUSTERS.items():
        results = [timed(lambda p=rows, c=config: clusters(p, c), repeat) for rows in standing]  # type: ignore[misc]
        share = np.median([(ids >= 0).mean() for ids, _ in results])
        number = np.median([ids.max(initial=-1) + 1 for ids, _ in results])
        ms = np.median([ms for _, ms in results])
        found.append([f"clusters, {title}: {number:.0f}", f"{points:,.0f}", f"{ms:.1f}", f"{share:.2f}", "", ""])
    if all_pairs:
        ms = np.median([timed(lambda p=rows: _plain_clusters(p, 0.5), 1)[1] for rows in standing])  # type: ignore[misc]
        found.append(["the same by all pairs, 0.5 m", f"{points:,.0f}", f"{ms:.1f}", "", "", ""])
    return found


def _ground(sample: Sample, config: GroundConfig) -> Bool[np.ndarray, " N"]:
    return ground_mask(sample.points_lidar, config, np.random.default_rng(0))


def _plain_clusters(points: Float[np.ndarray, "N 3"], radius_m: float) -> int:
    pairs = cKDTree(points).query_pairs(radius_m, output_type="ndarray")
    graph = coo_array((np.ones(len(pairs), np.int8), (pairs[:, 0], pairs[:, 1])), shape=(len(points), len(points)))
    return int(connected_components(graph, directed=False)[0])


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", help="prepared sets")
    parser.add_argument("--sweeps", type=int, default=12, help="of each set (default: %(default)s)")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--all-pairs", action="store_true")
    args = parser.parse_args()
    print(setting(0))
    header = ["what", "points", "ms", "share of points", "precision", "recall"]
    for root in args.sets:
        samples, names = sweeps(root, args.sweeps)
        print(f"\n{root}, {len(samples)} sweeps\n")
        rows = ground_rows(samples, names, args.repeat) + cluster_rows(samples, args.repeat, args.all_pairs)
        print(markdown(header, rows))


if __name__ == "__main__":
    main()
