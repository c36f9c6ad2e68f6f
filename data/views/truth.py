"""What is known of a frame's objects, for whoever judges detections."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from data.sample import Boxes, CameraView, Sample


@dataclass(frozen=True, kw_only=True)
class FrameTruth:
    """One frame without its points and pixels: all labelled boxes, and where they are.

    Attributes:
        index: row of the frame in its set's manifest.
        key: of the sample.
        log: name of the drive.
        timestamp_us: of the sweep.
        boxes: as stored, in the recorded LiDAR frame: of all classes, those of IGNORE_LABEL included, also outside any
            grid and without points; None where nobody has labelled the frame.
        cameras: calibration of all cameras, in the set's order.
        T_ego_lidar: extrinsics.
        T_world_ego: ego pose at the sweep's time.
        token: see `Sample`.
    """

    index: int
    key: str
    log: str
    timestamp_us: int
    boxes: Boxes | None
    cameras: tuple[CameraView, ...]
    T_ego_lidar: Float[np.ndarray, "4 4"]
    T_world_ego: Float[np.ndarray, "4 4"]
    token: str | None = None

    @classmethod
    def of(cls, sample: Sample, index: int) -> FrameTruth:
        """What a sample tells."""
        bare: dict[str, Any] = {"image": None, "jpeg": None, "superpixels": None, "depth_m": None, "labels": None}
        return cls(
            index=index,
            key=sample.key,
            log=sample.log,
            timestamp_us=sample.timestamp_us,
            boxes=sample.boxes,
            cameras=tuple(dataclasses.replace(camera, **bare) for camera in sample.cameras),
            T_ego_lidar=sample.T_ego_lidar,
            T_world_ego=sample.T_world_ego,
            token=sample.token,
        )

    @property
    def boxes_camera(self) -> CameraView | None:
        """The camera that 2D boxes, truncations, occlusions and observation angles are about; None without cameras."""
        name = None if self.boxes is None else self.boxes.camera
        return next((camera for camera in self.cameras if name in (None, camera.name)), None)

    def T_cam_lidar(self, camera: CameraView) -> Float[np.ndarray, "4 4"]:  # noqa: N802
        """See `Sample.T_cam_lidar`."""
        T_cam_world = camera.T_cam_ego @ np.linalg.inv(camera.T_world_ego)
        return np.asarray(T_cam_world @ self.T_world_ego @ self.T_ego_lidar)
