"""PandaSet's classes, the evaluation classes they become, and two ways in which the field splits its sequences.

Source: the set's `classes.json`; Puy et al., Three Pillars Improving Vision Foundation Model Distillation for Lidar
(ScaLR, CVPR 2024), released code, for the map and the split by latitude; OpenPCDet's configuration for the other one.
"""

from __future__ import annotations

from data.sample import IGNORE_LABEL

CLASS_NAMES = (
    *("road", "traffic sign", "barrier", "pedestrian", "vegetation", "road marking", "sidewalk", "manmade"),
    *("traffic cone", "car", "motorcycle", "truck", "bus", "bicycle", "other vehicle", "ground", "driveway"),
)

CLASSES: dict[str, tuple[int, str | None]] = {
    "Smoke": (1, None),
    "Exhaust": (2, None),
    "Spray or rain": (3, None),
    "Reflection": (4, None),
    "Vegetation": (5, "vegetation"),
    "Ground": (6, "ground"),
    "Road": (7, "road"),
    "Lane Line Marking": (8, "road marking"),
    "Stop Line Marking": (9, "road marking"),
    "Other Road Marking": (10, "road marking"),
    "Sidewalk": (11, "sidewalk"),
    "Driveway": (12, "driveway"),
    "Car": (13, "car"),
    "Pickup Truck": (14, "truck"),
    "Medium-sized Truck": (15, "truck"),
    "Semi-truck": (16, "truck"),
    "Towed Object": (17, "other vehicle"),
    "Motorcycle": (18, "motorcycle"),
    "Other Vehicle - Construction Vehicle": (19, "other vehicle"),
    "Other Vehicle - Uncommon": (20, "other vehicle"),
    "Other Vehicle - Pedicab": (21, "other vehicle"),
    "Emergency Vehicle": (22, None),
    "Bus": (23, "bus"),
    "Personal Mobility Device": (24, None),
    "Motorized Scooter": (25, None),
    "Bicycle": (26, "bicycle"),
    "Train": (27, "other vehicle"),
    "Trolley": (28, "other vehicle"),
    "Tram / Subway": (29, "other vehicle"),
    "Pedestrian": (30, "pedestrian"),
    "Pedestrian with Object": (31, "pedestrian"),
    "Animals - Bird": (32, None),
    "Animals - Other": (33, None),
    "Pylons": (34, "traffic cone"),
    "Road Barriers": (35, "barrier"),
    "Signs": (36, "traffic sign"),
    "Cones": (37, "traffic cone"),
    "Construction Signs": (38, "traffic sign"),
    "Temporary Construction Barriers": (39, "barrier"),
    "Rolling Containers": (40, None),
    "Building": (41, "manmade"),
    "Other Static Object": (42, "manmade"),
}
"""PandaSet's name of a class -> its number in the point labels, and what it becomes; None: ignored. 0 is no class."""

LABEL_OF_NAME = {name: IGNORE_LABEL if kind is None else CLASS_NAMES.index(kind) for name, (_, kind) in CLASSES.items()}
LABEL_OF_NUMBER = (IGNORE_LABEL, *(LABEL_OF_NAME[name] for name in CLASSES))
"""By number, from 0."""

SCALR_LATITUDE_DEG = 37.6
"""Sequences north of it (San Francisco) are "train", the others (El Camino Real) "val"."""

OPENPCDET_SPLITS = {
    "train": (
        *("014", "050", "079", "048", "093", "091", "063", "104", "100", "092", "012", "047", "018", "006", "099"),
        *("085", "035", "041", "052", "105", "030", "113", "002", "084", "028", "119", "044", "005", "102", "034"),
        *("077", "064", "067", "058", "019", "015", "037", "095", "120", "066", "023", "071", "117", "098", "139"),
        *("038", "116", "046", "088", "089", "040", "033", "016", "024", "122", "039", "158", "069", "124", "123"),
        "106",
    ),
    "val": (
        *("045", "059", "055", "051", "020", "097", "073", "043", "003", "101", "027", "056", "011", "078", "080"),
        *("109", "042", "021", "094", "057"),
    ),
    "test": (
        *("074", "004", "086", "062", "068", "008", "001", "110", "053", "115", "054", "065", "017", "103", "072"),
        *("013", "029", "090", "112", "149", "070", "032"),
    ),
}
