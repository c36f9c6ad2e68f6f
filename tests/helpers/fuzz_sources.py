"""Small sources of each data set for the fuzzer, by the writers of their layouts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from mcap.writer import CompressionType

from tests.data.convert.test_kitti import label_line, write_object, write_raw
from tests.data.convert.test_rgbd import write_scene, write_sun
from tests.helpers.layouts import (
    argoverse2,
    custom,
    kitti_360,
    nuscenes,
    nyu,
    once,
    pandaset,
    point_files,
    s3dis,
    scannet,
    semantickitti,
    semanticposs,
    waymo,
)
from tests.helpers.recordings import Entry, entries_of, write_mcap, write_ros1, write_ros2
from tests.helpers.street_logs import street_log


def _recorded() -> list[Entry]:
    return entries_of(street_log(("front",), frames=2, azimuths=90, rate_hz=10.0))


_POINTS = np.random.default_rng(0).integers(0, 256, (40, 6)) / 4.0

SOURCES: dict[str, Callable[[Path], object]] = {
    "kitti-raw": lambda root: write_raw(root, frames=2, cameras=("image_02", "image_03")),
    "kitti-object": lambda root: write_object(root, (0, 1), label_line("Car", (12.0, 1.0, 0.0), (8.0, 4.0, 3.0), 0.3)),
    "7scenes": write_scene,
    "nyu": nyu.write_nyu,
    "sunrgbd": write_sun,
    "semantickitti": lambda root: semantickitti.write_semantickitti(root, frames=2),
    "semanticposs": lambda root: semanticposs.write_semanticposs(root, frames=2),
    "kitti-360": lambda root: kitti_360.write_kitti_360(root, frames=3),
    "nuscenes": lambda root: nuscenes.write_nuscenes(root, nuscenes.NuscenesLayout(scenes=("scene-0061",))),
    "once": lambda root: once.write_once(
        root,
        dict.fromkeys(("000076", "000001"), street_log(once.CAMERAS, frames=1, azimuths=90)),
        labelled=("000076",),
        lists={"raw_small": ["000001"]},
    ),
    "waymo": lambda root: waymo.write_waymo_v1(root / "training", street_log(waymo.CAMERAS, frames=1)),
    "waymo v2": lambda root: waymo.write_waymo_v2(root / "training", street_log(waymo.CAMERAS, frames=1)),
    "pandaset": lambda root: pandaset.write_pandaset(
        root, {"001": street_log(pandaset.CAMERAS, frames=2, azimuths=90, rate_hz=10.0)}, semseg=("001",)
    ),
    "argoverse2": lambda root: argoverse2.write_argoverse2(
        root, {"train": {"a1": street_log(argoverse2.RING, frames=2, azimuths=90)}}
    ),
    "scannet": lambda root: scannet.write_frames(
        root, "scene0011_00", street_log(("front",), frames=2), (0, 20), labels="label-filt"
    ),
    "scannet meshes": lambda root: scannet.write_mesh(root, "scene0704_00", np.random.default_rng(0)),
    "s3dis": lambda root: s3dis.write_room(root, 5, "office_1", {"chair_1": _POINTS, "floor_1": _POINTS + 2}),
    "custom": lambda root: custom.write_custom(root, [street_log(("front",), frames=2, azimuths=90)]),
    "pcd": lambda root: point_files.write_pcd_logs(root, street_log(("front",), azimuths=90)),
    "las": lambda root: [point_files.write_tile(root / f"{e}.{e}", point_files.survey(400)) for e in ("las", "laz")],
    "rosbag": lambda root: write_ros1(root / "drive.bag", _recorded()),
    "rosbag sqlite3": lambda root: write_ros2(root / "drive", _recorded()),
    "rosbag mcap": lambda root: write_ros2(root / "drive", _recorded(), "mcap"),
    "mcap": lambda root: write_mcap(
        root / "drive.mcap", _recorded(), compression=CompressionType.NONE, enable_crcs=False
    ),
}
"""Data set, perhaps with a variant -> writes a small source of it. A new converter is one line more."""
OWN_SETTINGS: dict[str, dict[str, float]] = {
    "7scenes": {"focal_px": 58.5},
    "las": {"min_points": 1},
    "scannet meshes": {"meshes": True},
}
"""What a small source needs: images are a tenth of the published ones, blocks have a hundred points."""
