"""Semantic classes of the street world, their order and their colours in pictures."""

from __future__ import annotations

from enum import IntEnum


class Label(IntEnum):
    """Semantic class; the value is what point labels hold."""

    ROAD = 0
    PARKING = 1
    SIDEWALK = 2
    TERRAIN = 3
    BUILDING = 4
    FENCE = 5
    VEGETATION = 6
    TRUNK = 7
    POLE = 8
    SIGN = 9
    CAR = 10
    TRUCK = 11
    BUS = 12
    PEDESTRIAN = 13
    CYCLIST = 14


CLASS_NAMES: tuple[str, ...] = tuple(label.name.lower() for label in Label)
"""Class names; the index is the label."""

PALETTE: tuple[tuple[int, int, int], ...] = (
    (128, 64, 128),
    (250, 170, 160),
    (244, 35, 232),
    (152, 251, 152),
    (110, 110, 120),
    (190, 153, 100),
    (60, 140, 40),
    (120, 70, 20),
    (200, 200, 210),
    (255, 220, 0),
    (40, 90, 230),
    (0, 200, 220),
    (0, 60, 110),
    (220, 20, 60),
    (255, 110, 20),
)
"""RGB colour of each class for pictures."""

THINGS: tuple[Label, ...] = (Label.CAR, Label.TRUCK, Label.BUS, Label.PEDESTRIAN, Label.CYCLIST)
"""Classes whose objects carry an instance id and a box."""
