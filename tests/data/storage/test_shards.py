"""Shards: what is written is read, by us and by plain webdataset; every kind of damage has its name."""

import dataclasses
import gc
import gzip
import hashlib
import io
import json
import os
import pickle
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import webdataset as wds

from data.preparing.verify import verify
from data.sample import IGNORE_LABEL
from data.storage.damage import REASONS, DamagedError
from data.storage.decode import DecodeSpec, decode_sample, jpeg_size
from data.storage.encode import CodecConfig, check_sample, count_pairs, encode_sample
from data.storage.manifest import Manifest, SetInfo, load_manifest
from data.storage.manifest_writer import write_manifest
from data.storage.reader import SampleError, SampleReader
from data.storage.run_lengths import decode_runs, encode_runs
from data.storage.shard import ShardError
from data.storage.shard_writer import ShardWriter, join_manifest, write_shard
from data.storage.superpixel_record import SuperpixelRecord
from tests.data.storage.test_sample_checks import WRONG
from tests.helpers.samples import CAMERA_NAMES, CLASS_NAMES, full_sample, make_sample, toy_log, write_toy_set


@pytest.fixture
def toy_root(tmp_path):
    return write_toy_set(tmp_path / "set")


@pytest.fixture
def toy(toy_root) -> Manifest:
    return load_manifest(toy_root)


# ---- contents
def test_samples_come_back_as_written(toy):
    reader = SampleReader(toy)
    for number in range(3):
        for frame, (index, expected) in enumerate(
            zip(toy.indices(log=f"log-{number:03d}"), toy_log(number, 4), strict=True)
        ):
            got = reader.read(int(index), depth=True)
            assert (got.key, got.log, got.timestamp_us) == (expected.key, expected.log, 1_000_000 + 100_000 * frame)
            for name in ("points_lidar", "intensity", "T_ego_lidar", "T_world_ego", "labels", "instances"):
                np.testing.assert_array_equal(getattr(got, name), getattr(expected, name))
                assert getattr(got, name).flags.writeable, "torch.from_numpy warns of read-only arrays"
            for field in dataclasses.fields(expected.boxes):
                np.testing.assert_array_equal(getattr(got.boxes, field.name), getattr(expected.boxes, field.name))
            for mine, theirs in zip(got.cameras, expected.cameras, strict=True):
                assert (mine.name, mine.image_size) == (theirs.name, theirs.image_size)
                assert mine.timestamp_us == theirs.timestamp_us
                for name in ("K", "T_cam_ego", "T_world_ego", "superpixels"):
                    np.testing.assert_array_equal(getattr(mine, name), getattr(theirs, name))
                np.testing.assert_allclose(mine.depth_m, theirs.depth_m, atol=0.006)
                error = np.abs(mine.image.astype(int) - theirs.image.astype(int)).mean()
                swapped = np.abs(mine.image[..., ::-1].astype(int) - theirs.image.astype(int)).mean()
                assert error < 10 < swapped, "channels are swapped"


def test_only_what_is_asked_for_is_decoded(toy):
    sample = SampleReader(toy).read(0, images=False, superpixels=False, labels=False)
    assert sample.labels is sample.instances is sample.boxes is None
    assert all(camera.image is None and camera.superpixels is None for camera in sample.cameras)
    assert all(camera.depth_m is None for camera in SampleReader(toy).read(0).cameras)


def test_a_set_without_labels_and_superpixels(tmp_path):
    manifest = load_manifest(write_toy_set(tmp_path, 1, 1, labels=False, superpixels=False, depth=False))
    sample = SampleReader(manifest).read(0, depth=True)
    assert manifest.class_names == ()
    assert sample.labels is None
    assert sample.boxes is None
    assert all(camera.superpixels is None and camera.depth_m is None for camera in sample.cameras)
    assert sample.cameras[0].image is not None


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_plain_webdataset_reads_the_shards(toy):
    urls = [toy.shard_path(number) for number in range(3)]
    records = list(wds.WebDataset(urls, shardshuffle=False).decode())
    assert [record["__key__"] for record in records] == [toy.key(index) for index in range(len(toy))]
    assert set(records[0]) >= {"points.npy", "front.jpg", "front.superpixels.npy.gz", "labels.npy", "meta.json"}
    first = SampleReader(toy).read(0)
    np.testing.assert_array_equal(records[0]["points.npy"][:, :3], first.points_lidar)
    assert records[0]["meta.json"]["log"] == "log-000"
    values, lengths = records[0]["front.superpixels.npy.gz"]
    np.testing.assert_array_equal(np.repeat(values, lengths).reshape(48, 96), first.cameras[0].superpixels)
    gc.collect()  # webdataset 1.0.2 leaves its files to the collector; let the warning fall into this test


def test_more_than_256_superpixels_are_kept(tmp_path):
    sample = make_sample(np.random.default_rng(0))
    ids = np.arange(48 * 96, dtype=np.int32).reshape(48, 96)
    camera = dataclasses.replace(sample.cameras[0], superpixels=ids)
    root = write_one(tmp_path, encode_sample(dataclasses.replace(sample, cameras=(camera,)), CodecConfig()))
    np.testing.assert_array_equal(SampleReader(root).read(0).cameras[0].superpixels, ids)


def test_sets_of_version_1_are_read(tmp_path):
    """Their superpixels are PNGs; what is derived from such a set keeps its fingerprint."""
    members = encode_sample(make_sample(np.random.default_rng(0)), CodecConfig())
    new = SampleReader(write_one(tmp_path / "new", members)).read(0)
    as_version_1()(members)
    manifest = dataclasses.replace(write_one(tmp_path / "old", members), schema_version=1)
    write_manifest(manifest)
    loaded = load_manifest(str(tmp_path / "old"))
    assert (
        loaded.fingerprint() == manifest.fingerprint() != dataclasses.replace(manifest, schema_version=2).fingerprint()
    )
    for old, now in zip(SampleReader(loaded).read(0).cameras, new.cameras, strict=True):
        np.testing.assert_array_equal(old.superpixels, now.superpixels)
        assert old.superpixels.dtype == now.superpixels.dtype == np.uint8


def test_encoded_images_are_those_that_were_written(tmp_path):
    sample = make_sample(np.random.default_rng(0))
    members = encode_sample(sample, CodecConfig())
    camera = SampleReader(write_one(tmp_path, members)).read(0, images="encoded").cameras[1]
    assert camera.image is None
    assert camera.jpeg == members["left.jpg"]


def test_the_same_samples_give_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        write_toy_set(tmp_path / name)
    for path in sorted((tmp_path / "a").iterdir()):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


def test_a_log_by_time_a_split_by_log(tmp_path):
    """Samples written out of order are handed out in order."""
    tables = [
        write_shard(tmp_path / "shard-000000.tar", [toy_log(1, 3)[i] for i in (2, 0)]),
        write_shard(tmp_path / "shard-000001.tar", [toy_log(1, 3)[1], *toy_log(0, 2)[::-1]]),
    ]
    info = SetInfo(set_name="t", camera_names=CAMERA_NAMES, logs=("log-001", "log-000"), splits=("train", "val"))
    manifest = join_manifest(str(tmp_path), info, tables)
    assert manifest.indices(log="log-001").tolist() == [1, 2, 0]
    assert manifest.indices("val").tolist() == [4, 3]
    assert manifest.indices().tolist() == [1, 2, 0, 4, 3]
    assert manifest.indices("val", "log-001").size == 0
    assert manifest.indices("val+train").tolist() == manifest.indices().tolist()
    assert [manifest.key(int(i)) for i in manifest.indices("val")] == ["log-000_000000", "log-000_000001"]
    reader = SampleReader(load_manifest(str(tmp_path)))
    assert [reader.read(i).key for i in range(5)] == [manifest.key(i) for i in range(5)]


def test_unknown_split_and_log_are_refused_with_the_known_ones(toy):
    with pytest.raises(ShardError, match=r"split 'test' is not in the set .* it has train, val; data.split chooses"):
        toy.indices("test")
    with pytest.raises(ShardError, match="split 'test' is not in the set"):
        toy.indices("train+test")
    with pytest.raises(ShardError, match="log 'log-9' is not in the set"):
        toy.indices(log="log-9")


def test_pairs_and_points_are_counted(toy):
    samples = [sample for number in range(3) for sample in toy_log(number, 4)]
    assert toy.num_points.tolist() == [400] * 12
    assert toy.num_pairs.tolist() == [count_pairs(sample) for sample in samples]
    # Two 90 degree cameras see about half of the points around.
    assert 100 < toy.num_pairs.mean() < 300


def test_points_with_classes_are_counted(tmp_path, toy):
    assert toy.num_labelled.tolist() == [390] * 12
    partly = load_manifest(write_toy_set(tmp_path / "partly", bare_frames=3))
    assert partly.num_labelled.tolist() == [390, 0, 0, 0] * 3
    assert partly.labelled(partly.indices("train")).tolist() == [0, 4]
    bare = load_manifest(write_toy_set(tmp_path / "bare", labels=False))
    assert bare.num_labelled.tolist() == [0] * 12
    assert bare.labelled(bare.indices("train")).tolist() == bare.indices("train").tolist()


def test_sets_that_do_not_say_which_samples_have_classes_are_read(toy):
    root = Path(toy.root)
    with np.load(root / "samples.npz") as stored:
        columns = {name: stored[name] for name in stored.files if name != "num_labelled"}
    np.savez(root / "samples.npz", **columns)
    content = json.loads((root / "manifest.json").read_text())
    content["table_sha256"] = hashlib.sha256((root / "samples.npz").read_bytes()).hexdigest()
    (root / "manifest.json").write_text(json.dumps(content))
    loaded = load_manifest(str(root))
    assert loaded.num_labelled.tolist() == [-1] * 12
    assert loaded.labelled(loaded.indices("train")).tolist() == toy.indices("train").tolist()
    assert loaded.fingerprint() == toy.fingerprint()
    assert verify(str(root)).problems == ()


def test_fingerprint_follows_the_content(tmp_path, toy):
    same = load_manifest(write_toy_set(tmp_path / "same"))
    other = load_manifest(write_toy_set(tmp_path / "other", num_points=401))
    assert toy.fingerprint() == same.fingerprint() != other.fingerprint()


def test_reader_survives_pickling_forking_and_many_shards(tmp_path):
    manifest = load_manifest(write_toy_set(tmp_path, num_logs=40, frames_per_log=1, num_points=5))
    reader = SampleReader(manifest)
    keys = [reader.read(index).key for index in range(40)]
    assert keys == [manifest.key(index) for index in range(40)]
    descriptors = len(os.listdir("/proc/self/fd"))
    copy = pickle.loads(pickle.dumps(reader))
    assert [copy.read(index).key for index in (39, 0, 39)] == [keys[39], keys[0], keys[39]]
    reader.close()
    copy.close()
    assert descriptors - len(os.listdir("/proc/self/fd")) == 32, "a reader keeps at most 32 tars open"
    with pytest.raises(IndexError, match="sample 40 of a set of 40"):
        reader.read(40)


# ---- damage
def write_one(root: Path, members: dict[str, bytes]) -> Manifest:
    """A set of one sample with these members, its checksums right: only the content is at fault."""
    root.mkdir(exist_ok=True)
    with ShardWriter(root / "shard-000000.tar", CodecConfig()) as writer:
        writer._tar.write({"__key__": "log-000_000000", **members})
        size = writer._tar.tarstream.offset
        writer._keys, writer._logs = ["log-000_000000"], ["log-000"]
        counts = {"num_points": 1, "num_pairs": 1, "num_labelled": 0}
        writer._rows = [{"sample_offset": 0, "sample_size": size, "sample_timestamp_us": 0, **counts}]
        table = writer.finish()
    info = SetInfo(set_name="one", camera_names=CAMERA_NAMES, logs=("log-000",), splits=("train",))
    return join_manifest(str(root), info, [table])


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def npy_header(shape: tuple[int, ...]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def with_meta(change: Callable[[dict], None]) -> Callable[[dict[str, bytes]], None]:
    def apply(members: dict[str, bytes]) -> None:
        meta = json.loads(members["meta.json"])
        change(meta)
        members["meta.json"] = json.dumps(meta).encode()

    return apply


def put(name: str, value: bytes | Callable[[bytes], bytes]) -> Callable[[dict[str, bytes]], None]:
    def apply(members: dict[str, bytes]) -> None:
        members[name] = value(members[name]) if callable(value) else value

    return apply


def with_points(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[dict[str, bytes]], None]:
    return put("points.npy", lambda data: npy(change(np.load(io.BytesIO(data)))))


def nan_at(row: int, column: int) -> Callable[[np.ndarray], np.ndarray]:
    def change(points: np.ndarray) -> np.ndarray:
        points[row, column] = np.nan
        return points

    return change


class Evil:
    def __reduce__(self):
        return os.system, ("touch /tmp/never",)


JPEG_OF_ANOTHER_SIZE = cv2.imencode(".jpg", np.zeros((40, 96, 3), np.uint8))[1].tobytes()
PNG_OF_ANOTHER_SIZE = cv2.imencode(".png", np.zeros((48, 90), np.uint8))[1].tobytes()
COLOUR_PNG = cv2.imencode(".png", np.zeros((48, 96, 3), np.uint8))[1].tobytes()
HUGE_NPY = npy_header((900_000_000_000, 4)) + bytes(64)


def as_version_1(change: Callable[[bytes], bytes] = lambda data: data) -> Callable[[dict[str, bytes]], None]:
    """Superpixels as PNG, and `change` done to one of them."""

    def apply(members: dict[str, bytes]) -> None:
        meta = json.loads(members["meta.json"])
        for name in ("front", "left"):
            ids = decode_runs(members.pop(f"{name}.superpixels.npy.gz"), (48, 96))
            members[f"{name}.superpixels.png"] = cv2.imencode(".png", ids)[1].tobytes()
        members["left.superpixels.png"] = change(members["left.superpixels.png"])
        meta["schema_version"] = 1
        meta["members"] = [name.replace("superpixels.npy.gz", "superpixels.png") for name in meta["members"]]
        members["meta.json"] = json.dumps(meta).encode()

    return apply


DAMAGE = {
    "no points": ("member-missing", lambda members: members.pop("points.npy")),
    "no meta": ("member-missing", lambda members: members.pop("meta.json")),
    "no image": ("member-missing", lambda members: members.pop("front.jpg")),
    "stated superpixels gone": ("member-missing", lambda members: members.pop("left.superpixels.npy.gz")),
    "meta no json": ("meta-broken", put("meta.json", b"{")),
    "meta a list": ("meta-broken", put("meta.json", b"[1]")),
    "meta not utf-8": ("meta-broken", put("meta.json", b"\xff\xfe{}")),
    "schema of tomorrow": ("meta-broken", with_meta(lambda m: m.update(schema_version=99))),
    "log missing": ("meta-broken", with_meta(lambda m: m.pop("log"))),
    "camera no object": ("meta-broken", with_meta(lambda m: m["cameras"].append(3))),
    "camera without name": ("meta-broken", with_meta(lambda m: m["cameras"][0].pop("name"))),
    "image size a word": ("meta-broken", with_meta(lambda m: m["cameras"][0].update(image_size="48x96"))),
    "pose of words": ("meta-broken", with_meta(lambda m: m.update(T_world_ego=[["a"] * 4] * 4))),
    "pose of another shape": ("meta-broken", with_meta(lambda m: m.update(T_world_ego=[[1.0]]))),
    "no intrinsics": ("calibration-missing", with_meta(lambda m: m["cameras"][0].pop("K"))),
    "no extrinsics": ("calibration-missing", with_meta(lambda m: m.pop("T_ego_lidar"))),
    "no pose": ("calibration-missing", with_meta(lambda m: m["cameras"][1].update(T_world_ego=None))),
    "singular intrinsics": (
        "calibration-singular",
        with_meta(lambda m: m["cameras"][0].update(K=np.ones((3, 3)).tolist())),
    ),
    "singular extrinsics": (
        "calibration-singular",
        with_meta(lambda m: m.update(T_ego_lidar=np.zeros((4, 4)).tolist())),
    ),
    "scaled extrinsics": (
        "calibration-singular",
        with_meta(lambda m: m["cameras"][0].update(T_cam_ego=np.diag([2.0, 2, 2, 1]).tolist())),
    ),
    "NaN pose": ("calibration-singular", with_meta(lambda m: m["T_world_ego"][0].__setitem__(3, float("nan")))),
    "NaN coordinate": ("points-not-finite", with_points(nan_at(7, 1))),
    "NaN intensity": ("points-not-finite", with_points(nan_at(7, 3))),
    "infinite coordinate": ("points-not-finite", with_points(lambda p: np.full_like(p, np.inf))),
    "empty sweep": ("empty-sweep", lambda members: empty_sweep(members)),
    "points in double": ("array-broken", with_points(lambda p: p.astype(np.float64))),
    "points without intensity": ("array-broken", with_points(lambda p: p[:, :3])),
    "points cut": ("array-broken", put("points.npy", lambda data: data[:-5])),
    "points of nothing": ("array-broken", put("points.npy", b"")),
    "points of a pickle": ("array-broken", put("points.npy", npy(np.array([Evil()], dtype=object)))),
    "points beyond memory": ("array-broken", put("points.npy", HUGE_NPY)),
    "too few labels": ("array-broken", put("labels.npy", npy(np.zeros(3, np.uint8)))),
    "boxes of another shape": ("array-broken", put("boxes.npy", npy(np.zeros((2, 5))))),
    "details of other boxes": ("array-broken", put("box_details.npy", npy(np.zeros((7, 3), np.int32)))),
    "details of a version before": ("array-broken", put("box_details.npy", npy(np.zeros((2, 3), np.int32)))),
    "views of other boxes": ("array-broken", put("box_views.npy", npy(np.zeros((3, 6))))),
    "views in single precision": ("array-broken", put("box_views.npy", npy(np.zeros((2, 6), np.float32)))),
    "infinite views": ("boxes-broken", put("box_views.npy", npy(np.full((2, 6), np.inf)))),
    "too few times": ("array-broken", put("times_s.npy", npy(np.zeros(3, np.float32)))),
    "elongations in double": ("array-broken", put("elongations.npy", npy(np.zeros(400)))),
    "colours without blue": ("array-broken", put("colors.npy", npy(np.zeros((400, 2), np.uint8)))),
    "colours in single precision": ("array-broken", put("colors.npy", npy(np.zeros((400, 3), np.float32)))),
    "ignored rectangles of words": ("meta-broken", with_meta(lambda m: m["cameras"][0].update(ignored_px=[["a"] * 4]))),
    "ignored rectangles a number": ("meta-broken", with_meta(lambda m: m["cameras"][0].update(ignored_px=7))),
    "ignored rectangle of three": ("meta-broken", with_meta(lambda m: m["cameras"][0].update(ignored_px=[[1, 2, 3]]))),
    "jpeg cut": ("image-broken", put("front.jpg", lambda data: data[: len(data) // 2])),
    "jpeg cut in its header": ("image-broken", put("front.jpg", lambda data: data[:10])),
    "jpeg of nothing": ("image-broken", put("front.jpg", b"")),
    "no jpeg": ("image-broken", put("front.jpg", b"GIF89a" * 10 + b"\xff\xd9")),
    "superpixels cut": ("image-broken", put("front.superpixels.npy.gz", lambda data: data[:-20])),
    "superpixels no runs": ("image-broken", put("front.superpixels.npy.gz", gzip.compress(npy(np.zeros(3))))),
    "superpixels beyond memory": ("image-broken", put("front.superpixels.npy.gz", gzip.compress(bytes(64 << 20)))),
    "superpixels of version 1 cut": ("image-broken", as_version_1(lambda data: data[:-20])),
    "superpixels of version 1 in colour": ("image-broken", as_version_1(lambda _: COLOUR_PNG)),
    "image of another size": ("image-size", put("left.jpg", JPEG_OF_ANOTHER_SIZE)),
    "superpixels of another size": ("image-size", put("left.superpixels.npy.gz", encode_runs(np.eye(9, dtype=int), 1))),
    "superpixels of version 1 of another size": ("image-size", as_version_1(lambda _: PNG_OF_ANOTHER_SIZE)),
    "stated size beyond reason": (
        "image-size",
        with_meta(lambda m: m["cameras"][0].update(image_size=[10**9, 10**9])),
    ),
}


def empty_sweep(members: dict[str, bytes]) -> None:
    members["points.npy"] = npy(np.zeros((0, 4), "<f4"))
    members["labels.npy"] = npy(np.zeros(0, np.uint8))
    members["instances.npy"] = npy(np.zeros(0, "<u2"))


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named(tmp_path, damage):
    reason, apply = DAMAGE[damage]
    members = encode_sample(make_sample(np.random.default_rng(0)), CodecConfig())
    apply(members)
    manifest = write_one(tmp_path, members)
    with pytest.raises(SampleError) as caught:
        SampleReader(manifest).read(0)
    error = caught.value
    assert (error.reason, error.key, error.shard) == (reason, "log-000_000000", "shard-000000.tar")
    assert isinstance(error, ShardError)
    assert all(part in str(error) for part in (reason, error.key, error.shard))
    assert not Path("/tmp/never").exists()


def test_boxes_keep_what_only_some_sets_have(tmp_path):
    sample = make_sample(np.random.default_rng(0))
    assert (
        SampleReader(write_one(tmp_path / "a", encode_sample(sample, CodecConfig()))).read(0).boxes.num_points is None
    )
    details = {"num_points": np.array([-1, 40_000]), "attributes": np.array([3, -1])}
    told = dataclasses.replace(sample, boxes=dataclasses.replace(sample.boxes, **details))
    boxes = SampleReader(write_one(tmp_path / "b", encode_sample(told, CodecConfig()))).read(0).boxes
    assert boxes.num_points.tolist() == [-1, 40_000]
    assert boxes.attributes.tolist() == [3, -1]
    assert boxes.difficulties is None
    np.testing.assert_array_equal(boxes.centers_m, sample.boxes.centers_m)


@pytest.mark.parametrize("num_boxes", [0, 1, 2])
def test_all_that_only_some_sets_have_comes_back(num_boxes):
    """To the last bit: 2D heights are compared with 25 and 40 px by KITTI's metric."""
    sample = full_sample(num_boxes=num_boxes)
    got = decode_sample(sample.key, encode_sample(sample, CodecConfig()), DecodeSpec())
    for field in dataclasses.fields(sample.boxes):
        np.testing.assert_array_equal(getattr(got.boxes, field.name), getattr(sample.boxes, field.name), field.name)
    assert got.cameras[0].ignored_px.tolist() == [[0.5, 1, 20, 30], [5, 5, 5, 9]]
    assert got.cameras[1].ignored_px is None
    np.testing.assert_array_equal(got.times_s, sample.times_s)
    np.testing.assert_array_equal(got.elongations, sample.elongations)
    np.testing.assert_array_equal(got.colors, sample.colors)
    assert got.colors.dtype == np.uint8


def test_a_column_of_unknowns_is_not_an_absent_one():
    sample = full_sample()
    blind = np.full(2, np.nan)
    boxes = dataclasses.replace(sample.boxes, truncations=blind, image_boxes_px=None, occlusions=None, alphas=None)
    members = encode_sample(dataclasses.replace(sample, boxes=boxes), CodecConfig())
    got = decode_sample(sample.key, members, DecodeSpec()).boxes
    assert got.truncations.tolist() == pytest.approx([np.nan, np.nan], nan_ok=True)
    assert got.image_boxes_px is got.occlusions is got.alphas is None
    assert got.num_radar_points.tolist() == [2, -1]


@pytest.mark.parametrize("version", [1, 2])
def test_boxes_of_earlier_versions_have_three_details(version):
    members = encode_sample(full_sample(), CodecConfig())
    details = np.load(io.BytesIO(members["box_details.npy"]))
    del members["box_views.npy"], members["times_s.npy"], members["elongations.npy"], members["colors.npy"]
    members["box_details.npy"] = npy(np.ascontiguousarray(details[:, :3]))
    gone = {"box_views.npy", "times_s.npy", "elongations.npy", "colors.npy"}
    with_meta(lambda m: m.update(schema_version=version, members=sorted({*m["members"]} - gone)))(members)
    got = decode_sample("log-000_000000", members, DecodeSpec())
    assert got.boxes.num_points.tolist() == got.boxes.attributes.tolist() == [3, -1]
    later = ("categories", "num_radar_points", "truncations", "occlusions", "image_boxes_px", "alphas")
    assert all(getattr(got.boxes, name) is None for name in later)
    assert got.times_s is got.elongations is got.colors is None


def test_the_manifest_names_kinds_of_boxes(tmp_path):
    members = encode_sample(full_sample(), CodecConfig())
    bare = write_one(tmp_path, members)
    with pytest.raises(SampleError, match="category 3 of a box; the set names 0 kinds of boxes"):
        SampleReader(bare).read(0)
    names = ("Car", "Van", "Truck", "Tram")
    write_manifest(dataclasses.replace(bare, box_categories=names))
    manifest = load_manifest(str(tmp_path))
    assert manifest.box_categories == names
    assert manifest.fingerprint() == bare.fingerprint()
    assert SampleReader(manifest).read(0).boxes.categories.tolist() == [3, -1]
    content = json.loads((tmp_path / "manifest.json").read_text())
    for wrong in ("Car", [3], {"Car": 1}):
        (tmp_path / "manifest.json").write_text(json.dumps({**content, "box_categories": wrong}))
        with pytest.raises(ShardError, match="box_categories"):
            load_manifest(str(tmp_path))
    del content["box_categories"]  # of an earlier version
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    assert load_manifest(str(tmp_path)).box_categories == ()


def test_every_reason_is_tested():
    tested = {reason for reason, _ in (*DAMAGE.values(), *WRONG.values())}
    tested |= {"shard-missing", "tar-broken", "checksum", "superpixel-ids", "too-large", "error"}
    assert tested == set(REASONS)


def test_undamaged_passes_the_same_way(tmp_path):
    members = encode_sample(make_sample(np.random.default_rng(0)), CodecConfig())
    assert SampleReader(write_one(tmp_path, members)).read(0).key == "log-000_000000"


def test_a_truncated_tar_loses_its_last_samples_only(toy, toy_root):
    path = Path(toy.shard_path(1))
    cut = int(toy.sample_offset[6]) + 700
    os.truncate(path, cut)
    reader = SampleReader(load_manifest(toy_root))
    reasons = {}
    for index in range(12):
        try:
            reader.read(index)
        except SampleError as error:
            reasons[index] = error.reason
    assert reasons == {6: "tar-broken", 7: "tar-broken"}


def test_a_missing_shard(toy, toy_root):
    Path(toy.shard_path(2)).unlink()
    with pytest.raises(SampleError, match="shard-missing"):
        SampleReader(load_manifest(toy_root)).read(11)


@pytest.mark.parametrize("seed", range(30))
def test_any_changed_byte_is_noticed(toy, seed):
    """Also bits inside the JPEG or the points, which decode to other values without complaint."""
    rng = np.random.default_rng(seed)
    path = Path(toy.shard_path(0))
    data = bytearray(path.read_bytes())
    start, size = int(toy.sample_offset[1]), int(toy.sample_size[1])
    position = start + int(rng.integers(size))
    data[position] ^= int(rng.integers(1, 256))
    path.write_bytes(data)
    reader = SampleReader(toy)
    with pytest.raises(SampleError):
        reader.read(1, images=False)
    assert reader.read(2).key == toy.key(2)
    assert toy.damaged_shards() == ["shard-000000.tar"]


def test_a_manifest_that_lies_about_sizes(toy):
    for column, value in (("sample_size", 1 << 40), ("sample_size", 0), ("sample_offset", -512)):
        table = getattr(toy, column).copy()
        table[0] = value
        with pytest.raises(SampleError, match="tar-broken"):
            SampleReader(dataclasses.replace(toy, **{column: table})).read(0)


def test_members_of_another_sample_are_refused(toy):
    swapped = dataclasses.replace(toy, keys=toy.keys[::-1].copy())
    with pytest.raises(SampleError, match="is no file of this sample"):
        SampleReader(swapped).read(0)


# ---- manifest
def test_unfinished_and_damaged_manifests(tmp_path, toy_root):
    with pytest.raises(ShardError, match=r"no finished shard set: manifest\.json is missing"):
        load_manifest(str(tmp_path))
    path = Path(toy_root) / "manifest.json"
    content = json.loads(path.read_text())
    for broken in (b"{", b"[]", b'{"schema_version": 1}'):
        path.write_bytes(broken)
        with pytest.raises(ShardError, match="is damaged"):
            load_manifest(toy_root)
    path.write_text(json.dumps({**content, "schema_version": 99}))
    with pytest.raises(ShardError, match="schema version 99, this code reads 1 to 4"):
        load_manifest(toy_root)
    path.write_text(json.dumps(content))
    table = Path(toy_root) / "samples.npz"
    table.write_bytes(table.read_bytes()[:-1])
    with pytest.raises(ShardError, match=r"samples\.npz is missing or not the one"):
        load_manifest(toy_root)


RECORD = SuperpixelRecord(method="slic", num_segments=30, compactness=6.0, smoothing=0.03, iterations=10)


def with_record(toy_root: str, record: object) -> None:
    path = Path(toy_root) / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "superpixels": record}))


def test_how_superpixels_were_made_is_read_back(toy, toy_root):
    assert toy.superpixels is None
    write_manifest(dataclasses.replace(toy, superpixels=RECORD))
    read = load_manifest(toy_root)
    assert read.superpixels == RECORD
    assert read.fingerprint() == toy.fingerprint(), "caches that were built from the set would be lost"


def test_sets_from_before_the_record_are_read(toy, toy_root):
    path = Path(toy_root) / "manifest.json"
    content = json.loads(path.read_text())
    del content["superpixels"]
    path.write_text(json.dumps(content))
    assert load_manifest(toy_root).superpixels is None
    assert len(load_manifest(toy_root)) == len(toy)


def test_a_record_of_another_method_is_read(toy_root):
    with_record(toy_root, {"method": "sam", "num_segments": 99, "checkpoint": "vit_h"})
    assert load_manifest(toy_root).superpixels == SuperpixelRecord(method="sam", num_segments=99)


@pytest.mark.parametrize(
    "record",
    [
        [30],
        "slic",
        {"method": 1},
        {"num_segments": 0},
        {"num_segments": 1 << 70},
        {"num_segments": True},
        {"num_segments": "30"},
        {"num_segments": 30.5},
        {"compactness": 0},
        {"compactness": float("nan")},
        {"smoothing": 2},
        {"smoothing": {}},
        {"iterations": 0},
        {"min_fragment_percent": 101},
        {"max_pixels": -1},
    ],
    ids=str,
)
def test_records_that_no_writer_makes_are_refused(toy_root, record):
    with_record(toy_root, record)
    with pytest.raises(ShardError, match="is damaged"):
        load_manifest(toy_root)


def test_equal_keys_are_refused(tmp_path):
    tables = [write_shard(tmp_path / f"shard-{n}.tar", toy_log(0, 1)) for n in range(2)]
    info = SetInfo(set_name="t", camera_names=CAMERA_NAMES, logs=("log-000",), splits=("train",))
    with pytest.raises(ShardError, match="key 'log-000_000000' belongs to 2 samples"):
        join_manifest(str(tmp_path), info, tables)


def test_no_python_object_is_held_per_sample(toy):
    for field in dataclasses.fields(toy):
        value = getattr(toy, field.name)
        if isinstance(value, np.ndarray):
            assert value.dtype.kind in "iS", field.name
        elif isinstance(value, (tuple, list, dict)):
            assert len(value) < len(toy), field.name


# ---- writer
def test_the_writer_refuses_what_no_reader_would_take(tmp_path):
    sample = make_sample(np.random.default_rng(0))
    sample.points_lidar[5, 2] = np.inf
    with pytest.raises(DamagedError) as caught:
        check_sample(sample)
    assert caught.value.reason == "points-not-finite"
    with pytest.raises(DamagedError), ShardWriter(tmp_path / "a.tar", CodecConfig()) as writer:
        writer.write(sample)
    assert not list(tmp_path.iterdir()), "an unfinished tar was left behind"


@pytest.mark.parametrize("key", ["a.b", "", "a/b", "a b", "é"])
def test_keys_that_webdataset_would_split_are_refused(key):
    with pytest.raises(ValueError, match="sample key"):
        encode_sample(make_sample(np.random.default_rng(0), key=key), CodecConfig())


def test_values_beyond_their_stored_type_are_refused():
    sample = make_sample(np.random.default_rng(0))
    with pytest.raises(DamagedError, match="instances run from"):
        encode_sample(dataclasses.replace(sample, instances=sample.instances + 65536), CodecConfig())
    for name, most, said in (
        ("num_points", (1 << 31) - 1, "num_points.* of boxes run"),
        ("track_ids", 1 << 53, "track ids"),
    ):
        values = np.full(len(sample.boxes.classes), most, dtype=np.int64)
        whole = dataclasses.replace(sample, boxes=dataclasses.replace(sample.boxes, **{name: values}))
        kept = decode_sample(sample.key, encode_sample(whole, CodecConfig()), DecodeSpec())
        np.testing.assert_array_equal(getattr(kept.boxes, name), values)
        beyond = dataclasses.replace(sample, boxes=dataclasses.replace(sample.boxes, **{name: values + 1}))
        with pytest.raises(DamagedError, match=said):
            encode_sample(beyond, CodecConfig())
    blind = dataclasses.replace(sample.cameras[0], image=None)
    with pytest.raises(ValueError, match="has no image"):
        encode_sample(dataclasses.replace(sample, cameras=(blind,)), CodecConfig())


@pytest.mark.parametrize(("field", "value"), [("jpeg_quality", 0), ("jpeg_quality", 101), ("png_level", 10)])
def test_refused_settings_name_the_field(field, value):
    with pytest.raises(ValueError, match=f"{field}: got {value}"):
        CodecConfig(**{field: value})


def test_jpeg_size_without_decoding():
    rng = np.random.default_rng(0)
    for height, width, progressive in ((1, 1, 0), (37, 501, 1), (300, 20, 0)):
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_PROGRESSIVE, progressive])[1].tobytes()
        assert jpeg_size(data) == (height, width)


def test_offsets_and_checksums_describe_the_tar(toy):
    data = Path(toy.shard_path(0)).read_bytes()
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        first_header = {}
        for info in archive:
            first_header.setdefault(info.name.split(".")[0], info.offset)
            assert (info.uid, info.gid, info.mtime, info.uname) == (0, 0, 0, "")
    for index in range(4):
        start, size = int(toy.sample_offset[index]), int(toy.sample_size[index])
        assert first_header[toy.key(index)] == start
        assert zlib.crc32(data[start : start + size]) == toy.sample_crc32[index]
    assert toy.class_names == CLASS_NAMES
    assert IGNORE_LABEL not in range(len(CLASS_NAMES))
