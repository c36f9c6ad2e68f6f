"""What the official development kit says about a folder in nuScenes' layout, as numbers to compare a reader with.

The kit pins numpy below 2, so it cannot be installed beside this project; tests/golden/nuscenes_devkit.json was made by

    python -m tests.helpers.layouts.nuscenes DIR
    python -m venv KIT && KIT/bin/pip install nuscenes-devkit==1.2.0
    KIT/bin/python tests/reference/nuscenes_devkit.py DIR tests/golden/nuscenes_devkit.json

and has to be made again when the street world or the layout's writer changes. On a real folder, leave the file where it
is: the set's licence does not allow to pass numbers of it on.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import numpy as np

PIXELS = 12
"""Projected points that are kept of each image."""
SWEEPS, POINTS = 3, 40
"""Sweeps that are put together, and points that are kept of them."""


def rounded(values: Any) -> Any:
    """Micrometres, microradians and millionths of a pixel are enough."""
    return np.round(np.asarray(values, dtype=float), 6).tolist()


def describe(source: str, version: str = "v1.0-mini") -> dict[str, Any]:
    """Key frames by scene and time."""
    from nuscenes.eval.detection.utils import category_to_detection_name  # type: ignore[import-not-found]
    from nuscenes.eval.lidarseg.utils import LidarsegClassMapper  # type: ignore[import-not-found]
    from nuscenes.nuscenes import NuScenes  # type: ignore[import-not-found]
    from nuscenes.utils.data_classes import LidarPointCloud  # type: ignore[import-not-found]
    from nuscenes.utils.data_io import load_bin_file  # type: ignore[import-not-found]
    from nuscenes.utils.geometry_utils import points_in_box  # type: ignore[import-not-found]

    kit = NuScenes(version, source, verbose=False)
    classes = LidarsegClassMapper(kit) if hasattr(kit, "lidarseg") else None
    found: dict[str, Any] = {}
    for sample in kit.sample:
        token = sample["data"]["LIDAR_TOP"]
        path, boxes, _ = kit.get_sample_data(token)
        cloud = LidarPointCloud.from_file(path)
        rows = []
        for box in boxes:
            annotation = kit.get("sample_annotation", box.token)
            rows.append(
                {
                    "center": rounded(box.center),
                    "wlh": rounded(box.wlh),
                    "heading": rounded(box.orientation.rotation_matrix[:, 0]),
                    "velocity_world": [None if np.isnan(v) else round(v, 6) for v in kit.box_velocity(box.token)],
                    "class": category_to_detection_name(annotation["category_name"]),
                    "attributes": [kit.get("attribute", name)["name"] for name in annotation["attribute_tokens"]],
                    "num_points": int(points_in_box(box, cloud.points[:3]).sum()),
                    "stated": annotation["num_lidar_pts"],
                }
            )
        labels = None
        if classes is not None:
            file = os.path.join(source, kit.get("lidarseg", token)["filename"])
            labels = np.bincount(classes.convert_label(load_bin_file(file)), minlength=17).tolist()
        scene = kit.get("scene", sample["scene_token"])["name"]
        found[f"{scene}_{kit.get('sample_data', token)['timestamp']}"] = {
            "num_points": cloud.nbr_points(),
            "sweeps": several_sweeps(kit, sample),
            "boxes": rows,
            "labels": labels,
            "cameras": {name: project(kit, sample, name) for name in sample["data"] if name.startswith("CAM")},
        }
    return found


def several_sweeps(kit: Any, sample: Any) -> dict[str, Any]:
    """Some points of the cloud of several sweeps, in the order of their sweeps, and how old each of them is."""
    from nuscenes.utils.data_classes import LidarPointCloud

    cloud, times = LidarPointCloud.from_file_multisweep(kit, sample, "LIDAR_TOP", "LIDAR_TOP", nsweeps=SWEEPS)
    chosen = np.linspace(0, cloud.nbr_points() - 1, POINTS).astype(int)
    return {
        "count": cloud.nbr_points(),
        "chosen": chosen.tolist(),
        "points": rounded(cloud.points[:4, chosen].T),
        "times": rounded(times[0, chosen]),
    }


def project(kit: Any, sample: Any, camera: str) -> dict[str, Any]:
    """Points in an image: which, and where, by the kit's own chain of poses."""
    points, depth, image = kit.explorer.map_pointcloud_to_image(sample["data"]["LIDAR_TOP"], sample["data"][camera])
    chosen = np.linspace(0, points.shape[1] - 1, min(PIXELS, points.shape[1])).astype(int)
    return {
        "size": [image.size[1], image.size[0]],
        "count": int(points.shape[1]),
        "uv": rounded(points[:2, chosen].T),
        "depth": rounded(depth[chosen]),
    }


if __name__ == "__main__":
    text = json.dumps(describe(sys.argv[1]), separators=(",", ":")).replace('],"', '],\n"').replace("},", "},\n")
    with open(sys.argv[2], "w") as output:
        output.write(text + "\n")
