"""The procedural street world: labelled LiDAR sweeps and camera images that need no download and no licence.

A log is one world with its own street, houses, light, materials and traffic, through which the ego drives. LiDAR and
cameras see the same triangles by ray casting, each at its own time, exactly calibrated. Several classes are alike in
shape and reflectivity and differ in looks (road, parking, sidewalk, terrain; signs and what else hangs on poles; truck
and bus; board fence and hedge), so that images can teach a LiDAR network something. The ground is flat but for kerbs.

A log depends on (config, log index) only, not on process, thread count or the other logs. `benchmarks/synthetic.py`
measures the cost.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int

from data.geometry import transform, yaw_rotation
from data.sample import Boxes, CameraView, Sample
from data.street.atlas import build_atlas
from data.street.camera import render
from data.street.config import StreetConfig
from data.street.layout import draw_world
from data.street.lidar import Sweep, scan
from data.street.lighting import draw_light
from data.street.motion import camera_mount, ego_pose, intrinsics, lidar_mount
from data.street.scene import StreetStage, Viewer
from data.street.textures import paint_layers
from data.street.views import seen_boxes

_LOG_START_US = 3_600_000_000
"""Logs start an hour apart, so that timestamps are unique in a set."""


def generate_log(config: StreetConfig, log_index: int) -> Iterator[Sample]:
    """All samples of one log in order of time, complete but for superpixels.

    Raises:
        ValueError: if there is no such log.
    """
    name = config.log_name(log_index)
    renderer = LogRenderer(config, log_index)
    return (renderer.sample(name, frame) for frame in range(config.frames_per_log))


class LogRenderer:
    """One world and what is needed to take samples of it; frames may be taken in any order.

    Attributes:
        world: geometry and objects.
    """

    def __init__(self, config: StreetConfig, log_index: int) -> None:
        self.config = config
        self.log_index = log_index
        self.world = draw_world(config, self._rng(0))
        self.light = draw_light(self._rng(1))
        self.atlas = build_atlas(paint_layers(self._rng(2)))
        self.stage = StreetStage(self.world)

    def sample(self, log: str, frame: int) -> Sample:
        """One sample."""
        time_s = frame / self.config.frame_rate_hz
        start_us = _LOG_START_US * (self.log_index + 1)
        sweep = self.sweep(frame)
        views = tuple(self.view(frame, camera) for camera in range(len(self.config.cameras.names)))
        seen_by = self.config.cameras.boxes_camera
        return Sample(
            key=f"{log}-{frame:05d}",
            log=log,
            timestamp_us=start_us + round(time_s * 1e6),
            points_lidar=sweep.points_lidar,
            intensity=sweep.intensity,
            T_ego_lidar=lidar_mount(self.config.lidar),
            T_world_ego=ego_pose(self.world.street, self.world.drive, time_s),
            cameras=views,
            labels=sweep.labels,
            instances=sweep.instances,
            boxes=self.boxes(frame, sweep, None if seen_by is None else views[seen_by]),
        )

    def sweep(self, frame: int) -> Sweep:
        """The LiDAR's part of a sample."""
        time_s = frame / self.config.frame_rate_hz
        return scan(self.stage, self.atlas, self.config.lidar, time_s, self._rng(3, frame))

    def view(self, frame: int, camera: int) -> CameraView:
        """One camera's part of a sample, at the camera's own time."""
        cameras = self.config.cameras
        time_s = frame / self.config.frame_rate_hz + cameras.time_offsets_s[camera]
        T_world_ego = ego_pose(self.world.street, self.world.drive, time_s)
        T_cam_ego = camera_mount(cameras, camera)
        T_world_cam = T_world_ego @ np.linalg.inv(T_cam_ego)
        rng = self._rng(4, frame, camera)
        x, y = T_world_cam[:2, 2]  # the optical axis
        half_angle = math.radians(cameras.horizontal_fov_deg / 2)
        viewer = Viewer(xy=T_world_cam[:2, 3], yaw=math.atan2(y, x), half_angle=half_angle)
        moment = self.stage.at(time_s, viewer)
        rendering = render(moment, self.atlas, self.light, cameras, T_world_cam, rng)
        return CameraView(
            name=cameras.names[camera],
            image_size=cameras.image_size,
            K=intrinsics(cameras),
            T_cam_ego=T_cam_ego,
            T_world_ego=T_world_ego,
            timestamp_us=_LOG_START_US * (self.log_index + 1) + round(time_s * 1e6),
            image=rendering.image,
            depth_m=rendering.depth_m,
            labels=rendering.labels if cameras.labels else None,
        )

    def boxes(self, frame: int, sweep: Sweep, seen_by: CameraView | None = None) -> Boxes:
        """Boxes of the objects that the sweep met, in the LiDAR frame; velocities are over ground.

        Args:
            frame: of the log.
            sweep: of that frame.
            seen_by: a camera's view of it, with the depth; None: what a camera sees of the boxes is left out.
        """
        time_s = frame / self.config.frame_rate_hz
        met, counts = np.unique(sweep.instances[sweep.instances > 0].astype(np.int64), return_counts=True)
        placed = self._placed(met - 1, time_s)
        T_world_lidar = ego_pose(self.world.street, self.world.drive, time_s) @ lidar_mount(self.config.lidar)
        T_lidar_world = np.linalg.inv(T_world_lidar)
        yaws, level = placed[:, 6], np.zeros(len(met))
        heading = np.stack([np.cos(yaws), np.sin(yaws), level], axis=1) @ T_lidar_world[:3, :3].T
        velocity = np.pad(self.world.things.velocities(time_s)[met - 1], ((0, 0), (0, 1))) @ T_lidar_world[:3, :3].T
        labels = self.world.things.labels[met - 1]
        boxes = Boxes(
            centers_m=transform(T_lidar_world, placed[:, :3]),
            sizes_m=placed[:, 3:6],
            yaws=np.arctan2(heading[:, 1], heading[:, 0]),
            velocities_mps=velocity[:, :2],
            classes=labels,
            track_ids=met,
            num_points=counts.astype(np.int64),
            categories=labels,
        )
        if seen_by is None:
            return boxes
        cameras = self.config.cameras
        then_s = time_s + cameras.time_offsets_s[cameras.names.index(seen_by.name)]
        return dataclasses.replace(
            boxes, **vars(seen_boxes(self._placed(met - 1, then_s), seen_by)), camera=seen_by.name
        )

    def _placed(self, rows: Int[np.ndarray, " n"], time_s: float) -> Float[np.ndarray, "n 7"]:
        """Centre, size and heading in the world of some objects."""
        things = self.world.things
        positions, yaws = (column[rows] for column in things.poses(time_s))
        turns = np.stack([yaw_rotation(float(yaw)) for yaw in yaws]) if len(rows) else np.empty((0, 3, 3))
        centers = positions + np.einsum("nij,nj->ni", turns, things.centers_m[rows])
        return np.concatenate([centers, things.sizes_m[rows], yaws[:, None]], axis=1)

    def _rng(self, *stream: int) -> np.random.Generator:
        """An own stream of random numbers for each part, so that one part's settings do not disturb another."""
        return np.random.default_rng([self.config.seed, self.log_index, *stream])
