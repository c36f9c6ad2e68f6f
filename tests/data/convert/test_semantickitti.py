"""SemanticKITTI: generated in the official layout, and real frames where they are there."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial import cKDTree

from data.convert.base import Converter, Skipped
from data.convert.kitti.semantickitti import CLASS_WORDS, IGNORED_WORDS, SemanticKittiConverter
from data.convert.kitti.sequences import class_table
from data.geometry import project, transform
from data.sample import IGNORE_LABEL, Sample
from data.storage.shard import ShardError
from tests.helpers.layouts.semantickitti import WORDS, write_semantickitti
from tests.helpers.street_logs import CLASS_NAMES

REAL = Path(__file__).parents[3].parent / "shared" / "data" / "semantickitti"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason=f"no real SemanticKITTI scans in {REAL}")


def items_of(converter: Converter, log: str) -> list[Sample | Skipped]:
    return list(converter.frames(log, 0, converter.num_frames(log)))


def samples_of(converter: Converter, log: str) -> list[Sample]:
    items = items_of(converter, log)
    assert all(isinstance(item, Sample) for item in items), items
    return [item for item in items if isinstance(item, Sample)]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, tuple[Sample, ...]]]:
    root = tmp_path_factory.mktemp("semantickitti")
    return root, write_semantickitti(root, ("00", "08", "11"))


def test_points_intensity_labels_and_times(written: tuple[Path, dict[str, tuple[Sample, ...]]]) -> None:
    root, truth = written
    converter = SemanticKittiConverter(source=str(root))
    assert converter.logs() == ("00", "08", "11")
    assert [converter.split_of(log) for log in converter.logs()] == ["train", "val", "test"]
    assert converter.notes() == ()
    for log in ("00", "08"):
        found = samples_of(converter, log)
        assert [sample.key for sample in found] == [f"{log}_{frame:06d}" for frame in range(3)]
        assert [sample.timestamp_us for sample in found] == [0, 100_000, 200_000]
        for sample, true in zip(found, truth[log], strict=True):
            np.testing.assert_array_equal(sample.points_lidar, true.points_lidar)
            np.testing.assert_array_equal(sample.intensity, true.intensity)
            np.testing.assert_array_equal(sample.instances, true.instances)
            assert sample.labels is not None
            assert true.labels is not None
            names = [converter.class_names[label] for label in sample.labels]
            assert names == [WORDS[CLASS_NAMES[label]][1] for label in true.labels]
    assert all(sample.labels is None and sample.instances is None for sample in samples_of(converter, "11"))


def test_points_project_where_the_rig_puts_them(written: tuple[Path, dict[str, tuple[Sample, ...]]]) -> None:
    root, truth = written
    for sample, true in zip(samples_of(SemanticKittiConverter(source=str(root)), "00"), truth["00"], strict=True):
        for camera, expected in zip(sample.cameras, true.cameras, strict=True):
            assert camera.name == expected.name
            assert camera.timestamp_us == sample.timestamp_us
            np.testing.assert_array_equal(camera.image, expected.image)
            uv, depth = project(camera.K, transform(sample.T_cam_lidar(camera), sample.points_lidar))
            uv_true, depth_true = project(expected.K, transform(true.T_cam_lidar(expected), true.points_lidar))
            front = depth_true > 1
            assert front.sum() > 100
            np.testing.assert_allclose(uv[front], uv_true[front], atol=1e-6)
            np.testing.assert_allclose(depth, depth_true, atol=1e-9)


def test_poses_are_those_of_the_lidar_in_its_first_frame(
    written: tuple[Path, dict[str, tuple[Sample, ...]]],
) -> None:
    root, truth = written
    T_world_lidar = [sample.T_world_ego @ sample.T_ego_lidar for sample in truth["08"]]
    for sample, pose in zip(samples_of(SemanticKittiConverter(source=str(root)), "08"), T_world_lidar, strict=True):
        expected = np.linalg.inv(T_world_lidar[0]) @ pose
        np.testing.assert_allclose(sample.T_world_ego @ sample.T_ego_lidar, expected, atol=1e-9)
    assert np.linalg.norm(T_world_lidar[2][:3, 3] - T_world_lidar[0][:3, 3]) > 1, "it drives"


def test_cameras_by_what_is_there_and_by_choice(tmp_path: Path) -> None:
    write_semantickitti(tmp_path, ("00", "01"))
    source = str(tmp_path)
    sequence = tmp_path / "dataset" / "sequences" / "01"
    (sequence / "image_3").rename(tmp_path / "elsewhere")
    converter = SemanticKittiConverter(source=source)
    assert converter.camera_names() == ("image_2",)
    with pytest.raises(ShardError, match=r"looked for image_3/ of KITTI odometry's colour images in .*01, found calib"):
        SemanticKittiConverter(source=source, cameras=("image_3",)).camera_names()
    (sequence / "image_2").rename(tmp_path / "elsewhere2")
    assert converter.camera_names() == ("image_2",), "asked once"
    bare = SemanticKittiConverter(source=source)
    assert bare.camera_names() == ()
    assert "no images: sweeps only" in bare.notes()
    assert samples_of(bare, "00")[0].cameras == ()
    none = SemanticKittiConverter(source=source, cameras=("none",))
    assert samples_of(none, "00")[0].cameras == ()
    with pytest.raises(ValueError, match=r"cameras: got \('image_0',\), expected some of image_2, image_3 \(or none"):
        SemanticKittiConverter(source=source, cameras=("image_0",))


def test_what_is_absent_is_said(tmp_path: Path) -> None:
    write_semantickitti(tmp_path, ("00",))
    folder = tmp_path / "dataset" / "sequences" / "00"
    (folder / "times.txt").unlink()
    (folder / "labels" / "000001.label").unlink()
    converter = SemanticKittiConverter(source=str(folder.parents[1]))  # `dataset` itself serves as well
    found = samples_of(converter, "00")
    assert [sample.timestamp_us for sample in found] == [0, 100_000, 200_000]
    assert [sample.labels is None for sample in found] == [False, True, False]
    assert converter.notes() == ("no times.txt: 10 Hz assumed (00)", "sequence 00: 1 sweeps without labels")
    # Odometry's own poses lie beside the sequences; without any, poses are the identity.
    poses = folder.parents[1] / "poses" / "00.txt"
    poses.parent.mkdir()
    (folder / "poses.txt").rename(poses)
    again = samples_of(converter, "00")
    np.testing.assert_array_equal(again[2].T_world_ego, found[2].T_world_ego)
    poses.unlink()
    assert "no poses: ego poses are identity (00)" in converter.notes()
    assert (samples_of(converter, "00")[2].T_world_ego == np.eye(4)).all()


def test_sequences_that_begin_later_keep_their_lines(tmp_path: Path) -> None:
    write_semantickitti(tmp_path, ("00",))
    folder = tmp_path / "dataset" / "sequences" / "00"
    converter = SemanticKittiConverter(source=str(tmp_path))
    whole = samples_of(converter, "00")
    for kind in ("velodyne", "labels", "image_2", "image_3"):
        next((folder / kind).glob("000000.*")).unlink()
    part = samples_of(converter, "00")
    assert [sample.key for sample in part] == ["00_000001", "00_000002"]
    np.testing.assert_array_equal(part[1].T_world_ego, whole[2].T_world_ego)
    # Texts cut to the same frames: their lines belong to these.
    for name in ("poses.txt", "times.txt"):
        lines = (folder / name).read_text().splitlines()
        (folder / name).write_text("\n".join(lines[1:]) + "\n")
    cut = samples_of(converter, "00")
    np.testing.assert_array_equal(cut[1].T_world_ego, whole[2].T_world_ego)
    assert cut[1].timestamp_us == whole[2].timestamp_us


@pytest.mark.parametrize(
    ("file", "damage", "reason", "detail"),
    [
        ("velodyne/000001.bin", None, "member-missing", "000001.bin"),
        ("velodyne/000001.bin", b"123", "array-broken", "3 bytes are no whole number of 16-byte rows"),
        ("labels/000001.label", b"12345678", "array-broken", "2 labels for"),
        ("labels/000001.label", b"123", "array-broken", "4-byte rows"),
        ("image_2/000001.png", None, "member-missing", "000001.png"),
        ("image_3/000001.png", b"no image", "image-broken", "000001.png"),
    ],
)
def test_damaged_frames_are_named(tmp_path: Path, file: str, damage: bytes | None, reason: str, detail: str) -> None:
    write_semantickitti(tmp_path, ("00",))
    path = tmp_path / "dataset" / "sequences" / "00" / file
    path.unlink() if damage is None else path.write_bytes(damage)
    first, bad, last = items_of(SemanticKittiConverter(source=str(tmp_path)), "00")
    assert isinstance(first, Sample)
    assert isinstance(last, Sample)
    assert isinstance(bad, Skipped)
    assert (bad.reason, bad.key) == (reason, "00_000001")
    assert detail in bad.detail


def test_a_class_of_another_set_is_refused(tmp_path: Path) -> None:
    truth = write_semantickitti(tmp_path, ("00",))
    path = tmp_path / "dataset" / "sequences" / "00" / "labels" / "000000.label"
    np.full(len(truth["00"][0].points_lidar), 22, "<u4").tofile(path)  # SemanticPOSS's ground
    bad, *_ = items_of(SemanticKittiConverter(source=str(tmp_path)), "00")
    assert isinstance(bad, Skipped)
    assert bad.reason == "array-broken"
    assert "of class 22, unknown to this set" in bad.detail


@pytest.mark.parametrize(
    ("name", "text", "reason", "detail"),
    [
        ("calib.txt", None, "calibration-missing", "calib.txt"),
        ("calib.txt", "P2: 1 2 3", "calibration-missing", "Tr: absent"),  # as the archives of images have it
        ("poses.txt", 3 * "1 0 0 0 0 1 0 0 0 0 1\n", "meta-broken", ": 11 numbers, expected 12"),
        ("poses.txt", 3 * "1 0 0 0 0 1 0 0 0 0 1 x\n", "meta-broken", "line 1"),
        ("poses.txt", "", "calibration-missing", "poses of 0 frames, none for frame 000000"),
        ("times.txt", "nan\n1e300\n-inf\n", "meta-broken", "nan s for frame 000000"),
        ("times.txt", "", "meta-broken", "times of 0 frames, none for frame 000000"),
    ],
)
def test_damaged_texts_name_every_frame(tmp_path: Path, name: str, text: str | None, reason: str, detail: str) -> None:
    write_semantickitti(tmp_path, ("00",))
    path = tmp_path / "dataset" / "sequences" / "00" / name
    path.unlink() if text is None else path.write_text(text)
    items = items_of(SemanticKittiConverter(source=str(tmp_path)), "00")
    assert [item.reason for item in items if isinstance(item, Skipped)] == [reason] * 3
    assert isinstance(items[0], Skipped)
    assert detail in items[0].detail


def test_a_damaged_line_is_its_own_frames_loss(tmp_path: Path) -> None:
    write_semantickitti(tmp_path, ("00",))
    folder = tmp_path / "dataset" / "sequences" / "00"
    converter = SemanticKittiConverter(source=str(tmp_path))
    whole = samples_of(converter, "00")
    for name, number in (("poses.txt", 0), ("times.txt", 1)):
        lines = (folder / name).read_text().splitlines()
        lines[number] = ""
        (folder / name).write_text("\n".join(lines) + "\n")
    items = items_of(converter, "00")
    assert [item.detail.split("/")[-1] for item in items if isinstance(item, Skipped)] == [
        "poses.txt, line 1: empty",
        "times.txt, line 2: empty",
    ]
    assert isinstance(items[2], Sample)
    assert items[2].timestamp_us == whole[2].timestamp_us
    np.testing.assert_array_equal(items[2].T_world_ego, whole[2].T_world_ego)


def test_files_that_are_no_frames_are_none(tmp_path: Path) -> None:
    write_semantickitti(tmp_path, ("00",))
    folder = tmp_path / "dataset" / "sequences" / "00" / "velodyne"
    for name in ("notes.bin", "²³.bin", "0" * 20 + "1.bin", ".000004.bin.swp"):
        (folder / name).write_bytes(b"")
    assert len(samples_of(SemanticKittiConverter(source=str(tmp_path)), "00")) == 3


def test_a_wrong_source_says_what_is_there(tmp_path: Path) -> None:
    def refused(source: Path) -> str:
        with pytest.raises(ShardError) as caught:
            SemanticKittiConverter(source=str(source)).logs()
        return str(caught.value)

    assert "is no SemanticKITTI folder: looked for NN/velodyne/NNNNNN.bin" in refused(tmp_path / "none")
    assert "no such folder" in refused(tmp_path / "none")
    (tmp_path / "voxels" / "dataset" / "sequences" / "00" / "voxels").mkdir(parents=True)  # scene completion's archive
    assert "sequences, found 00/" in refused(tmp_path / "voxels")
    (tmp_path / "more" / "sequences" / "22" / "velodyne").mkdir(parents=True)
    assert "NN from 00 to 21" in refused(tmp_path / "more")


def test_stretches_and_copies_are_parts_of_the_whole(written: tuple[Path, dict[str, tuple[Sample, ...]]]) -> None:
    converter = SemanticKittiConverter(source=str(written[0]))
    whole = samples_of(converter, "00")
    copy = pickle.loads(pickle.dumps(dataclasses.replace(converter)))
    (second,) = copy.frames("00", 1, 2)
    assert second.key == whole[1].key
    np.testing.assert_array_equal(second.points_lidar, whole[1].points_lidar)
    np.testing.assert_array_equal(second.T_world_ego, whole[1].T_world_ego)


def test_the_benchmarks_class_map() -> None:
    """19 classes; 34 words in all, each in one place; moving ones with their kind."""
    words = [word for group in CLASS_WORDS.values() for word in group] + list(IGNORED_WORDS)
    assert len(CLASS_WORDS) == 19
    assert len(words) == len(set(words)) == 34
    table = class_table(CLASS_WORDS, IGNORED_WORDS)
    assert (table >= 0).sum() == 34
    names = list(CLASS_WORDS)
    moving = {252: 10, 253: 31, 254: 30, 255: 32, 256: 16, 257: 13, 258: 18, 259: 20}
    assert all(table[there] == table[still] for there, still in moving.items())
    assert table[52] == table[99] == IGNORE_LABEL
    assert names[table[60]] == "road"
    assert names[:2] == ["car", "bicycle"]
    assert names[-1] == "traffic-sign"


# ---- real frames
@needs_real
def test_real_scan_has_the_published_labels() -> None:
    converter = SemanticKittiConverter(source=str(REAL))
    (sample,) = converter.frames("00", 0, 1)
    assert isinstance(sample, Sample)
    assert sample.points_lidar.shape == (124_668, 3)
    assert 0 <= sample.intensity.min() <= sample.intensity.max() <= 1
    assert sample.labels is not None
    counts = np.bincount(sample.labels, minlength=256)
    found = {name: int(counts[index]) for index, name in enumerate(converter.class_names) if counts[index]}
    assert found == {
        "car": 4234,
        "motorcyclist": 88,
        "road": 34228 + 1053,
        "parking": 3268,
        "sidewalk": 26360,
        "building": 18268,
        "fence": 370,
        "vegetation": 27123,
        "trunk": 1192,
        "terrain": 2964,
        "pole": 532,
        "traffic-sign": 102,
    }
    assert counts[IGNORE_LABEL] == 2184 + 4 + 1471 + 1227
    # The road lies 1.7 m below the scanner of KITTI's car, and cars stand on it.
    height = sample.points_lidar[:, 2]
    road = sample.labels == converter.class_names.index("road")
    near = np.linalg.norm(sample.points_lidar[:, :2], axis=1) < 15
    assert abs(np.median(height[road & near]) + 1.73) < 0.1
    assert sample.instances is not None
    assert set(sample.labels[sample.instances > 0].tolist()) == {
        converter.class_names.index("car"),
        converter.class_names.index("motorcyclist"),
    }


@needs_real
def test_real_sweeps_align_by_their_poses() -> None:
    """Standing structure of a sweep lies on that of another, 1.7 m back, only with the poses applied.

    The median to the nearest point is then the scanner's own spacing: 0.10 m; 0.28 m without poses, 0.49 m with the
    inverse.
    """
    samples = samples_of(SemanticKittiConverter(source=str(REAL)), "00")
    assert [len(sample.points_lidar) for sample in samples[:2]] == [124_668, 124_605]
    first, last = samples[0], samples[2]
    points = last.points_lidar[::20].astype(np.float64)
    distance = np.linalg.norm(points, axis=1)
    points = points[(distance > 5) & (distance < 40) & (points[:, 2] > -1.2)]
    T_first_last = np.linalg.inv(first.T_world_ego) @ last.T_world_ego
    assert 1.6 < T_first_last[0, 3] < 1.8, "forward"
    tree = cKDTree(first.points_lidar)
    without = float(np.median(tree.query(points)[0]))
    aligned = float(np.median(tree.query(transform(T_first_last, points))[0]))
    turned = float(np.median(tree.query(transform(np.linalg.inv(T_first_last), points))[0]))
    assert aligned < 0.11
    assert without > 0.25
    assert turned > 0.45
