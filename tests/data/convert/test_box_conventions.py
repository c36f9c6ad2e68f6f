"""What a stored box means is what each set's official format says: centre, order of sizes, heading, and the details.

Where real frames are at hand, on those: points and images know nothing of anybody's conventions.
"""

from __future__ import annotations

import itertools
import struct
from pathlib import Path

import numpy as np
import pytest
from jaxtyping import Float

from common.protobuf_schema import message_classes
from data.convert import once
from data.convert.base import Converter
from data.convert.kitti.kitti_object import BOX_CATEGORIES, KittiObjectConverter
from data.convert.sunrgbd import SunRgbdConverter
from data.convert.waymo import proto
from data.convert.waymo.converter import WaymoConverter, camera_view
from data.convert.waymo.frame import CAMERAS, RawFrame, WaymoParts, name_of
from data.convert.waymo.labels import BOX_NAMES, lidar_boxes
from data.geometry import project, rigid, transform
from data.sample import IGNORE_LABEL, Boxes, CameraView, Sample

REAL = Path(__file__).parents[3].parent / "shared" / "data"


def needs(folder: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not (REAL / folder).is_dir(), reason=f"no real frames in {REAL / folder}")


def read_all(converter: Converter) -> list[Sample]:
    items = [item for log in converter.logs() for item in converter.frames(log, 0, converter.num_frames(log))]
    assert all(isinstance(item, Sample) for item in items)
    return [item for item in items if isinstance(item, Sample)]


def corners(boxes: Boxes, box: int) -> Float[np.ndarray, "8 3"]:
    """By the contract of `Boxes`: length along the heading, width to its left, height up, about the centre."""
    signs = np.array(list(itertools.product((-0.5, 0.5), repeat=3)))
    along, across, up = (signs * boxes.sizes_m[box]).T
    c, s = np.cos(boxes.yaws[box]), np.sin(boxes.yaws[box])
    return np.stack([along * c - across * s, along * s + across * c, up], axis=1) + boxes.centers_m[box]


def rectangle_of(sample: Sample, camera: CameraView, box: int) -> Float[np.ndarray, " 4"] | None:
    """Left, top, right, bottom of the projected corners, cut at the image; None where one is behind the camera."""
    assert sample.boxes is not None
    uv, depth = project(camera.K, transform(sample.T_cam_lidar(camera), corners(sample.boxes, box)))
    if depth.min() < 0.5:
        return None
    height, width = camera.image_size
    return np.clip([*uv.min(axis=0), *uv.max(axis=0)], 0, [width - 1, height - 1, width - 1, height - 1])


def overlap(a: Float[np.ndarray, " 4"], b: Float[np.ndarray, " 4"]) -> float:
    def area(left: float, top: float, right: float, bottom: float) -> float:
        return max(right - left, 0) * max(bottom - top, 0)

    both = area(max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3]))
    return both / (area(*a) + area(*b) - both)


# ---- KITTI object
@pytest.fixture(scope="module")
def kitti_object() -> list[Sample]:
    return read_all(KittiObjectConverter(source=str(REAL / "kitti_object"), val_every=0))


@needs("kitti_object")
def test_kitti_boxes_are_their_label_lines_again(kitti_object: list[Sample]) -> None:
    """From the LiDAR frame back to the camera's: h w l, bottom centre, rotation_y, alpha, and all that is copied."""
    kinds = set()
    for sample in kitti_object:
        folder = REAL / "kitti_object" / "training"
        label, calibration = (folder / kind / f"{sample.key}.txt" for kind in ("label_2", "calib"))
        lines = [line.split() for line in label.read_text().splitlines()]
        calib = dict(line.split(":", 1) for line in calibration.read_text().splitlines() if line)
        R0, Tr = (np.array(calib[name].split(), dtype=float) for name in ("R0_rect", "Tr_velo_to_cam"))
        R = R0.reshape(3, 3) @ Tr.reshape(3, 4)[:, :3]
        t = R0.reshape(3, 3) @ Tr.reshape(3, 4)[:, 3]
        objects = [line for line in lines if line[0] != "DontCare"]
        boxes, (camera,) = sample.boxes, sample.cameras
        assert boxes is not None
        assert len(boxes.classes) == len(objects)
        for box, (kind, *words) in enumerate(objects):
            stated = np.array(words, dtype=float)
            kinds.add(kind)
            assert BOX_CATEGORIES[boxes.categories[box]] == kind
            assert (boxes.classes[box] == IGNORE_LABEL) == (kind not in ("Car", "Pedestrian", "Cyclist"))
            length, width, height = boxes.sizes_m[box]
            np.testing.assert_allclose([height, width, length], stated[7:10], atol=1e-12)
            bottom = R @ boxes.centers_m[box] + t + [0, height / 2, 0]
            np.testing.assert_allclose(bottom, stated[10:13], atol=1e-6)
            heading = R @ [np.cos(boxes.yaws[box]), np.sin(boxes.yaws[box]), 0]
            turn = np.arctan2(-heading[2], heading[0]) - stated[13]
            # The tilt between camera and LiDAR is not kept.
            assert abs(np.arctan2(np.sin(turn), np.cos(turn))) < 0.02
            assert boxes.truncations[box] == stated[0]
            assert boxes.occlusions[box] == stated[1]
            assert boxes.alphas[box] == stated[2]
            assert boxes.image_boxes_px[box].tolist() == stated[3:7].tolist()
            alpha = stated[13] - np.arctan2(stated[10], stated[12])
            assert abs(np.angle(np.exp(1j * (alpha - boxes.alphas[box])))) < 0.1
        cares = [[float(word) for word in line[4:8]] for line in lines if line[0] == "DontCare"]
        assert camera.ignored_px.tolist() == cares
    assert kinds == {"Car", "Cyclist", "Pedestrian", "Misc", "Truck", "Van"}


@needs("kitti_object")
def test_kitti_boxes_project_onto_their_2d_boxes(kitti_object: list[Sample]) -> None:
    """People drew the one in the image and the other in the cloud."""
    overlaps = []
    for sample in kitti_object:
        assert sample.boxes is not None
        for box, drawn in enumerate(sample.boxes.image_boxes_px):
            if sample.boxes.truncations[box] == 0:
                projected = rectangle_of(sample, sample.cameras[0], box)
                assert projected is not None
                overlaps.append(overlap(projected, drawn))
    assert len(overlaps) > 20
    assert np.median(overlaps) > 0.95
    assert min(overlaps) > 0.6


# ---- Waymo
@pytest.fixture(scope="module")
def waymo() -> tuple[Sample, dict[tuple[int, str], Float[np.ndarray, " 4"]]]:
    """The real frame without its points, and the set's own projection of each box: (box, camera) to rectangle."""
    converter = WaymoConverter(source=str(REAL / "waymo"))
    parts = WaymoParts(lasers=(), num_returns=1, cameras=tuple(CAMERAS), segmentation=False)
    ((_, segment),) = converter._segments.values()
    (frame,) = segment.frames((0,), parts)
    assert isinstance(frame, RawFrame)
    assert frame.boxes is not None
    T_ego_lidar = rigid(np.eye(3), frame.top.T_vehicle_laser[:3, 3])
    sample = Sample(
        key="real",
        log="real",
        timestamp_us=frame.timestamp_us,
        points_lidar=np.zeros((1, 3)),
        intensity=np.zeros(1),
        T_ego_lidar=T_ego_lidar,
        T_world_ego=frame.T_world_vehicle,
        cameras=tuple(
            camera_view(name, frame.cameras[name], frame.camera_calibrations[name], "real", undistort=False)
            for name in CAMERAS
        ),
        boxes=lidar_boxes(frame, T_ego_lidar, BOX_NAMES),
    )
    # What the converter has no use for: the rectangles that the publishers made of the same boxes.
    fields = proto._SCHEMA["Frame"] + " projected_lidar_labels=9:CameraLabels*"
    schema = {**proto._SCHEMA, "CameraLabels": "name=1:int32 labels=2:Label*", "Frame": fields}
    message = message_classes("tandem.test", schema)["Frame"]
    data = (REAL / "waymo" / "pvps_data_one_frame.tfrecord").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    drawn = {}
    for view in message.FromString(data[12 : 12 + length]).projected_lidar_labels:
        camera = name_of(CAMERAS, view.name)
        for label in view.labels:
            box = frame.boxes.ids.index(label.id.removesuffix(f"_{camera.upper()}"))
            middle, half = (label.box.center_x, label.box.center_y), (label.box.length / 2, label.box.width / 2)
            drawn[box, camera] = np.concatenate([np.subtract(middle, half), np.add(middle, half)])
    return sample, drawn


@needs("waymo")
def test_waymo_boxes_project_onto_the_publishers_rectangles(waymo: tuple[Sample, dict]) -> None:
    """Within what lens distortion and the shutter, which those heed, move them."""
    sample, drawn = waymo
    overlaps = []
    for camera in sample.cameras:
        for (box, name), rectangle in drawn.items():
            projected = rectangle_of(sample, camera, box) if name == camera.name else None
            if projected is not None and min(rectangle[2:] - rectangle[:2]) > 20:
                overlaps.append(overlap(projected, rectangle))
    assert len(overlaps) > 40
    assert np.median(overlaps) > 0.95


@needs("waymo")
def test_waymo_difficulty_is_what_people_set(waymo: tuple[Sample, dict]) -> None:
    boxes = waymo[0].boxes
    assert boxes is not None
    assert set(boxes.difficulties.tolist()) == {2, -1}
    assert (boxes.num_points[boxes.difficulties == 2] > 5).any(), "level 2 beside what few points say"
    assert np.bincount(boxes.categories).tolist() == [37, 12, 25, 1]


# ---- ONCE
@pytest.mark.parametrize(
    ("row", "center", "yaw"),
    [
        ([0.0, -10, 0.5, 4, 2, 1.5, -np.pi / 2], [10.0, 0, 0.5], 0.0),
        ([5.0, 0, 0, 4, 2, 1.5, 0.0], [0.0, 5, 0], np.pi / 2),
        ([0.0, 7, 0, 4, 2, 1.5, np.pi / 2], [-7.0, 0, 0], np.pi),
    ],
    ids=["ahead, heading away", "left, heading left", "behind, heading back"],
)
def test_once_boxes_by_hand(row: list[float], center: list[float], yaw: float) -> None:
    """Its x is to the left, its y to the back; heading from its x counter-clockwise; l w h about the centre."""
    annotation = {"names": ["Bus"], "boxes_3d": [row], "num_points_in_gt": [17]}
    boxes = once.read_boxes(Path("made up"), {"frame_id": "1", "annos": annotation})
    assert boxes is not None
    np.testing.assert_allclose(boxes.centers_m, [center], atol=1e-9)
    np.testing.assert_allclose(np.exp(1j * boxes.yaws), [np.exp(1j * yaw)], atol=1e-9)
    assert boxes.sizes_m.tolist() == [[4, 2, 1.5]]
    assert boxes.num_points.tolist() == [17]
    assert [once.CLASS_NAMES[1:][number] for number in boxes.categories] == ["Bus"]


# ---- SUN RGB-D
@needs("sunrgbd")
def test_sunrgbd_boxes_project_onto_their_2d_boxes() -> None:
    """Beds and tables by their whole outline; what is drawn in the image is often only the part that shows."""
    overlaps = []
    for sample in read_all(SunRgbdConverter(source=str(REAL / "sunrgbd" / "sunrgbd_trainval"))):
        boxes, (camera,) = sample.boxes, sample.cameras
        assert boxes is not None
        for box, drawn in enumerate(boxes.image_boxes_px):
            projected = rectangle_of(sample, camera, box)
            if projected is not None:
                overlaps.append(overlap(projected, drawn))
        named = boxes.classes != IGNORE_LABEL
        assert (boxes.categories[named] == boxes.classes[named] - 1).all()
        assert (boxes.categories[~named] == -1).all()
    assert len(overlaps) > 8
    assert np.median(overlaps) > 0.7


@needs("sunrgbd")
def test_sunrgbd_beds_are_longer_along_their_heading() -> None:
    """The head of a bed stands against a wall: its heading looks into the room, towards the camera."""
    for sample in read_all(SunRgbdConverter(source=str(REAL / "sunrgbd" / "sunrgbd_trainval"), cameras=("none",))):
        boxes = sample.boxes
        assert boxes is not None
        for box in np.flatnonzero(boxes.categories == 0):
            length, width, _ = boxes.sizes_m[box]
            assert length > width
            assert np.cos(boxes.yaws[box]) < -0.9
