import dataclasses

import numpy as np
import pytest

from engine.detection.frames import paired
from engine.detection.judge import judge
from engine.scores import JudgeError
from tests.engine.detection.objects import found_frame, true_frame


def test_frames_are_paired_by_key_in_the_order_of_the_truth() -> None:
    truth = [true_frame([], key=key) for key in "bac"]
    found = [found_frame([], key=key) for key in "abc"]
    assert [(true.key, frame.key) for true, frame in paired(truth, found)] == [("b", "b"), ("a", "a"), ("c", "c")]


@pytest.mark.parametrize(
    ("true_keys", "found_keys", "message"),
    [
        ("", "", "no frame to judge"),
        ("ab", "a", "frame b has no predictions .1 of 2"),
        ("a", "ab", "frame b has predictions, but no ground truth"),
        ("a", "aa", "frame a is found twice"),
        ("aa", "a", "frame a is twice in the ground truth"),
    ],
)
def test_frames_that_do_not_fit_are_refused(true_keys: str, found_keys: str, message: str) -> None:
    truth, found = [true_frame([], key=key) for key in true_keys], [found_frame([], key=key) for key in found_keys]
    with pytest.raises(JudgeError, match=message):
        judge("kitti", truth, found)


def test_an_unknown_benchmark_is_refused_with_the_known_ones() -> None:
    with pytest.raises(JudgeError, match=r"got 'coco', expected one of .*kitti"):
        judge("coco", [true_frame([])], [found_frame([])])


def test_objects_of_a_frame_must_be_whole() -> None:
    frame = found_frame([("Car", 0, 0.5), ("Car", 10, 0.4)])
    with pytest.raises(JudgeError, match="frame 0: 1 attributes of 2 found objects"):
        dataclasses.replace(frame, attributes=("",))
    with pytest.raises(JudgeError, match="score of found object 1 is nan"):
        dataclasses.replace(frame, scores=np.array([0.5, np.nan]))
    boxes = frame.boxes.copy()
    boxes[1, 0] = np.nan
    with pytest.raises(JudgeError, match="found object 1 is the box"):
        dataclasses.replace(frame, boxes=boxes)
    boxes[1] = [0, 0, 0, 4, -2, 1, 0]
    with pytest.raises(JudgeError, match="sizes of 0 or more"):
        dataclasses.replace(frame, boxes=boxes)
