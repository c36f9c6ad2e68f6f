"""Calibrations of cameras: each model, regions, binning, rectified images, and what is refused by name."""

from __future__ import annotations

import numpy as np
import pytest

from data.convert.logs.base import CameraInfo, Message
from data.convert.logs.cameras import is_rectified, read_camera_info
from data.geometry import rigid, yaw_rotation
from data.storage.damage import DamagedError
from tests.helpers.log_messages import STAMP_NS, from_json, header, made, protobuf, recorded, ros1, topic

K = np.array([[500.0, 0, 319.5], [0, 510.0, 239.5], [0, 0, 1]])
P = np.array([[450.0, 0, 310.0, 0], [0, 450.0, 230.0, 0], [0, 0, 1, 0]])
FIVE = [-0.3, 0.1, 0.001, -0.002, 0.01]
EIGHT = [*FIVE, 0.2, -0.1, 0.03]


def info(rectified: bool = False, roi: dict[str, object] | None = None, **changed: object) -> CameraInfo:
    region = dict.fromkeys(("x_offset", "y_offset", "height", "width"), 0)
    fields = {
        **{"header": header("/camera_optical"), "height": 480, "width": 640, "distortion_model": "plumb_bob"},
        **{"d": np.array(FIVE), "k": K.reshape(-1), "r": np.eye(3).reshape(-1), "p": P.reshape(-1)},
        **{"binning_x": 0, "binning_y": 0},
        "roi": made("sensor_msgs/msg/RegionOfInterest", **{**region, "do_rectify": False, **(roi or {})}),
    }
    content = made("sensor_msgs/msg/CameraInfo", **{**fields, **changed})
    return read_camera_info(*recorded(content, "/camera/camera_info"), rectified=rectified)


def refused(rectified: bool = False, **changed: object) -> str:
    with pytest.raises(DamagedError) as error:
        info(rectified, **changed)
    assert f"/camera/camera_info at {STAMP_NS} ns" in error.value.detail
    return error.value.detail


@pytest.mark.parametrize(
    ("name", "coefficients", "model", "expected"),
    [
        ("plumb_bob", FIVE, "pinhole", FIVE),
        ("plumb_bob", FIVE[:4], "pinhole", FIVE[:4]),
        ("plumb_bob", [0.0] * 5, "pinhole", None),
        ("plumb_bob", [], "pinhole", None),
        ("rational_polynomial", EIGHT, "pinhole", EIGHT),
        ("rational_polynomial", [*EIGHT, 0, 0, 0, 0], "pinhole", EIGHT),
        ("equidistant", FIVE[:4], "fisheye", FIVE[:4]),
        ("equidistant", [0.0] * 4, "fisheye", [0.0] * 4),
        ("", [], "pinhole", None),
        ("", [0.0] * 5, "pinhole", None),
    ],
)
def test_each_model(name: str, coefficients: list[float], model: str, expected: list[float] | None) -> None:
    camera = info(distortion_model=name, d=np.array(coefficients))
    assert (camera.stamp_ns, camera.frame) == (STAMP_NS, "camera_optical")
    assert (camera.model, camera.image_size, camera.T_cam_frame) == (model, (480, 640), None)
    np.testing.assert_array_equal(camera.K, K)
    if expected is None:
        assert camera.distortion is None
    else:
        np.testing.assert_array_equal(camera.distortion, expected)


@pytest.mark.parametrize(
    ("name", "coefficients", "said"),
    [
        ("double_sphere", [0.1, 0.5], "distortion_model 'double_sphere' (double sphere) is not undistorted here"),
        ("ds", [0.1, 0.5], "'ds' (double sphere)"),
        ("omni", [0.1], "'omni' (omnidirectional (Mei))"),
        ("thin_prism", [0.1] * 12, "'thin_prism' (thin prism)"),
        ("thin_prism_fisheye", [0.1] * 8, "'thin_prism_fisheye' (thin prism)"),
        ("my_model", [0.0], "'my_model' is not undistorted here: expected plumb_bob, rational_polynomial, equidistant"),
        ("", [0.1, 0, 0, 0], "distortion_model is empty, D is [0.1, 0.0, 0.0, 0.0]: of which model?"),
        ("plumb_bob", EIGHT, "D of plumb_bob has 8 numbers"),
        ("rational_polynomial", [*EIGHT, 0.1, 0, 0, 0], "D of rational_polynomial has 12 numbers"),
        ("equidistant", FIVE, "D of equidistant has 5 numbers"),
    ],
)
def test_other_models_are_refused_by_name(name: str, coefficients: list[float], said: str) -> None:
    assert said in refused(distortion_model=name, d=np.array(coefficients))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"k": np.zeros(9)}, "K is zeros, the size 480x640 (height x width): the camera is not calibrated"),
        ({"height": 0}, "the size 0x640 (height x width): the camera is not calibrated"),
        ({"k": np.full(9, np.nan)}, "expected finite numbers"),
        ({"height": 240, "width": 320}, "K is that of another size"),
        ({"k": np.diag([-500.0, 500, 1]).reshape(-1)}, "expected [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]"),
        ({"roi": {"x_offset": 400, "width": 300, "height": 10}}, "roi of 10x300 (height x width) from (400, 0) on"),
    ],
)
def test_cameras_without_a_usable_calibration_say_why(changed: dict[str, object], said: str) -> None:
    assert said in refused(**changed)


def test_a_region_and_binning_move_what_they_move() -> None:
    """Pixel (u, v) of the published image is the mean of a block of the sensor's, which a ray meets in its middle."""
    region = {"x_offset": 100, "y_offset": 40, "width": 440, "height": 400}
    camera = info(roi=region, binning_x=2, binning_y=4)
    assert camera.image_size == (100, 220)
    for full, binned in (((100.5, 41.5), (0, 0)), ((102.5, 45.5), (1, 1)), ((538.5, 437.5), (219, 99))):
        ray = np.linalg.solve(K, [*full, 1.0])
        np.testing.assert_allclose(camera.K @ ray, [*binned, 1.0], atol=1e-9)
    np.testing.assert_array_equal(camera.distortion, FIVE)  # of the ray: no pixels in it
    assert info(roi={"width": 640, "height": 480, "do_rectify": True}).image_size == (480, 640)


# ---- rectified
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("/camera/image_rect", True),
        ("/camera/image_rect_color/compressed", True),
        ("image_rect", True),
        ("/camera/image_raw", False),
        ("/camera/my_image_rectangle", False),
    ],
)
def test_rectified_topics_are_known_by_their_names(name: str, expected: bool) -> None:
    assert is_rectified(name) is expected


def test_rectified_images_have_p_and_no_distortion() -> None:
    camera = info(rectified=True, distortion_model="double_sphere", d=np.array([0.1, 0.5]))
    np.testing.assert_array_equal(camera.K, P[:, :3])
    assert (camera.model, camera.distortion, camera.T_cam_frame) == ("pinhole", None, None)
    binned = info(rectified=True, binning_x=2, binning_y=2)
    np.testing.assert_allclose(binned.K, [[225, 0, 154.75], [0, 225, 114.75], [0, 0, 1]])
    assert binned.image_size == (240, 320)


def test_rectified_images_of_a_turned_camera_say_how() -> None:
    turn = yaw_rotation(0.01)
    camera = info(rectified=True, r=turn.reshape(-1))
    assert camera.T_cam_frame is not None
    np.testing.assert_allclose(camera.T_cam_frame, rigid(turn, np.zeros(3)), atol=1e-12)
    assert info(rectified=True, r=np.zeros(9)).T_cam_frame is None


def test_rectified_images_that_are_not_said_enough_of_are_refused() -> None:
    second = P.copy()
    second[0, 3] = -54.0
    assert "nobody says whether 'camera_optical' is that camera" in refused(True, p=second.reshape(-1))
    assert "P is zeros, which rectified images need" in refused(True, p=np.zeros(12))
    assert "expected a rotation" in refused(True, r=np.full(9, 0.5))
    region = {"x_offset": 100, "y_offset": 40, "width": 440, "height": 400, "do_rectify": True}
    assert "where the rectified part lies is not said" in refused(True, roi=region)


# ---- other spellings
def test_ros_1_and_foxglove_say_the_same() -> None:
    entries = {"D": FIVE, "K": K.reshape(-1).tolist(), "R": np.eye(3).reshape(-1).tolist(), "P": P.reshape(-1).tolist()}
    plain = {"height": 480, "width": 640, "distortion_model": "plumb_bob"}
    region = {**dict.fromkeys(("x_offset", "y_offset", "height", "width"), 0), "do_rectify": False}
    stamp = {"sec": STAMP_NS // 10**9, "nanosec": STAMP_NS % 10**9}
    old = {
        "header": {"seq": 1, "stamp": stamp, "frame_id": "/camera_optical"},
        **plain,
        **{name: np.array(values) for name, values in entries.items()},
        **{"binning_x": 0, "binning_y": 0, "roi": region},
    }
    json_stamp = {"sec": STAMP_NS // 10**9, "nsec": STAMP_NS % 10**9}
    json_fields = {"timestamp": json_stamp, "frame_id": "camera_optical", **plain, **entries}
    from foxglove_schemas_protobuf.CameraCalibration_pb2 import CameraCalibration

    message = CameraCalibration(frame_id="camera_optical", **plain, **entries)
    message.timestamp.FromNanoseconds(STAMP_NS)
    for at in (
        ros1("sensor_msgs/msg/CameraInfo", old),
        from_json("foxglove.CameraCalibration", json_fields),
        protobuf(message),
    ):
        camera = read_camera_info(*at)
        assert (camera.stamp_ns, camera.frame, camera.image_size) == (STAMP_NS, "camera_optical", (480, 640))
        np.testing.assert_array_equal(camera.K, K)
        np.testing.assert_array_equal(camera.distortion, FIVE)


def test_messages_of_other_fields_name_the_missing_one() -> None:
    at = from_json("foxglove.CameraCalibration", {"timestamp": {"sec": 1, "nsec": 0}, "frame_id": "c", "width": 5})
    with pytest.raises(DamagedError, match="no field height; it has timestamp, frame_id, width"):
        read_camera_info(*at)
    wrong = Message(topic="/points", written_ns=0, content=None)
    with pytest.raises(DamagedError, match=r"/points holds sensor_msgs/msg/PointCloud2, expected sensor_msgs/msg/Cam"):
        read_camera_info(topic("sensor_msgs/msg/PointCloud2", "/points"), wrong)
