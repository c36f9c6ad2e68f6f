"""Files for 3D viewers, read back with the libraries' own readers and compared with the set."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor, nn

import launchers.reporting.scene_files as scene_files
from data.convert.logs.converter import McapConverter
from data.sample import Batch, Sample
from data.storage.decode import DecodeSpec
from data.storage.manifest import load_manifest
from data.storage.reader import SampleError, SampleReader
from data.storage.shard import ShardError
from data.views.pairs import point_pixel_pairs
from launchers.cli import main as tandem
from launchers.drawing.scene_description import Scene, log_rows, quaternion, scene_of
from launchers.drawing.scenes import principal_colours
from launchers.training.train import load_run
from tests.helpers.samples import CLASS_NAMES, write_toy_set

LOG, FRAMES = "log-001", 3


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_toy_set(tmp_path_factory.mktemp("scenes") / "toy", num_logs=3, frames_per_log=FRAMES)


@pytest.fixture(scope="module")
def samples(root: str) -> list[Sample]:
    manifest = load_manifest(root)
    reader = SampleReader(manifest)
    return [reader.read(int(row), images="encoded") for row in log_rows(manifest, LOG, None)]


def in_scene(samples: list[Sample]) -> list[Sample]:
    """The samples in the scene's world, whose origin is where the first one was."""
    T = np.eye(4)
    T[:3, 3] = -samples[0].T_world_ego[:3, 3]
    moved = []
    for sample in samples:
        cameras = tuple(dataclasses.replace(view, T_world_ego=T @ view.T_world_ego) for view in sample.cameras)
        moved.append(dataclasses.replace(sample, T_world_ego=T @ sample.T_world_ego, cameras=cameras))
    return moved


def matrix(xyz: Any, xyzw: Any) -> np.ndarray:
    x, y, z, w = np.asarray(xyzw, dtype=np.float64)
    T = np.eye(4)
    T[:3, :3] = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    T[:3, 3] = xyz
    return T


# ---- Foxglove


@pytest.fixture(scope="module")
def drive(root: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("foxglove") / "deeper" / "toy.mcap"
    assert tandem(["inspect", root, "--log", LOG, "--foxglove", str(file)]) == 0
    return file


@pytest.fixture(scope="module")
def messages(drive: Path) -> dict[str, list[tuple[int, Any]]]:
    """Topic -> time in nanoseconds and decoded message of each."""
    from mcap.reader import make_reader
    from mcap_protobuf.decoder import DecoderFactory

    found: dict[str, list[tuple[int, Any]]] = {}
    with drive.open("rb") as opened:
        for schema, channel, message, decoded in make_reader(
            opened, decoder_factories=[DecoderFactory()]
        ).iter_decoded_messages():
            assert schema is not None
            assert (schema.name.split(".")[0], channel.message_encoding) == ("foxglove", "protobuf")
            found.setdefault(channel.topic, []).append((message.log_time, decoded))
    return found


def cloud_of(message: Any) -> np.ndarray:
    kinds = {7: "<f4", 1: "u1"}  # of foxglove.PackedElementField
    fields = message.fields
    layout: dict[str, Any] = {"names": [f.name for f in fields], "formats": [kinds[f.type] for f in fields]}
    layout |= {"offsets": [f.offset for f in fields], "itemsize": message.point_stride}
    return np.frombuffer(message.data, dtype=np.dtype(layout))


def transforms(messages: dict[str, list[tuple[int, Any]]]) -> dict[tuple[str, int], tuple[str, np.ndarray]]:
    """Frame and time -> its parent and the transform to it."""
    found = {}
    for time, message in messages["/tf"]:
        for one in message.transforms:
            t, q = one.translation, one.rotation
            T = matrix((t.x, t.y, t.z), (q.x, q.y, q.z, q.w))
            found[one.child_frame_id, time] = (one.parent_frame_id, T)
            assert one.timestamp.ToNanoseconds() == time
    return found


def test_clouds_are_those_of_the_set(messages: dict[str, list[tuple[int, Any]]], samples: list[Sample]) -> None:
    assert len(messages["/lidar/sweep"]) == len(messages["/lidar/classes"]) == FRAMES
    for (time, message), sample in zip(messages["/lidar/sweep"], samples, strict=True):
        cloud = cloud_of(message)
        assert time == sample.timestamp_us * 1000 == message.timestamp.ToNanoseconds()
        np.testing.assert_array_equal(np.stack([cloud[axis] for axis in "xyz"], axis=1), sample.points_lidar)
        np.testing.assert_array_equal(cloud["intensity"], sample.intensity)
        assert set(cloud["alpha"].tolist()) == {255}
    classes = cloud_of(messages["/lidar/classes"][0][1])
    np.testing.assert_array_equal(classes["label"], samples[0].labels)


def test_transforms_and_calibration_bring_points_to_their_pixels(
    messages: dict[str, list[tuple[int, Any]]], samples: list[Sample]
) -> None:
    """With nothing but what is in the file."""
    found = transforms(messages)
    for number, sample in enumerate(samples):
        time = sample.timestamp_us * 1000
        assert (found["ego", time][0], found["lidar", time][0]) == ("world", "ego")
        T_world_lidar = found["ego", time][1] @ found["lidar", time][1]
        pairs = point_pixel_pairs(sample)
        for c, view in enumerate(sample.cameras):
            at, calibration = messages[f"/camera/{view.name}/calibration"][number]
            K = np.array(calibration.K).reshape(3, 3)
            assert (calibration.height, calibration.width) == view.image_size
            here = pairs.of_camera(c)
            points = sample.points_lidar[pairs.point[here]].astype(np.float64)
            T = np.linalg.inv(found[f"camera/{view.name}", at][1]) @ T_world_lidar
            pixels = (points @ T[:3, :3].T + T[:3, 3]) @ K.T
            annotation = messages[f"/camera/{view.name}/pairs"][number][1].points[0]
            drawn = np.array([(p.x, p.y) for p in annotation.points]).reshape(-1, 2)
            assert len(drawn) == len(points) == len(annotation.outline_colors) > 0
            # Annotations count from the corner of the first pixel, calibrations from its centre.
            np.testing.assert_allclose(drawn - 0.5, pixels[:, :2] / pixels[:, 2:], atol=1e-3)


def test_boxes(messages: dict[str, list[tuple[int, Any]]], samples: list[Sample]) -> None:
    for (_, message), sample in zip(messages["/lidar/boxes"], samples, strict=True):
        (entity,) = message.entities
        assert sample.boxes is not None
        assert (entity.id, entity.frame_id) == ("boxes", "lidar")
        assert [text.text for text in entity.texts] == [CLASS_NAMES[2]] * len(sample.boxes.classes)
        for number, cube in enumerate(entity.cubes):
            center, size, turn = cube.pose.position, cube.size, cube.pose.orientation
            np.testing.assert_allclose((center.x, center.y, center.z), sample.boxes.centers_m[number], atol=1e-5)
            np.testing.assert_allclose((size.x, size.y, size.z), sample.boxes.sizes_m[number], atol=1e-5)
            yaw = 2 * np.arctan2(turn.z, turn.w)
            assert np.cos(yaw - sample.boxes.yaws[number]) == pytest.approx(1)


def test_images_are_copied(messages: dict[str, list[tuple[int, Any]]], samples: list[Sample]) -> None:
    for number, sample in enumerate(samples):
        for view in sample.cameras:
            at, image = messages[f"/camera/{view.name}/image"][number]
            assert (image.data, image.format) == (view.jpeg, "jpeg")
            assert at == view.timestamp_us * 1000
            borders = messages[f"/camera/{view.name}/superpixels"][number][1]
            assert borders.data[:2] == b"\xff\xd8"
            assert borders.data != image.data


def test_the_file_is_a_recording_of_all_samples(drive: Path, samples: list[Sample]) -> None:
    """Also of the first and the last one: the file has the vehicle's pose at each image's time."""
    found = list(McapConverter(source=str(drive), intensity_max=1.0, drives_forward=False).frames("toy", 0, FRAMES))
    for got, sample in zip(found, in_scene(samples), strict=True):
        assert isinstance(got, Sample), got
        assert got.timestamp_us == sample.timestamp_us
        np.testing.assert_array_equal(got.points_lidar, sample.points_lidar)
        np.testing.assert_allclose(got.T_world_ego, sample.T_world_ego, atol=1e-9)
        views = {view.name: view for view in got.cameras}
        for view in sample.cameras:
            np.testing.assert_allclose(
                got.T_cam_lidar(views[f"camera_{view.name}"]), sample.T_cam_lidar(view), atol=1e-9
            )
            assert views[f"camera_{view.name}"].timestamp_us == view.timestamp_us


def without_a_field(message: Any) -> list[str]:
    """Fields of messages, at any depth, that are not there."""
    missing = []
    for field in message.DESCRIPTOR.fields:
        if field.message_type is not None:
            inside = getattr(message, field.name)
            if hasattr(inside, "add"):  # repeated
                missing += [name for one in inside for name in without_a_field(one)]
            else:
                missing += [*([] if message.HasField(field.name) else [field.name]), *without_a_field(inside)]
    return missing


def test_no_field_is_left_out_that_the_schemas_require(messages: dict[str, list[tuple[int, Any]]]) -> None:
    for topic, sent in messages.items():
        for time, message in sent:
            assert without_a_field(message) == [], topic
            if topic.endswith("/pairs"):
                assert message.timestamp.ToNanoseconds() == message.points[0].timestamp.ToNanoseconds() == time


# ---- Rerun


@pytest.mark.skipif(
    importlib.util.find_spec("rerun") is None, reason="rerun-sdk has 170 MB: no part of the tests' extra"
)
def test_rerun_reads_what_was_written(root: str, samples: list[Sample], tmp_path: Path) -> None:
    from rerun.chunk import RrdReader

    file = tmp_path / "toy.rrd"
    assert tandem(["inspect", root, "--log", LOG, "--rerun", str(file)]) == 0
    timed: dict[tuple[str, str], list[tuple[int, Any]]] = {}
    for chunk in RrdReader(str(file)).stream().to_chunks():  # rows of an entity lie in one or several
        batch = chunk.to_record_batch()
        columns = dict(zip(batch.schema.names, batch.columns, strict=True))
        times = columns["time"].cast("int64").to_pylist() if "time" in columns else [0] * batch.num_rows
        for name, column in columns.items():
            timed.setdefault((chunk.entity_path, name), []).extend(zip(times, column.to_pylist(), strict=True))
    rows = {key: [value for _, value in sorted(found, key=lambda row: row[0])] for key, found in timed.items()}
    moved = in_scene(samples)
    assert [at for at, _ in sorted(timed["/world/ego/lidar/sweep", "time"], key=lambda row: row[0])] == [
        sample.timestamp_us * 1000 for sample in samples
    ]
    for number, sample in enumerate(moved):
        positions = np.array(rows["/world/ego/lidar/sweep", "Points3D:positions"][number], dtype=np.float32)
        np.testing.assert_array_equal(positions, sample.points_lidar)
        np.testing.assert_allclose(
            matrix(
                rows["/world/ego", "Transform3D:translation"][number][0],
                rows["/world/ego", "Transform3D:quaternion"][number][0],
            ),
            sample.T_world_ego,
            atol=1e-5,
        )
        assert sample.boxes is not None
        halves = np.array(rows["/world/ego/lidar/boxes", "Boxes3D:half_sizes"][number])
        np.testing.assert_allclose(2 * halves, sample.boxes.sizes_m, atol=1e-5)
        pairs = point_pixel_pairs(sample)
        for c, view in enumerate(sample.cameras):
            place = f"/world/cameras/{view.name}"
            T = matrix(
                rows[place, "Transform3D:translation"][number][0], rows[place, "Transform3D:quaternion"][number][0]
            )
            np.testing.assert_allclose(T, view.T_world_ego @ np.linalg.inv(view.T_cam_ego), atol=1e-5)
            K = np.array(rows[f"{place}/image", "Pinhole:image_from_camera"][number][0]).reshape(3, 3).T  # by columns
            np.testing.assert_allclose(K - [[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]], view.K, atol=1e-4)
            drawn = np.array(rows[f"{place}/image/pairs", "Points2D:positions"][number]).reshape(-1, 2)
            np.testing.assert_allclose(drawn - 0.5, pairs.uv[pairs.of_camera(c)], atol=1e-3)
            assert bytes(rows[f"{place}/image", "EncodedImage:blob"][number][0]) == view.jpeg
            assert view.superpixels is not None
            segments = bytes(rows[f"{place}/image/superpixels", "SegmentationImage:buffer"][number][0])
            found = np.frombuffer(segments, dtype=np.uint16).reshape(view.image_size)
            np.testing.assert_array_equal(found, view.superpixels)


# ---- what goes in


def some_scene(root: str, rows: list[int], reader: SampleReader | None = None) -> Scene:
    manifest = load_manifest(root)
    return scene_of(manifest, reader or SampleReader(manifest), rows, "toy")


def test_the_world_begins_at_the_first_sample_of_the_log(root: str) -> None:
    manifest = load_manifest(root)
    rows = log_rows(manifest, None, 2).tolist()
    assert [str(manifest.logs[int(manifest.sample_log[row])]) for row in rows] == ["log-000"] * 2
    first, second = some_scene(root, rows[::-1]).frames  # by time, however they are given
    assert first.time_us < second.time_us
    np.testing.assert_array_equal(first.T_world_ego, np.eye(4))
    np.testing.assert_array_equal(second.T_world_ego[:3, 3], [1, 0, 0])


def test_quaternions_turn_as_the_matrix_does() -> None:
    rng = np.random.default_rng(0)
    for _ in range(10):
        T = matrix((1, 2, 3), (lambda q: q / np.linalg.norm(q))(rng.normal(size=4)))
        np.testing.assert_allclose(matrix((1, 2, 3), quaternion(T)), T, atol=1e-12)


def test_samples_of_several_logs_and_unknown_logs_are_refused(root: str, tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"of one log.*got log-000, log-001"):
        some_scene(root, [0, FRAMES])
    with pytest.raises(ShardError, match=r"has no log 'log-01'; it has log-000"):
        log_rows(load_manifest(root), "log-01", None)


class _Damaged(SampleReader):
    def read_parts(self, index: int, parts: DecodeSpec) -> Sample:
        if index == 1:
            raise SampleError("checksum", self.manifest.key(index), self.shard_of(index))
        return super().read_parts(index, parts)


def test_damaged_samples_are_left_out_and_told(
    root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(scene_files, "SampleReader", _Damaged)
    assert tandem(["inspect", root, "--foxglove", str(tmp_path / "toy.mcap")]) == 1
    out = capsys.readouterr().out
    assert f"{FRAMES - 1} samples of toy, log-000" in out
    assert "log-000_000001  checksum" in out


@pytest.mark.parametrize(
    ("option", "module", "extra"),
    [("--rerun", "rerun", "[rerun]"), ("--foxglove", "mcap_protobuf.writer", "[foxglove]")],
)
def test_a_library_that_is_missing_is_named_with_its_extra(
    option: str,
    module: str,
    extra: str,
    root: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    assert tandem(["inspect", root, option, str(tmp_path / "file")]) == 2
    assert f"pip install 'tandem-pretrain{extra}'" in capsys.readouterr().err
    assert not (tmp_path / "file").exists()


# ---- runs


class _ByPlace(nn.Module):
    """Embeds a voxel as its cell."""

    def point_embeddings(self, batch: Batch) -> Tensor:
        return batch.voxel_coords[:, 1:].float()


def test_a_runs_features_are_a_cloud_with_one_map_of_colours(
    root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_run("slidr_street", [f"data.shards={root}", "data.augment.min_pairs=1"])
    monkeypatch.setattr(scene_files, "newest_intact", lambda run: run)
    monkeypatch.setattr(scene_files, "load_run_config", lambda _: config)
    monkeypatch.setattr(scene_files, "build_objective", lambda *_: _ByPlace())
    options = argparse.Namespace(log=None, num=2)
    frames = list(scene_files.run_scene(tmp_path, options).frames)
    assert [frame.key for frame in frames] == ["log-002_000000", "log-002_000001"]  # the validation split's log
    fitted = None
    for frame in frames:
        (cloud,) = (cloud for cloud in frame.clouds if cloud.name == "features")
        size = np.array(config.data.voxel.size)
        if config.data.voxel.kind == "cartesian":
            cells = np.floor(cloud.points.astype(np.float64) / size)
        else:
            rho, phi = np.hypot(*cloud.points.T[:2]), np.degrees(np.arctan2(*cloud.points.T[1::-1]))
            cells = np.floor(np.stack([rho, phi, cloud.points[:, 2]], axis=1).astype(np.float64) / size)
        fitted = fitted or principal_colours(cells)
        # A point on the border of two cells may fall into the other one here.
        same = (np.abs(fitted.colours(cells).astype(int) - cloud.colours) <= 3).all(axis=1)
        assert same.mean() > 0.98


def test_a_run_without_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text("{}")
    assert tandem(["inspect", str(tmp_path), "--rerun", str(tmp_path / "x.rrd")]) == 1
    assert "has no checkpoint yet" in capsys.readouterr().err
