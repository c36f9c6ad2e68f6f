"""Argoverse 2: street frames in the published layout, read back and compared with what was written."""

import pickle
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pytest

from data.convert.argoverse2 import BOX_CATEGORIES, CLASS_NAMES, UNSCORED, Argoverse2Converter
from data.convert.base import Converter, Skipped
from data.convert.box_labels import points_in_box
from data.geometry import project, transform
from data.sample import IGNORE_LABEL, Sample
from data.storage.shard import ShardError
from tests.helpers.first_batch import first_batch
from tests.helpers.layouts.argoverse2 import CATEGORIES, DECOY_NS, RING, sweep_ns, write_argoverse2
from tests.helpers.street_logs import CLASS_NAMES as STREET_CLASSES
from tests.helpers.street_logs import street_log

LOG, OTHER, BLIND = "01bb304d-7bd8", "7606de8d-486c", "c6911883-1843"


def frames_of(converter: Converter, log: str = LOG) -> list[Sample | Skipped]:
    return list(converter.frames(log, 0, converter.num_frames(log)))


@pytest.fixture(scope="module")
def truth() -> tuple[Sample, ...]:
    return street_log(RING)


@pytest.fixture(scope="module")
def source(tmp_path_factory, truth) -> Path:
    logs = {"train": {LOG: truth}, "val": {OTHER: truth[:1]}, "test": {BLIND: truth[1:2]}}
    return write_argoverse2(tmp_path_factory.mktemp("argoverse2"), logs)


@pytest.fixture
def small(tmp_path, source) -> Path:
    """One log to damage."""
    shutil.copytree(source / "train" / LOG, tmp_path / "train" / LOG)
    return tmp_path


def test_points_intensity_and_times(source, truth):
    converter = Argoverse2Converter(source=str(source))
    found = frames_of(converter)
    assert [sample.key for sample in found] == [f"{LOG}_{sweep_ns(frame)}" for frame in truth]
    for sample, frame in zip(found, truth, strict=True):
        # float16 steps are 1/32 m between 32 and 64 m.
        np.testing.assert_allclose(sample.points_lidar, frame.points_lidar, atol=0.03)
        assert np.abs(sample.points_lidar - frame.points_lidar).mean() < 0.005
        np.testing.assert_allclose(sample.intensity, frame.intensity, atol=0.5 / 255 + 1e-6)
        assert sample.timestamp_us == frame.timestamp_us
        np.testing.assert_allclose(sample.T_ego_lidar, frame.T_ego_lidar, atol=1e-12)
        np.testing.assert_allclose(sample.T_world_ego, frame.T_world_ego, atol=1e-12)
    (last,) = pickle.loads(pickle.dumps(converter)).frames(LOG, 2, 3)
    np.testing.assert_array_equal(last.points_lidar, found[2].points_lidar)
    assert len(frames_of(Argoverse2Converter(source=str(source), every_sweep=2))) == 2


def test_cameras_have_their_own_times_and_poses(source, truth):
    for sample, frame in zip(frames_of(Argoverse2Converter(source=str(source))), truth, strict=True):
        for camera, view in zip(sample.cameras, frame.cameras, strict=True):
            assert (camera.name, camera.timestamp_us) == (view.name, view.timestamp_us)
            np.testing.assert_allclose(camera.T_world_ego, view.T_world_ego, atol=1e-12)
            folder = source / "train" / LOG / "sensors" / "cameras" / camera.name
            assert camera.jpeg == (folder / f"{view.timestamp_us * 1000 + 91}.jpg").read_bytes()
            assert np.abs(camera.image.astype(int) - view.image).mean() < 6, "not the black one beside it"


def test_points_meet_their_pixels(source, truth):
    (sample, *_) = frames_of(Argoverse2Converter(source=str(source)))
    for camera, view in zip(sample.cameras, truth[0].cameras, strict=True):
        expected, depth = project(view.K, transform(truth[0].T_cam_lidar(view), sample.points_lidar))
        uv, _ = project(camera.K, transform(sample.T_cam_lidar(camera), sample.points_lidar))
        np.testing.assert_allclose(uv[depth > 1], expected[depth > 1], atol=1e-6)


def test_boxes_and_labels(source, truth):
    things = [STREET_CLASSES.index(name) for name in CATEGORIES]
    seen = {}
    for sample, frame in zip(frames_of(Argoverse2Converter(source=str(source))), truth, strict=True):
        boxes, expected = sample.boxes, frame.boxes
        np.testing.assert_allclose(boxes.centers_m, expected.centers_m, atol=1e-9)
        np.testing.assert_allclose(boxes.sizes_m, expected.sizes_m, atol=1e-12)
        np.testing.assert_allclose(np.cos(boxes.yaws - expected.yaws), 1, atol=1e-9)
        names = [CATEGORIES[STREET_CLASSES[label]] for label in expected.classes]
        assert [CLASS_NAMES[label] for label in boxes.classes] == names
        assert [BOX_CATEGORIES[number] for number in boxes.categories] == names
        for box in range(len(names)):
            args = (boxes.centers_m[box], boxes.sizes_m[box], float(boxes.yaws[box]))
            assert abs(int(points_in_box(sample.points_lidar, *args).sum()) - int(boxes.num_points[box])) <= 1
            # The same object has the same number in every frame, another one another.
            assert seen.setdefault(int(expected.track_ids[box]), int(boxes.track_ids[box])) == boxes.track_ids[box]
        assert boxes.num_points.max() > 10
        on_things = np.isin(frame.labels, things)
        named = [CLASS_NAMES.index(CATEGORIES.get(STREET_CLASSES[label], "background")) for label in frame.labels]
        assert (sample.labels == named)[on_things].mean() > 0.9
        assert (sample.labels == named)[~on_things].mean() > 0.97
    assert len(set(seen.values())) == len(seen)


def test_classes_are_the_26_of_the_benchmark():
    assert len(CLASS_NAMES) == len(set(CLASS_NAMES)) == 27
    assert len({*CLASS_NAMES[1:], *UNSCORED}) == 30


def test_splits_and_test_logs_without_labels(source):
    converter = Argoverse2Converter(source=str(source))
    assert {log: converter.split_of(log) for log in converter.logs()} == {LOG: "train", OTHER: "val", BLIND: "test"}
    assert converter.notes() == ()
    (sample,) = frames_of(converter, BLIND)
    assert (sample.boxes, sample.labels) == (None, None)


def change_table(path: Path, change) -> None:
    columns = {name: column.to_pylist() for name, column in zip(*columns_of(path), strict=True)}
    change(columns)
    pa.feather.write_feather(pa.table(columns), str(path))


def columns_of(path: Path) -> tuple[list[str], list[pa.ChunkedArray]]:
    table = pa.feather.read_table(str(path))
    return table.column_names, table.columns


def test_unscored_categories_are_ignored(small):
    def change(columns):
        columns["category"] = ["RAILED_VEHICLE" if name == "BUS" else name for name in columns["category"]]

    before = frames_of(Argoverse2Converter(source=str(small), cameras=()))
    change_table(small / "train" / LOG / "annotations.feather", change)
    after = frames_of(Argoverse2Converter(source=str(small), cameras=()))
    bus = CLASS_NAMES.index("BUS")
    assert any((sample.boxes.classes == bus).any() for sample in before)
    for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(np.where(old.labels == bus, IGNORE_LABEL, old.labels), new.labels)
        np.testing.assert_array_equal(old.boxes.classes == bus, new.boxes.classes == IGNORE_LABEL)
        assert new.cameras == ()


def test_text_columns_as_pandas_categories(small):
    """The development kit's tools write dictionaries where pandas had a category."""
    path = small / "train" / LOG / "annotations.feather"
    expected = frames_of(Argoverse2Converter(source=str(small), cameras=()))[0].boxes.classes
    table = pa.feather.read_table(str(path))
    place = table.column_names.index("category")
    pa.feather.write_feather(
        table.set_column(place, "category", table.column("category").dictionary_encode()), str(path)
    )
    found = frames_of(Argoverse2Converter(source=str(small), cameras=()))[0].boxes.classes
    np.testing.assert_array_equal(found, expected)


def test_sweeps_without_an_image_near_are_left_out(small, truth):
    folder = small / "train" / LOG / "sensors" / "cameras" / "ring_rear_left"
    view = next(camera for camera in truth[1].cameras if camera.name == "ring_rear_left")
    own = folder / f"{view.timestamp_us * 1000 + 91}.jpg"
    own.unlink()
    # The next one is 40 ms later.
    assert all(isinstance(item, Sample) for item in frames_of(Argoverse2Converter(source=str(small))))
    items = frames_of(Argoverse2Converter(source=str(small), max_image_gap_ms=25.0))
    assert [getattr(item, "reason", "fine") for item in items] == ["fine", "member-missing", "fine"]
    assert f"the image nearest to {sweep_ns(truth[1])} is" in items[1].detail
    assert DECOY_NS > 25e6


def test_damaged_frames_are_named(small, truth):
    folder = small / "train" / LOG
    sweeps = folder / "sensors" / "lidar"
    first = sweeps / f"{sweep_ns(truth[0])}.feather"
    first.write_bytes(first.read_bytes()[:-200])
    change_table(sweeps / f"{sweep_ns(truth[1])}.feather", lambda columns: columns.pop("z"))
    image = sorted((folder / "sensors" / "cameras" / "ring_side_left").glob("*.jpg"))[4]
    image.write_bytes(image.read_bytes()[:300])
    items = frames_of(Argoverse2Converter(source=str(small)))
    assert [item.reason for item in items] == ["array-broken", "array-broken", "image-broken"]
    assert "has no column z" in items[1].detail


@pytest.mark.parametrize(
    ("table", "change", "reason", "text"),
    [
        ("annotations", lambda c: c["category"].__setitem__(0, "SPACESHIP"), "meta-broken", "SPACESHIP"),
        ("annotations", lambda c: c["qw"].__setitem__(0, 9.0), "calibration-singular", "quaternion"),
        ("annotations", lambda c: c["tx_m"].__setitem__(0, None), "calibration-singular", "nan"),
        ("annotations", lambda c: c["timestamp_ns"].__setitem__(0, None), "array-broken", "or gaps"),
        ("annotations", lambda c: c.update(tx_m=["east"] * len(c["tx_m"])), "array-broken", "holds string"),
        ("city_SE3_egovehicle", lambda c: c["timestamp_ns"].__setitem__(slice(None), range(len(c["qw"]))),
         "calibration-missing", "has no pose at"),
        ("calibration/intrinsics", lambda c: c["sensor_name"].__setitem__(0, "front"), "calibration-missing",
         "has no ring_front_center, but front"),
        ("calibration/intrinsics", lambda c: c["height_px"].__setitem__(0, 1550), "image-size", "stated (1550"),
        ("calibration/egovehicle_SE3_sensor", lambda c: c["sensor_name"].__setitem__(-2, "top"),
         "calibration-missing", "has no up_lidar"),
    ],
)  # fmt: skip
def test_damaged_tables_are_named(small, table, change, reason, text):
    change_table(small / "train" / LOG / f"{table}.feather", change)
    first, *others = frames_of(Argoverse2Converter(source=str(small)))
    assert first.reason == reason
    assert text in first.detail
    if table == "annotations" and reason != "array-broken":
        assert all(isinstance(item, Sample) for item in others), "one damaged row is one sweep's loss"


def test_missing_labels_are_named(small):
    path = small / "train" / LOG / "annotations.feather"
    data = path.read_bytes()
    path.unlink()
    converter = Argoverse2Converter(source=str(small))
    assert f"no annotations.feather, so no labels and boxes: {LOG}" in converter.notes()
    items = frames_of(converter)
    assert all(isinstance(item, Sample) for item in items), "fetched for pre-training"
    assert (items[0].labels, items[0].boxes) == (None, None)
    # Also beside others that have them, as where those of val alone were fetched.
    other = small / "val" / "other"
    (other / "sensors" / "lidar").mkdir(parents=True)
    (other / "annotations.feather").write_bytes(data)
    items = list(Argoverse2Converter(source=str(small), cameras=()).frames(LOG, 0, 9))
    assert [item.boxes for item in items if isinstance(item, Sample)] == [None] * len(items)


def test_wrong_sources_say_what_was_found(small, tmp_path):
    with pytest.raises(ShardError, match=r"no Argoverse 2 folder: looked for \{train,val,test\}/<log>/sensors/lidar"):
        Argoverse2Converter(source=str(small / "train")).logs()
    with pytest.raises(ShardError, match="no such folder"):
        Argoverse2Converter(source=str(tmp_path / "nowhere")).logs()
    with pytest.raises(
        ShardError, match=r"looked for images of stereo_front_left in .*cameras, found ring_front_center"
    ):
        Argoverse2Converter(source=str(small), cameras=("stereo_front_left",)).logs()
    assert Argoverse2Converter(source=str(small)).notes() == ("no logs of val, test in the source",)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cameras": ("front",)}, r"cameras: got \('front',\)"),
        ({"max_image_gap_ms": 0.0}, "max_image_gap_ms: got 0.0"),
        ({"every_sweep": 0}, "every_sweep: got 0"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        Argoverse2Converter(source="", **settings)


def test_prepared_set_feeds_the_loader(source, tmp_path):
    converter = Argoverse2Converter(source=str(source), cameras=RING[:2])
    manifest, batch = first_batch(converter, tmp_path, "train")
    assert set(manifest.splits) == {"train", "val", "test"}
    assert manifest.camera_names == RING[:2]
    assert batch.num_samples == 2
    assert batch.pairs.point.numel() > 100
