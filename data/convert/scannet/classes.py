"""ScanNet's classes and official split (v2 lists of the benchmark), as names and numbers."""

from __future__ import annotations

import re

import numpy as np
from jaxtyping import Int, UInt8

from data.sample import IGNORE_LABEL

EVALUATED = {
    1: "wall",
    2: "floor",
    3: "cabinet",
    4: "bed",
    5: "chair",
    6: "sofa",
    7: "table",
    8: "door",
    9: "window",
    10: "bookshelf",
    11: "picture",
    12: "counter",
    14: "desk",
    16: "curtain",
    24: "refrigerator",
    28: "shower curtain",
    33: "toilet",
    34: "sink",
    36: "bathtub",
    39: "otherfurniture",
}
"""NYU40 id -> name of the 20 classes of the benchmark; the other ids are not evaluated."""

CLASS_NAMES = tuple(EVALUATED.values())
NUM_NYU40 = 40

_OTHERS = {
    13: "blinds",
    15: "shelves",
    17: "dresser",
    18: "pillow",
    19: "mirror",
    20: "floor mat",
    21: "clothes",
    22: "ceiling",
    23: "books",
    25: "television",
    26: "paper",
    27: "towel",
    29: "box",
    30: "whiteboard",
    31: "person",
    32: "night stand",
    35: "lamp",
    37: "bag",
    38: "otherstructure",
    40: "otherprop",
}
BOX_CATEGORIES = tuple((EVALUATED | _OTHERS)[number] for number in range(1, NUM_NYU40 + 1))
"""Names of the NYU40 ids, from 1: what `Boxes.categories` counts. Detection is judged on 18 of them (VoteNet)."""

_CLASS_OF_NYU40 = np.full(NUM_NYU40 + 1, IGNORE_LABEL, dtype=np.uint8)
_CLASS_OF_NYU40[list(EVALUATED)] = np.arange(len(EVALUATED))

SCAN = re.compile(r"scene(\d{4})_(\d{2})\Z")
"""Name of a scan: room and number of the visit."""
_FIRST_TEST_ROOM = 707

# fmt: off
VAL_ROOMS = frozenset({
    11, 15, 19, 25, 30, 46, 50, 63, 64, 77, 81, 84, 86, 88, 95, 100, 131, 139, 144, 146, 149, 153, 164, 169, 187, 193,
    196, 203, 207, 208, 217, 221, 222, 231, 246, 249, 251, 256, 257, 277, 278, 300, 304, 307, 314, 316, 328, 329, 334,
    338, 342, 343, 351, 353, 354, 355, 356, 357, 377, 378, 382, 389, 406, 412, 414, 423, 426, 427, 430, 432, 435, 441,
    458, 461, 462, 474, 488, 490, 494, 496, 500, 518, 527, 535, 549, 550, 552, 553, 558, 559, 565, 568, 574, 575, 578,
    580, 583, 591, 593, 595, 598, 599, 606, 607, 608, 609, 616, 618, 621, 629, 633, 643, 644, 645, 647, 648, 651, 652,
    653, 655, 658, 660, 663, 664, 665, 670, 671, 678, 684, 685, 686, 689, 690, 693, 695, 696, 697, 699, 700, 701, 702,
    704,
})
# fmt: on
"""Rooms of the 312 scans of the list "val"; all scans of a room are in one list."""


def split_of(scan: str) -> str:
    """Official split of a scan: "train", "val", or "test" from room 707 on."""
    match = SCAN.match(scan)
    assert match is not None, scan
    room = int(match[1])
    if room >= _FIRST_TEST_ROOM:
        return "test"
    return "val" if room in VAL_ROOMS else "train"


def evaluated_classes(nyu40: Int[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    """Class of each NYU40 id, IGNORE_LABEL for those that are not evaluated, 0 (unlabelled) and beyond 40."""
    known = (nyu40 >= 0) & (nyu40 <= NUM_NYU40)
    return np.asarray(_CLASS_OF_NYU40[np.where(known, nyu40, 0).astype(np.int64)])
