"""nuScenes-shaped frames as files in the official layout, and the ordinary way from those files to a training sample.

The ordinary way is what loaders of papers do, step by step: tables as dicts by token; one file opened after the other;
images decoded whole and divided by 255; each camera's pairs by four rigid motions of the whole sweep; crops cut from
the full-size image; voxels by `numpy.unique` over rows. It is written for comparison and is no part of the loader.
"""

from __future__ import annotations

import copy
import itertools
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from PIL import Image
from scipy.spatial.transform import Rotation

from data.geometry import rigid
from data.preparing.superpixels import SuperpixelConfig, segment
from data.sample import CameraView, Sample
from data.street.config import StreetCameraConfig, StreetConfig, StreetLidarConfig
from data.street.log import generate_log
from data.views.augment import AugmentConfig, draw_cloud_transform, draw_cuboid, draw_pixel_transform

_TABLES = ("sample", "sample_data", "calibrated_sensor", "sensor", "ego_pose")
Row = dict[str, Any]
Motions = tuple[Float[np.ndarray, "4 4"], Float[np.ndarray, "4 4"]]


class OfficialFrames:
    """Key frames of a folder in nuScenes' layout.

    Attributes:
        tokens: of the key frames.
    """

    def __init__(self, root: Path, version: str = "v1.0-mini") -> None:
        self.root = root
        tables = {name: json.loads((root / version / f"{name}.json").read_text()) for name in _TABLES}
        self._by_token = {name: {row["token"]: row for row in rows} for name, rows in tables.items()}
        self.tokens = [row["token"] for row in tables["sample"]]
        self._data: dict[str, dict[str, Row]] = {token: {} for token in self.tokens}
        for row in tables["sample_data"]:
            if row["is_key_frame"]:
                channel = self._by_token["sensor"][self._calibration(row)["sensor_token"]]["channel"]
                self._data[row["sample_token"]][channel] = row

    def cameras(self, token: str) -> list[str]:
        """Channels of the frame's cameras."""
        return sorted(channel for channel in self._data[token] if channel.startswith("CAM"))

    def path(self, token: str, channel: str) -> Path:
        """The sensor's file."""
        return self.root / str(self._data[token][channel]["filename"])

    def superpixels_path(self, token: str, channel: str) -> Path:
        """Where the image's superpixels are kept, made beforehand."""
        return self.root / "superpixels" / f"{self._data[token][channel]['token']}.png"

    def _calibration(self, row: Row) -> Row:
        found: Row = self._by_token["calibrated_sensor"][row["calibrated_sensor_token"]]
        return found

    def motions(self, token: str, channel: str) -> tuple[Row, Row]:
        """Sensor to ego, and ego to world, at the sensor's own time: rows with `rotation` and `translation`."""
        row = self._data[token][channel]
        return self._calibration(row), self._by_token["ego_pose"][row["ego_pose_token"]]

    def sample(self, token: str, key: str) -> Sample:
        """The frame as a `Sample`, images as the files have them."""
        T_ego_lidar, T_world_ego = (_matrix(row) for row in self.motions(token, "LIDAR_TOP"))
        sweep = np.fromfile(self.path(token, "LIDAR_TOP"), np.float32).reshape(-1, 5)
        cameras = []
        for channel in self.cameras(token):
            sensor, ego = self.motions(token, channel)
            data = self.path(token, channel).read_bytes()
            image = np.array(Image.open(self.path(token, channel)))
            cameras.append(
                CameraView(
                    name=channel,
                    image_size=(image.shape[0], image.shape[1]),
                    K=np.array(sensor["camera_intrinsic"]),
                    T_cam_ego=np.linalg.inv(_matrix(sensor)),
                    T_world_ego=_matrix(ego),
                    timestamp_us=int(self._data[token][channel]["timestamp"]),
                    image=image,
                    jpeg=data,
                    superpixels=np.array(Image.open(self.superpixels_path(token, channel))).astype(np.int32),
                )
            )
        return Sample(
            key=key,
            log="log",
            timestamp_us=int(self._data[token]["LIDAR_TOP"]["timestamp"]),
            points_lidar=sweep[:, :3],
            intensity=sweep[:, 3] / 255,
            T_ego_lidar=T_ego_lidar,
            T_world_ego=T_world_ego,
            cameras=tuple(cameras),
        )


def _matrix(row: Row) -> Float[np.ndarray, "4 4"]:
    return rigid(_rotation(row), np.array(row["translation"]))


def _rotation(row: Row) -> Float[np.ndarray, "3 3"]:
    w, x, y, z = row["rotation"]
    return np.asarray(Rotation.from_quat((x, y, z, w)).as_matrix())


# ---- writing
def write_copies(source: Path, root: Path, count: int) -> OfficialFrames:
    """`count` copies of the first key frame of `source`, each with files of its own, and superpixels beside them."""
    frames = OfficialFrames(source)
    token = frames.tokens[0]
    tables = {name: json.loads((source / "v1.0-mini" / f"{name}.json").read_text()) for name in _TABLES}
    tables["sample"], tables["sample_data"] = [], []
    maps = {channel: _superpixels(frames.path(token, channel)) for channel in frames.cameras(token)}
    for number in range(count):
        tables["sample"].append({"token": f"frame{number}", "timestamp": number})
        for channel, row in frames._data[token].items():
            suffix = frames.path(token, channel).name.split(".", 1)[1]
            name = f"samples/{channel}/{number:05d}.{suffix}"
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(frames.path(token, channel), root / name)
            new = {"token": f"{channel}-{number}", "sample_token": f"frame{number}", "filename": name}
            tables["sample_data"].append(row | new)
            if channel in maps:
                (root / "superpixels").mkdir(exist_ok=True)
                (root / "superpixels" / f"{new['token']}.png").write_bytes(maps[channel])
    (root / "v1.0-mini").mkdir()
    for name, rows in tables.items():
        (root / "v1.0-mini" / f"{name}.json").write_text(json.dumps(rows))
    return OfficialFrames(root)


def street_frames(count: int) -> list[Sample]:
    """Frames of the street world with six cameras, in nuScenes' sizes."""
    world = StreetConfig(
        num_logs=1,
        frames_per_log=count,
        lidar=StreetLidarConfig(beams=32, azimuths=1090),
        cameras=StreetCameraConfig(
            names=("front", "front_left", "front_right", "left", "right", "back"),
            image_size=(900, 1600),
            yaws_deg=(0.0, 55.0, -55.0, 110.0, -110.0, 180.0),
            mounts_m=((1.1, 0.0, 1.65),) * 6,
            time_offsets_s=(0.0,) * 6,
        ),
    )
    return list(itertools.islice(generate_log(world, 0), count))


def write_frames(samples: Sequence[Sample], root: Path) -> OfficialFrames:
    """Frames of other origin in the layout of the tables and files above."""
    tables: dict[str, list[Row]] = {name: [] for name in _TABLES}
    for number, sample in enumerate(samples):
        tables["sample"].append({"token": f"frame{number}", "timestamp": sample.timestamp_us})
        sweep = np.zeros((len(sample.points_lidar), 5), np.float32)
        sweep[:, :3], sweep[:, 3] = sample.points_lidar, sample.intensity * 255
        data = sweep.tobytes()
        _add(tables, root, number, "LIDAR_TOP.pcd.bin", data, (sample.T_ego_lidar, sample.T_world_ego), [])
        for camera in sample.cameras:
            assert camera.image is not None
            done, jpeg = cv2.imencode(".jpg", camera.image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])
            assert done
            channel, intrinsic = f"CAM_{camera.name.upper()}", camera.K.tolist()
            motions = (np.linalg.inv(camera.T_cam_ego), camera.T_world_ego)
            _add(tables, root, number, f"{channel}.jpg", jpeg.tobytes(), motions, intrinsic)
            path = root / tables["sample_data"][-1]["filename"]
            (root / "superpixels").mkdir(exist_ok=True)
            (root / "superpixels" / f"{channel}-{number}.png").write_bytes(_superpixels(path))
    (root / "v1.0-mini").mkdir()
    for name, rows in tables.items():
        (root / "v1.0-mini" / f"{name}.json").write_text(json.dumps(rows))
    return OfficialFrames(root)


def _add(
    tables: dict[str, list[Row]], root: Path, number: int, kind: str, data: bytes, motions: Motions, K: list[Any]
) -> None:
    """A sensor's file (`kind`: channel and ending) and its rows; motions: sensor to ego, ego to world."""
    channel, _, suffix = kind.partition(".")
    token, name = f"{channel}-{number}", f"samples/{channel}/{number:05d}.{suffix}"
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(data)
    calibration = {"token": token, "sensor_token": channel, "camera_intrinsic": K}
    tables["sensor"].append({"token": channel, "channel": channel})
    tables["calibrated_sensor"].append(calibration | _motion(motions[0]))
    tables["ego_pose"].append({"token": token} | _motion(motions[1]))
    row = {"token": token, "sample_token": f"frame{number}", "ego_pose_token": token, "filename": name}
    tables["sample_data"].append(row | {"calibrated_sensor_token": token, "timestamp": number, "is_key_frame": True})


def _motion(T: Float[np.ndarray, "4 4"]) -> Row:
    x, y, z, w = Rotation.from_matrix(T[:3, :3]).as_quat()
    return {"rotation": [w, x, y, z], "translation": T[:3, 3].tolist()}


def _superpixels(path: Path) -> bytes:
    done, data = cv2.imencode(".png", segment(np.array(Image.open(path)), SuperpixelConfig()).astype(np.uint8))
    assert done
    return bytes(data.tobytes())


# ---- reading
@dataclass(frozen=True, kw_only=True)
class OrdinarySample:
    """What a training step of SLidR takes of one frame, before batches are put together."""

    points: Float[torch.Tensor, "N 3"]
    coords: Int[torch.Tensor, "M 3"]
    features: Float[torch.Tensor, "M 1"]
    point_voxel: Int[torch.Tensor, " N"]
    images: Float[torch.Tensor, "V 3 h w"]
    segments: Int[torch.Tensor, "V h w"]
    pairs: tuple[np.ndarray, ...]


def ordinary_sample(
    frames: OfficialFrames, token: str, augment: AugmentConfig, size: tuple[int, int], rng: np.random.Generator
) -> OrdinarySample:
    """One frame, augmented and voxelised (cylinders of 0.1 m, 1 degree, 0.1 m)."""
    sweep = np.fromfile(frames.path(token, "LIDAR_TOP"), np.float32).reshape(-1, 5)
    images, maps, pairs = [], [], []
    for channel in frames.cameras(token):
        images.append(np.array(Image.open(frames.path(token, channel))))
        maps.append(np.array(Image.open(frames.superpixels_path(token, channel))))
        pairs.append(_pairs(frames, token, channel, sweep[:, :3], images[-1].shape[:2]))
    T = draw_cloud_transform(rng, augment.points)
    points = (sweep[:, :3] @ T[:3, :3].T + T[:3, 3]).astype(np.float32)
    kept = ~draw_cuboid(rng, points, augment.points)
    new_index = np.cumsum(kept) - 1
    whole = torch.tensor(np.array(images, dtype=np.float32) / 255).permute(0, 3, 1, 2)
    crops, segments, placed = [], [], []
    for number, (point, uv) in enumerate(pairs):
        point, uv = point[kept[point]], uv[kept[point]]
        moved = draw_pixel_transform(rng, uv, images[number].shape[:2], size, augment)
        rows, columns = slice(moved.top, moved.top + moved.height), slice(moved.left, moved.left + moved.width)
        crop = F.interpolate(whole[number : number + 1, :, rows, columns], size=size, mode="bilinear")[0]
        ids = torch.from_numpy(maps[number][rows, columns])[None, None].float()
        ids = F.interpolate(ids, size=size, mode="nearest")[0, 0].long()
        crops.append(crop.flip(2) if moved.mirrored else crop)
        segments.append(ids.flip(1) if moved.mirrored else ids)
        uv = moved.uv(uv)
        inside = moved.inside(uv)
        placed.append((new_index[point[inside]], uv[inside]))
    points, intensity = points[kept], sweep[kept, 3]
    coords, features, point_voxel = _voxels(points, intensity)
    return OrdinarySample(
        points=torch.from_numpy(points),
        coords=torch.from_numpy(coords),
        features=torch.from_numpy(features)[:, None],
        point_voxel=torch.from_numpy(point_voxel),
        images=torch.stack(crops),
        segments=torch.stack(segments),
        pairs=(np.concatenate([p for p, _ in placed]), np.concatenate([uv for _, uv in placed])),
    )


def _pairs(
    frames: OfficialFrames, token: str, channel: str, recorded: Float[np.ndarray, "N 3"], size: tuple[int, ...]
) -> tuple[Int[np.ndarray, " P"], Float[np.ndarray, "P 2"]]:
    """Sensor to ego to world to ego to camera, the whole cloud each time."""
    points = copy.deepcopy(recorded)
    for row in frames.motions(token, "LIDAR_TOP"):
        points = points @ _rotation(row).T + np.array(row["translation"])
    sensor, ego = frames.motions(token, channel)
    for row in (ego, sensor):
        points = (points - np.array(row["translation"])) @ _rotation(row)
    depth = points[:, 2]
    with np.errstate(divide="ignore", invalid="ignore"):
        uv = (points @ np.array(sensor["camera_intrinsic"]).T)[:, :2] / depth[:, None]
    mask = (depth > 1) & (uv[:, 0] > 1) & (uv[:, 0] < size[1] - 1) & (uv[:, 1] > 1) & (uv[:, 1] < size[0] - 1)
    return np.flatnonzero(mask), uv[mask]


def _voxels(
    points: Float[np.ndarray, "N 3"], intensity: Float[np.ndarray, " N"]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rho, phi = np.hypot(points[:, 0], points[:, 1]), np.degrees(np.arctan2(points[:, 1], points[:, 0]))
    cells = np.floor(np.stack((rho, phi, points[:, 2]), axis=1) / (0.1, 1.0, 0.1)).astype(np.int32)
    coords, first, inverse = np.unique(cells, axis=0, return_index=True, return_inverse=True)
    return coords, intensity[first], inverse
