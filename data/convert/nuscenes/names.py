"""Names that nuScenes and the papers on it agree on: splits, classes, attributes, cameras.

Scenes are numbered: `scene-0061` is 61.

Source: the splits, class maps and attributes of the nuScenes development kit 1.2.0 (Caesar et al., nuScenes, CVPR 2020;
Fong et al., Panoptic nuScenes, RA-L 2022); the 100 held-out training scenes of Sautier et al., SLidR (CVPR 2022),
released code.
"""

from __future__ import annotations

CAMERAS = ("CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_RIGHT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_FRONT_LEFT")
"""Clockwise from the front."""

CLASSES = {
    "barrier": ("movable_object.barrier",),
    "bicycle": ("vehicle.bicycle",),
    "bus": ("vehicle.bus.bendy", "vehicle.bus.rigid"),
    "car": ("vehicle.car",),
    "construction_vehicle": ("vehicle.construction",),
    "motorcycle": ("vehicle.motorcycle",),
    "pedestrian": (
        *("human.pedestrian.adult", "human.pedestrian.child", "human.pedestrian.construction_worker"),
        "human.pedestrian.police_officer",
    ),
    "traffic_cone": ("movable_object.trafficcone",),
    "trailer": ("vehicle.trailer",),
    "truck": ("vehicle.truck",),
    "driveable_surface": ("flat.driveable_surface",),
    "other_flat": ("flat.other",),
    "sidewalk": ("flat.sidewalk",),
    "terrain": ("flat.terrain",),
    "manmade": ("static.manmade",),
    "vegetation": ("static.vegetation",),
}
"""The 16 classes of the segmentation challenge and the categories in each; the first ten are those of detection."""

CLASS_OF = {category: number for number, found in enumerate(CLASSES.values()) for category in found}
"""Category -> index into `CLASSES`; the others are ignored."""

CATEGORIES = (
    *("noise", "animal", "human.pedestrian.adult", "human.pedestrian.child", "human.pedestrian.construction_worker"),
    *("human.pedestrian.personal_mobility", "human.pedestrian.police_officer", "human.pedestrian.stroller"),
    *("human.pedestrian.wheelchair", "movable_object.barrier", "movable_object.debris"),
    *("movable_object.pushable_pullable", "movable_object.trafficcone", "static_object.bicycle_rack"),
    *("vehicle.bicycle", "vehicle.bus.bendy", "vehicle.bus.rigid", "vehicle.car", "vehicle.construction"),
    *("vehicle.emergency.ambulance", "vehicle.emergency.police", "vehicle.motorcycle", "vehicle.trailer"),
    *("vehicle.truck", "flat.driveable_surface", "flat.other", "flat.sidewalk", "flat.terrain"),
    *("static.manmade", "static.other", "static.vegetation", "vehicle.ego"),
)
"""Category of each raw label of lidarseg and panoptic files."""

BOX_CATEGORIES = CATEGORIES[CATEGORIES.index("animal") : CATEGORIES.index("flat.driveable_surface")]
"""The 23 categories that objects with a box may have: what `Boxes.categories` counts."""

ATTRIBUTES = (
    *("vehicle.moving", "vehicle.stopped", "vehicle.parked", "cycle.with_rider", "cycle.without_rider"),
    *("pedestrian.sitting_lying_down", "pedestrian.standing", "pedestrian.moving"),
)
"""What `Boxes.attributes` counts."""

_TRAIN = """
1-2 4-11 19-34 41-76 120-135 138-139 149-152 154-155 157-168 170-185 187-188 190-196 199-200 202-204 206-214 218-220
222 224-264 283-306 315-318 321 323-324 328 347-386 388-403 405-408 410-459 461-465 467-469 471-472 474-480 499-502
504-515 517-518 525-539 541-546 566 568 570-578 580 582-600 639-679 681 683-689 695-698 700-701 703-719 726-728 730-731
733-741 744 746-747 749-752 757-765 767-769 786-787 789-792 803-806 808-813 815-817 819-822 847-856 858 860-866 868-873
875-878 880 882-903 945 947 949 952-953 955-961 975-984 988-992 994-1025 1044-1058 1074-1102 1104-1110
"""
_VAL = """
3 12-18 35-36 38-39 92-110 221 268-278 329-332 344-346 519-524 552-565 625-627 629-630 632-638 770-771 775 777-778
780-784 794-800 802 904-917 919-931 962-963 966-969 971-972 1059-1073
"""
_TEST = """
77-91 111-119 140 142-148 265-266 279-282 307-314 333-343 481-498 547-551 601-604 606-624 827-831 833-842 844-846
932-933 935-943 1026-1043
"""
_MINI_TRAIN = "61 553 655 757 796 1077 1094 1100"
_MINI_VAL = "103 916"
_SLIDR_HELD_OUT = """
8 9 19 29 32 42 45 49 52 54 56 66 67 73 131 152 166 168 183 190 194 208 210 211 241 243 248 259 260 261 287 292 297 305
306 350 352 358 361 365 368 377 388 391 395 413 427 428 438 444 452 453 459 463 464 475 513 533 544 575 587 589 642 652
658 669 678 687 701 703 706 710 715 726 735 740 758 786 790 804 806 847 856 868 882 897 899 976 996 1012 1015 1016 1018
1020 1024 1044 1058 1094 1098 1107
"""


def _scenes(numbers: str) -> frozenset[str]:
    ranges = [word.partition("-") for word in numbers.split()]
    return frozenset(
        f"scene-{number:04d}" for first, _, last in ranges for number in range(int(first), int(last or first) + 1)
    )


OFFICIAL = {"train": _scenes(_TRAIN), "val": _scenes(_VAL), "test": _scenes(_TEST)}
"""Split -> scenes of v1.0-trainval and v1.0-test."""

MINI = {"mini_train": _scenes(_MINI_TRAIN), "mini_val": _scenes(_MINI_VAL)}
"""Split -> scenes of v1.0-mini; all of them are also in v1.0-trainval, two of mini_train in its val."""

_HELD_OUT = _scenes(_SLIDR_HELD_OUT)
SLIDR = OFFICIAL | {"train": OFFICIAL["train"] - _HELD_OUT, "minival": _HELD_OUT}
"""Split -> scenes, with the training scenes cut into 600 to learn from and 100 ("minival") to choose settings on."""

OTHER = "other"
"""Split of scenes that no list names: recordings of one's own in nuScenes' layout."""


def split_of(scene: str, splits: dict[str, frozenset[str]]) -> str:
    """The split that lists a scene, `OTHER` if none does."""
    return next((split for split, scenes in splits.items() if scene in scenes), OTHER)
