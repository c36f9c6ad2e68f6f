"""Writes frames of the street world as nuScenes is published: tables, sweeps, images, lidarseg and panoptic labels.

From the schema of the development kit (docs/schema_nuscenes.md and docs/instructions_lidarseg.md there). A box stands
upright in the world here, as in the set itself.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from scipy.spatial.transform import Rotation

from data.sample import CameraView, Sample
from tests.helpers.street_logs import CLASS_NAMES, street_log

# Order and spelling as nuScenes-lidarseg numbers them.
CATEGORIES = [
    "noise",
    "animal",
    "human.pedestrian.adult",
    "human.pedestrian.child",
    "human.pedestrian.construction_worker",
    "human.pedestrian.personal_mobility",
    "human.pedestrian.police_officer",
    "human.pedestrian.stroller",
    "human.pedestrian.wheelchair",
    "movable_object.barrier",
    "movable_object.debris",
    "movable_object.pushable_pullable",
    "movable_object.trafficcone",
    "static_object.bicycle_rack",
    "vehicle.bicycle",
    "vehicle.bus.bendy",
    "vehicle.bus.rigid",
    "vehicle.car",
    "vehicle.construction",
    "vehicle.emergency.ambulance",
    "vehicle.emergency.police",
    "vehicle.motorcycle",
    "vehicle.trailer",
    "vehicle.truck",
    "flat.driveable_surface",
    "flat.other",
    "flat.sidewalk",
    "flat.terrain",
    "static.manmade",
    "static.other",
    "static.vegetation",
    "vehicle.ego",
]

STREET_CATEGORY = {
    "road": "flat.driveable_surface",
    "parking": "flat.other",
    "sidewalk": "flat.sidewalk",
    "terrain": "flat.terrain",
    "building": "static.manmade",
    "fence": "movable_object.barrier",
    "vegetation": "static.vegetation",
    "trunk": "static.other",  # one that no class holds
    "pole": "movable_object.trafficcone",
    "sign": "movable_object.debris",  # as well
    "car": "vehicle.car",
    "truck": "vehicle.truck",
    "bus": "vehicle.bus.rigid",
    "pedestrian": "human.pedestrian.adult",
    "cyclist": "vehicle.bicycle",
}
"""What each class of the street world is called in the layout."""

CAMERA_ORDER = ("CAM_FRONT", "CAM_FRONT_LEFT", "CAM_FRONT_RIGHT", "CAM_BACK_LEFT", "CAM_BACK_RIGHT", "CAM_BACK")
"""The street rig's six cameras, by where they look."""

_EAST_M = np.array([1180.25, 410.5, 0.0])
"""The map's origin is far away, as it is in the set."""


@dataclass(frozen=True)
class NuscenesLayout:
    """What is written, by scene.

    Attributes:
        scenes: names.
        frames: sweeps of each scene, at the rate of the LiDAR.
        key_every: every so many of them is a key frame.
        without_image: (frame, camera) that has a sweep but no image.
        rate_hz: of the LiDAR.
        image_size: height, width.
    """

    scenes: tuple[str, ...] = ("scene-0061", "scene-0103")
    frames: int = 5
    key_every: int = 2
    without_image: tuple[tuple[int, str], ...] = ((3, "CAM_FRONT"), (1, "CAM_BACK"))
    rate_hz: float = 4.0
    image_size: tuple[int, int] = (48, 80)

    def truth(self, scene: str) -> tuple[Sample, ...]:
        """The street's frames, placed in the map."""
        frames = street_log(
            CAMERA_ORDER,
            frames=self.frames,
            log=self.scenes.index(scene),
            rate_hz=self.rate_hz,
            image_size=self.image_size,
        )
        return tuple(_moved(frame) for frame in frames)

    def key(self, frame: int) -> bool:
        return frame % self.key_every == 0


def _moved(sample: Sample) -> Sample:
    def shift(T: np.ndarray) -> np.ndarray:
        moved: np.ndarray = T.copy()
        moved[:3, 3] += _EAST_M
        return moved

    cameras = tuple(dataclasses.replace(c, T_world_ego=shift(c.T_world_ego)) for c in sample.cameras)
    return dataclasses.replace(sample, T_world_ego=shift(sample.T_world_ego), cameras=cameras)


def token(*parts: object) -> str:
    """32 hexadecimal digits."""
    return hashlib.md5("/".join(map(str, parts)).encode(), usedforsecurity=False).hexdigest()


@dataclass
class _Tables:
    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def add(self, table: str, **row: Any) -> str:
        self.rows.setdefault(table, []).append(row)
        return str(row["token"])

    def link(self, table: str, group: Sequence[int]) -> None:
        """`prev` and `next` of neighbouring rows."""
        rows = [self.rows[table][at] for at in group]
        for before, after in itertools.pairwise(rows):
            before["next"], after["prev"] = after["token"], before["token"]


def write_nuscenes(
    root: Path,
    layout: NuscenesLayout = NuscenesLayout(),
    *,
    version: str = "v1.0-mini",
    lidarseg: bool = True,
    panoptic: bool = True,
    annotations: bool = True,
) -> NuscenesLayout:
    """A whole folder.

    Args:
        root: made if absent.
        layout: scenes and frames.
        version: name of the tables.
        lidarseg: with point classes (and category indices, as the label archive replaces category.json).
        panoptic: with objects.
        annotations: False: empty, as in the test set.
    """
    tables = _Tables(rows={name: [] for name in ("sample_annotation", "instance", "lidarseg", "panoptic")})
    _fixed_tables(tables, root, numbered=lidarseg or panoptic, scenes=layout.scenes)
    for number, scene in enumerate(layout.scenes):
        frames = layout.truth(scene)
        _write_scene(tables, root, layout, scene, number, frames, version, lidarseg, panoptic)
        if annotations:
            _annotate(tables, layout, scene, frames)
    for name, wanted in (("lidarseg", lidarseg), ("panoptic", panoptic)):
        if not wanted:
            del tables.rows[name]
    folder = root / version
    folder.mkdir(parents=True)
    for name, rows in tables.rows.items():
        (folder / f"{name}.json").write_text(json.dumps(rows, indent=0))
    return layout


def _fixed_tables(tables: _Tables, root: Path, numbered: bool, scenes: tuple[str, ...]) -> None:
    for number, name in enumerate(CATEGORIES):
        index = {"index": number} if numbered else {}
        tables.add("category", token=token("category", name), name=name, description="a kind of thing", **index)
    for name in ("vehicle.parked", "vehicle.moving", "pedestrian.standing", "pedestrian.moving", "cycle.with_rider"):
        tables.add("attribute", token=token("attribute", name), name=name, description="")
    for number, name in enumerate(("v0-40", "v40-60", "v60-80", "v80-100"), start=1):
        tables.add("visibility", token=str(number), level=name, description="")
    for name in ("RADAR_FRONT", *CAMERA_ORDER, "LIDAR_TOP"):
        tables.add("sensor", token=token("sensor", name), channel=name, modality=name.split("_")[0].lower())
    logs = [token("log", scene) for scene in scenes]
    tables.add("map", token=token("map"), log_tokens=logs, category="semantic_prior", filename="maps/map.png")
    (root / "maps").mkdir(parents=True)
    cv2.imwrite(str(root / "maps" / "map.png"), np.zeros((8, 8), np.uint8))


def _write_scene(
    tables: _Tables,
    root: Path,
    layout: NuscenesLayout,
    scene: str,
    number: int,
    frames: Sequence[Sample],
    version: str,
    lidarseg: bool,
    panoptic: bool,
) -> None:
    keys = [frame for frame in range(len(frames)) if layout.key(frame)]
    logfile = f"n015-2018-07-24-11-22-{number:02d}+0800"
    tables.add("log", token=token("log", scene), logfile=logfile, vehicle="n015", date_captured="", location="street")
    samples = {frame: token("sample", scene, frame) for frame in keys}
    tables.add(
        "scene",
        token=token("scene", scene),
        log_token=token("log", scene),
        nbr_samples=len(keys),
        first_sample_token=samples[keys[0]],
        last_sample_token=samples[keys[-1]],
        name=scene,
        description="A street, {with} braces and a long text",
    )
    for frame in keys:
        time_us = frames[frame].timestamp_us
        tables.add(
            "sample", token=samples[frame], timestamp=time_us, prev="", next="", scene_token=token("scene", scene)
        )
    tables.link("sample", range(len(tables.rows["sample"]) - len(keys), len(tables.rows["sample"])))
    rows: dict[str, list[int]] = {}
    for channel, T_ego_sensor, K in _sensors(frames[0]):
        turn, shift = _quaternion_and_shift(T_ego_sensor)
        tables.add(
            "calibrated_sensor",
            token=token("calibrated", scene, channel),
            sensor_token=token("sensor", channel),
            translation=shift,
            rotation=turn,
            camera_intrinsic=K,
        )
    for frame, sample in enumerate(frames):
        owner = samples[next((key for key in keys if key >= frame), keys[-1])]
        folder = "samples" if layout.key(frame) else "sweeps"
        images = [
            (camera.name, camera) for camera in sample.cameras if (frame, camera.name) not in layout.without_image
        ]
        for channel, view in [("RADAR_FRONT", None), ("LIDAR_TOP", None), *images]:
            pose, time_us = (
                (sample.T_world_ego, sample.timestamp_us) if view is None else (view.T_world_ego, view.timestamp_us)
            )
            suffix = {"R": "pcd", "L": "pcd.bin", "C": "jpg"}[channel[0]]
            path = root / folder / channel / f"{logfile}__{channel}__{time_us}.{suffix}"
            own = token("data", scene, frame, channel)
            turn, shift = _quaternion_and_shift(pose)
            tables.add("ego_pose", token=own, timestamp=time_us, rotation=turn, translation=shift)
            tables.add(
                "sample_data",
                token=own,
                sample_token=owner,
                ego_pose_token=own,
                calibrated_sensor_token=token("calibrated", scene, channel),
                timestamp=time_us,
                fileformat=suffix[:3],
                is_key_frame=layout.key(frame),
                height=0 if view is None else view.image_size[0],
                width=0 if view is None else view.image_size[1],
                filename=str(path.relative_to(root)),
                prev="",
                next="",
            )
            rows.setdefault(channel, []).append(len(tables.rows["sample_data"]) - 1)
            path.parent.mkdir(parents=True, exist_ok=True)
            if view is not None:
                _write_image(path, view)
        lidar = root / tables.rows["sample_data"][rows["LIDAR_TOP"][-1]]["filename"]
        lidar_records(sample).tofile(lidar)
        if layout.key(frame):
            _write_labels(tables, root, sample, token("data", scene, frame, "LIDAR_TOP"), version, lidarseg, panoptic)
    for group in rows.values():
        tables.link("sample_data", group)


def _sensors(sample: Sample) -> list[tuple[str, np.ndarray, list[list[float]]]]:
    """Extrinsics as published: the LiDAR's x to the right, its y forward."""
    right_forward = np.array([[0.0, 1, 0, 0], [-1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])  # theirs to ours
    lidar = sample.T_ego_lidar @ right_forward
    cameras = [(c.name, np.linalg.inv(c.T_cam_ego), c.K.tolist()) for c in sample.cameras]
    return [("RADAR_FRONT", np.eye(4), []), ("LIDAR_TOP", lidar, []), *cameras]


def _quaternion_and_shift(T: np.ndarray) -> tuple[list[float], list[float]]:
    x, y, z, w = Rotation.from_matrix(T[:3, :3]).as_quat().tolist()
    return [w, x, y, z], T[:3, 3].tolist()


def lidar_records(sample: Sample) -> np.ndarray:
    """x (right), y (forward), z, intensity 0 to 255 in whole steps, ring."""
    forward, left, up = sample.points_lidar.T
    ring = np.arange(len(forward)) % 32
    return np.stack([-left, forward, up, np.rint(sample.intensity * 255), ring], axis=1).astype("<f4")


def _write_image(path: Path, view: CameraView) -> None:
    assert view.image is not None
    cv2.imwrite(str(path), cv2.cvtColor(view.image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 95])


def raw_labels(sample: Sample) -> np.ndarray:
    """Category of each point."""
    assert sample.labels is not None
    number = np.array([CATEGORIES.index(STREET_CATEGORY[name]) for name in CLASS_NAMES])
    raw: np.ndarray = number[sample.labels].astype(np.uint8)
    return raw


def _write_labels(
    tables: _Tables, root: Path, sample: Sample, own: str, version: str, lidarseg: bool, panoptic: bool
) -> None:
    raw = raw_labels(sample)
    assert sample.instances is not None
    both = raw.astype(np.uint16) * 1000 + sample.instances.astype(np.uint16)
    for name, wanted, ending in (("lidarseg", lidarseg, "bin"), ("panoptic", panoptic, "npz")):
        path = root / name / version / f"{own}_{name}.{ending}"
        if not wanted:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        tables.add(name, token=own, sample_data_token=own, filename=str(path.relative_to(root)))
        if name == "lidarseg":
            raw.tofile(path)
        else:
            np.savez_compressed(path, data=both)


def world_boxes(sample: Sample) -> list[dict[str, Any]]:
    """The truth's boxes in the world: upright, with the points that they hold."""
    boxes = sample.boxes
    assert boxes is not None
    T_world_lidar = sample.T_world_ego @ sample.T_ego_lidar
    R = T_world_lidar[:3, :3]
    points = sample.points_lidar @ R.T + T_world_lidar[:3, 3]
    found = []
    for number, yaw in enumerate(boxes.yaws):
        c, s = np.cos(yaw), np.sin(yaw)
        heading = R @ [c, s, -(R[2, 0] * c + R[2, 1] * s) / R[2, 2]]  # level in the world
        world_yaw = np.arctan2(heading[1], heading[0])
        center = R @ boxes.centers_m[number] + T_world_lidar[:3, 3]
        offset = (points - center) @ Rotation.from_euler("z", world_yaw).as_matrix()
        inside = (np.abs(offset) <= boxes.sizes_m[number] / 2).all(axis=1)
        row = {"center": center, "yaw": world_yaw, "size": boxes.sizes_m[number], "num_points": int(inside.sum())}
        speed = float(np.linalg.norm(boxes.velocities_mps[number]))
        kind = CLASS_NAMES[boxes.classes[number]]
        found.append(row | {"track": int(boxes.track_ids[number]), "class": kind, "attribute": _attribute(kind, speed)})
    return found


def _attribute(kind: str, speed: float) -> str | None:
    if kind in ("car", "truck", "bus"):
        return "vehicle.moving" if speed > 0.1 else "vehicle.parked"
    if kind == "pedestrian":
        return "pedestrian.moving" if speed > 0.1 else "pedestrian.standing"
    return "cycle.with_rider" if kind == "cyclist" else None


def _annotate(tables: _Tables, layout: NuscenesLayout, scene: str, frames: Sequence[Sample]) -> None:
    chains: dict[int, list[int]] = {}
    for frame in filter(layout.key, range(len(frames))):
        for box in world_boxes(frames[frame]):
            x, y, z, w = Rotation.from_euler("z", box["yaw"]).as_quat().tolist()
            length, width, height = box["size"].tolist()
            tables.add(
                "sample_annotation",
                token=token("annotation", scene, frame, box["track"]),
                sample_token=token("sample", scene, frame),
                instance_token=token("instance", scene, box["track"]),
                visibility_token="4",
                attribute_tokens=[token("attribute", box["attribute"])] if box["attribute"] else [],
                translation=box["center"].tolist(),
                size=[width, length, height],
                rotation=[w, x, y, z],
                prev="",
                next="",
                num_lidar_pts=box["num_points"],
                num_radar_pts=box["track"] % 5,
            )
            chains.setdefault(box["track"], []).append(len(tables.rows["sample_annotation"]) - 1)
            if len(chains[box["track"]]) == 1:
                kind = token("category", STREET_CATEGORY[box["class"]])
                tables.add("instance", token=token("instance", scene, box["track"]), category_token=kind)
    for track, chain in chains.items():
        tables.link("sample_annotation", chain)
        row = next(r for r in tables.rows["instance"] if r["token"] == token("instance", scene, track))
        first, last = (tables.rows["sample_annotation"][at]["token"] for at in (chain[0], chain[-1]))
        row |= {"nbr_annotations": len(chain), "first_annotation_token": first, "last_annotation_token": last}


if __name__ == "__main__":  # for tests/reference/nuscenes_devkit.py
    write_nuscenes(Path(sys.argv[1]))
