from pathlib import Path

import numpy as np
import pytest

from engine.detection.formats.kitti import KittiCamera, read_found, read_truth, upright_boxes, write_found
from engine.detection.frames import FoundObjects
from engine.detection.judge import judge
from engine.scores import JudgeError

REAL = Path(__file__).parents[5] / "shared" / "data" / "kitti_object" / "training"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="needs KITTI frames in ../shared/data/kitti_object")

LABELS = """\
Car 0.00 1 -1.57 100.00 120.00 300.00 220.00 1.50 1.60 4.00 2.00 1.70 20.00 -1.57
DontCare -1 -1 -10 500.00 100.00 550.00 130.00 -1 -1 -1 -1000 -1000 -1000 -10

Person_sitting 0.30 2 0.20 10.00 20.00 30.00 60.00 1.20 0.60 0.80 -3.00 1.60 10.00 0.10
"""


def _write(folder: Path, key: str, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{key}.txt").write_text(text)
    return folder


def test_labels_become_upright_boxes_at_the_camera(tmp_path: Path) -> None:
    (frame,) = read_truth(_write(tmp_path, "000007", LABELS))
    assert frame.key == "000007"
    assert frame.categories == ("Car", "Person_sitting")
    # 20 m ahead, 2 m to the right, its middle .75 m above the bottom 1.7 m below the camera; it heads away.
    assert frame.boxes[0] == pytest.approx([20, -2, -0.95, 4, 1.6, 1.5, 0], abs=1e-3)
    assert frame.boxes[1, 6] == pytest.approx(-np.pi / 2 - 0.1)
    assert frame.occlusions is not None
    assert frame.occlusions.tolist() == [1, 2]
    assert frame.truncations is not None
    assert frame.truncations.tolist() == [0, 0.3]
    assert frame.ignored_px is not None
    assert frame.ignored_px.tolist() == [[500, 100, 550, 130]]


def test_found_objects_come_from_the_folder_or_its_data(tmp_path: Path) -> None:
    line = LABELS.splitlines()[0]
    _write(tmp_path / "a", "1", f"{line} 0.75\n{line.replace('Car', 'cyclist')} 1e-3\n")
    _write(tmp_path / "b" / "data", "1", "")
    (frame,) = read_found(tmp_path / "a", ["1"])
    assert frame.classes == ("Car", "Cyclist")
    assert frame.scores.tolist() == [0.75, 0.001]
    assert len(read_found(tmp_path / "b", ["1"])[0]) == 0


def test_results_in_the_image_alone_overlap_nothing_in_space() -> None:
    boxes = upright_boxes(np.array([[-1.0, -1, -1, -1000, -1000, -1000, -10]]))
    assert boxes[0, 3:6].tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("Car 0 0 0 1 2 3 4 1 1 1 0 0 9 0", r"1.txt, line 2: 14 numbers behind the class, expected 15: .* and a score"),
        ("Car 0 0 0 1 2 3 4 1 1 1 0 0 9 0 x", "line 2: 'x' is no finite number"),
        ("Car 0 0 0 1 2 3 4 1 1 1 0 0 nan 0 .5", "line 2: 'nan' is no finite number"),
        ("Cra 0 0 0 1 2 3 4 1 1 1 0 0 9 0 .5", "line 2: unknown class 'Cra'; did you mean 'Car'.*expected one of Car"),
        ("DontCare 0 0 0 1 2 3 4 1 1 1 0 0 9 0 .5", "line 2: unknown class 'DontCare'"),
    ],
    ids=["too few", "no number", "nan", "class", "DontCare"],
)
def test_malformed_results_are_named_by_line(tmp_path: Path, line: str, message: str) -> None:
    good = LABELS.splitlines()[0] + " 0.5"
    with pytest.raises(JudgeError, match=message):
        read_found(_write(tmp_path, "1", f"{good}\n{line}\n"), ["1"])


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(JudgeError, match=r"expected KITTI's labels, such as training/label_2"):
        read_truth(tmp_path)
    with pytest.raises(JudgeError, match=r"frame 3 has no predictions: .*3.txt is missing; .*an empty file"):
        read_found(tmp_path, ["3"])
    with pytest.raises(JudgeError, match="frame 3 has no labels"):
        read_truth(tmp_path, ["3"])


CAMERA = KittiCamera(
    K=np.array([[100.0, 0, 50], [0, 100, 40], [0, 0, 1]]),
    T_cam_lidar=np.array([[0.0, -1, 0, 0.1], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]]),
    T_rect0_lidar=np.array([[0.0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]]),
    image_size=(80, 100),
)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    boxes = np.array([[10.0, 1, -1, 4, 2, 1.5, 0.3], [-10.0, 0, 0, 4, 2, 1.5, 0], [8.0, -2, 0, 1, 1, 2, 3.0]])
    frame = FoundObjects(
        key="000001", boxes=boxes, scores=np.array([0.9, 0.8, 1 / 3]), classes=("car", "car", "pedestrian")
    )
    write_found(tmp_path / "out", [frame], [CAMERA], names={"car": "Car", "pedestrian": "Pedestrian"})
    (back,) = read_found(tmp_path / "out", ["000001"])
    assert back.classes == ("Car", "Pedestrian")  # the one behind the camera is not in the image
    # Camera 0 is where the LiDAR is, with the axes of its results renamed back.
    assert back.boxes == pytest.approx(boxes[[0, 2]], abs=1e-5)
    assert back.scores == pytest.approx(frame.scores[[0, 2]], abs=1e-8)
    assert back.image_boxes_px is not None
    assert (back.image_boxes_px[:, 2:] <= [99, 79]).all()
    # The pedestrian: x 7.5 to 8.5 m ahead, y -2.5 to -1.5 (turned a little), at the colour camera .1 m further right.
    assert back.image_boxes_px[1, 1] == pytest.approx(40 - 100 / np.abs(8 - 0.565), abs=0.1)
    assert back.alphas is not None
    assert back.alphas[1] == pytest.approx(-np.pi / 2 - 3.0 - np.arctan2(2, 8) + 2 * np.pi, abs=1e-3)


@needs_real
def test_real_labels_as_results_have_the_development_kits_figures() -> None:
    """What the compiled development kit gave for them; scores fall by .001 within each file."""
    truth = read_truth(REAL / "label_2")
    found = []
    for frame in truth:
        rows = [number for number, name in enumerate(frame.categories) if name in ("Car", "Pedestrian", "Cyclist")]
        assert frame.image_boxes_px is not None
        assert frame.alphas is not None
        found.append(
            FoundObjects(
                key=frame.key,
                boxes=frame.boxes[rows],
                scores=0.99 - 0.001 * np.arange(len(rows)),
                classes=tuple(frame.categories[row] for row in rows),
                image_boxes_px=frame.image_boxes_px[rows],
                alphas=frame.alphas[rows],
            )
        )
    scores = judge("kitti", truth, found)
    levels = ("easy", "moderate", "hard")
    for name, r40, r11 in (
        ("Car", (22.5, 47.5, 57.5), (27.2727, 45.4545, 54.5455)),
        ("Pedestrian", (2.5, 2.5, 5.0), (9.0909,) * 3),
        ("Cyclist", (0,) * 3, (0,) * 3),
    ):
        assert [scores.value(name, level, "3D AP R40") for level in levels] == pytest.approx(r40)
        assert [scores.value(name, level, "3D AP R11") for level in levels] == pytest.approx(r11, abs=1e-3)
    assert not scores.worst_frames(11)


@needs_real
def test_real_boxes_go_to_the_camera_and_back(tmp_path: Path) -> None:
    """Boxes in the LiDAR frame become KITTI's lines again: image box and angle near the hand-made ones."""
    from data.convert.kitti import kitti_object

    far = []
    for frame in read_truth(REAL / "label_2"):
        calibration = kitti_object._read_calibration(REAL / "calib" / f"{frame.key}.txt")
        boxes = kitti_object.read_labels(REAL / "label_2" / f"{frame.key}.txt", calibration.T_rect0_lidar).boxes
        camera = KittiCamera(
            K=calibration.K,
            T_cam_lidar=calibration.T_cam_lidar,
            T_rect0_lidar=calibration.T_rect0_lidar,
            image_size=(375, 1242),
        )
        rows = np.column_stack([boxes.centers_m, boxes.sizes_m, boxes.yaws]).astype(np.float64)
        result = FoundObjects(
            key=frame.key, boxes=rows, scores=np.linspace(1, 0.5, len(rows)), classes=frame.categories
        )
        write_found(tmp_path, [result], [camera])
        (back,) = read_found(tmp_path, [frame.key])
        assert back.boxes == pytest.approx(frame.boxes, abs=2e-3)
        assert back.image_boxes_px is not None
        assert back.alphas is not None
        assert frame.image_boxes_px is not None
        assert np.abs(np.exp(1j * back.alphas) - np.exp(1j * frame.alphas)).max() < 0.06
        far.append(np.abs(back.image_boxes_px - frame.image_boxes_px))
    assert np.median(np.concatenate(far)) < 0.2
