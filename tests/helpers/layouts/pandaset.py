"""PandaSet's layout, written from the development kit's documentation: street frames as pickled tables and JPEGs."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from scipy.spatial.transform import Rotation

from data.sample import Sample
from tests.helpers.layouts.pandas_pickles import pickled_frame
from tests.helpers.street_logs import CLASS_NAMES as STREET_CLASSES

CAMERAS = (
    "front_camera",
    "front_left_camera",
    "front_right_camera",
    "left_camera",
    "right_camera",
    "back_camera",
)
NUMBERS = {
    "road": 7,
    "parking": 6,
    "sidewalk": 11,
    "terrain": 6,
    "building": 41,
    "fence": 35,
    "vegetation": 5,
    "trunk": 5,
    "pole": 42,
    "sign": 36,
    "car": 13,
    "truck": 15,
    "bus": 23,
    "pedestrian": 30,
    "cyclist": 26,
}
"""Street class -> PandaSet's number of a class that is like it."""
NAMES = {
    "car": "Car",
    "truck": "Medium-sized Truck",
    "bus": "Bus",
    "pedestrian": "Pedestrian",
    "cyclist": "Bicycle",
}
UNLABELLED_EVERY = 50
"""Every so many points the label is 4 (Reflection) and, one further, 0 (none)."""
GT_SHARE = 0.3
"""Of the points, the last ones: from the forward-looking scanner."""

# Ego axes there: x to the right, y forward, z up. A street frame has x forward, y left.
STREET_FROM_PANDA = np.array([[0.0, 1, 0, 0], [-1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])


def write_pandaset(
    root: Path,
    sequences: Mapping[str, Sequence[Sample]],
    *,
    latitudes: Mapping[str, float] | None = None,
    semseg: Sequence[str] = (),
) -> Path:
    """Write sequences.

    Args:
        root: the set's folder.
        sequences: number -> street frames with the cameras `CAMERAS`.
        latitudes: of the sequences, degrees; 37.7 where not given.
        semseg: sequences with point labels.
    """
    for name, frames in sequences.items():
        folder = root / name
        for part in ("lidar", "meta", "annotations/cuboids"):
            (folder / part).mkdir(parents=True)
        T_world_panda = [frame.T_world_ego @ STREET_FROM_PANDA for frame in frames]
        _write_track(folder / "lidar", T_world_panda, [frame.timestamp_us for frame in frames])
        latitude = (latitudes or {}).get(name, 37.7)
        gps = [{"lat": latitude, "long": -122.4, "height": 2.0, "xvel": 0.0, "yvel": 0.0} for _ in frames]
        (folder / "meta" / "gps.json").write_text(json.dumps(gps))
        (folder / "meta" / "timestamps.json").write_text(json.dumps([frame.timestamp_us / 1e6 for frame in frames]))
        for number in range(len(frames[0].cameras)):
            _write_camera(folder, [frame.cameras[number] for frame in frames])
        for number, frame in enumerate(frames):
            write_table(folder / "lidar" / f"{number:02d}.pkl.gz", sweep_table(frame))
            write_table(folder / "annotations" / "cuboids" / f"{number:02d}.pkl.gz", cuboid_table(frame))
            if name in semseg:
                path = folder / "annotations" / "semseg" / f"{number:02d}.pkl.gz"
                path.parent.mkdir(exist_ok=True)
                write_table(path, semseg_table(frame))
    return root


def write_table(path: Path, columns: Mapping[str, Any]) -> None:
    """A pickled DataFrame, compressed as pandas does for the ending .gz."""
    path.write_bytes(gzip.compress(pickled_frame(columns), compresslevel=1))


def _write_track(folder: Path, poses: Sequence[np.ndarray], times_us: Sequence[int]) -> None:
    entries = []
    for T in poses:
        x, y, z, w = Rotation.from_matrix(T[:3, :3]).as_quat().tolist()
        position = dict(zip("xyz", T[:3, 3].tolist(), strict=True))
        entries.append({"position": position, "heading": {"w": w, "x": x, "y": y, "z": z}})
    (folder / "poses.json").write_text(json.dumps(entries))
    (folder / "timestamps.json").write_text(json.dumps([time / 1e6 for time in times_us]))


def _write_camera(folder: Path, views: Sequence[Any]) -> None:
    camera = folder / "camera" / views[0].name
    camera.mkdir(parents=True)
    _write_track(
        camera,
        [view.T_world_ego @ np.linalg.inv(view.T_cam_ego) for view in views],
        [view.timestamp_us for view in views],
    )
    K = views[0].K
    intrinsics = {"fx": K[0, 0], "fy": K[1, 1], "cx": K[0, 2], "cy": K[1, 2]}
    (camera / "intrinsics.json").write_text(json.dumps(intrinsics))
    for number, view in enumerate(views):
        bgr = cv2.cvtColor(np.asarray(view.image), cv2.COLOR_RGB2BGR)
        cv2.imwrite(str(camera / f"{number:02d}.jpg"), bgr, [cv2.IMWRITE_JPEG_QUALITY, 95])


# ---- tables
def sensor_of_points(frame: Sample) -> np.ndarray:
    """0: Pandar64, 1: PandarGT."""
    count = len(frame.points_lidar)
    return (np.arange(count) >= round(count * (1 - GT_SHARE))).astype(np.int64)


def sweep_table(frame: Sample) -> dict[str, Any]:
    """Columns of a sweep, points in the world."""
    T = frame.T_world_ego @ frame.T_ego_lidar
    x, y, z = (frame.points_lidar.astype(np.float64) @ T[:3, :3].T + T[:3, 3]).T
    time_s = np.full(len(x), frame.timestamp_us / 1e6)
    intensity = np.rint(frame.intensity * 255).astype(np.float64)
    return {"x": x, "y": y, "z": z, "i": intensity, "t": time_s, "d": sensor_of_points(frame)}


def semseg_table(frame: Sample) -> dict[str, Any]:
    """Class of each point."""
    assert frame.labels is not None
    numbers = np.array([NUMBERS[name] for name in STREET_CLASSES])[frame.labels]
    numbers[::UNLABELLED_EVERY] = 4
    numbers[1::UNLABELLED_EVERY] = 0
    return {"class": numbers.astype(np.int64)}


def cuboid_table(frame: Sample) -> dict[str, Any]:
    """Boxes in the world; the first one twice, as moving objects that both scanners see have one for each."""
    boxes = frame.boxes
    assert boxes is not None
    order = [0, *range(len(boxes.yaws))] if len(boxes.yaws) else []
    T = frame.T_world_ego @ frame.T_ego_lidar
    centers = (boxes.centers_m @ T[:3, :3].T + T[:3, 3])[order]
    headings = np.stack([np.cos(boxes.yaws), np.sin(boxes.yaws), np.zeros(len(boxes.yaws))], axis=1)[order]
    headings = headings @ T[:3, :3].T
    length, width, height = boxes.sizes_m[order].T
    uuids = [f"uuid-{boxes.track_ids[row]}" for row in order]
    sensors = np.full(len(order), -1)
    if order:
        uuids[0] += "-sibling"
        sensors[:2] = (1, 0)
    return {
        "uuid": uuids,
        "label": [NAMES[STREET_CLASSES[boxes.classes[row]]] for row in order],
        # 0 looks along y, a quarter turn counter-clockwise along -x.
        "yaw": np.arctan2(-headings[:, 0], headings[:, 1]),
        "stationary": np.zeros(len(order), dtype=bool),
        "camera_used": np.full(len(order), -1),
        "position.x": centers[:, 0],
        "position.y": centers[:, 1],
        "position.z": centers[:, 2],
        "dimensions.x": width,
        "dimensions.y": length,
        "dimensions.z": height,
        "attributes.object_motion": ["Moving"] * len(order),
        "cuboids.sibling_id": ["-"] * len(order),
        "cuboids.sensor_id": sensors,
    }
