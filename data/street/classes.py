"""Semantic classes of the street world and their order."""

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

THINGS: tuple[Label, ...] = (Label.CAR, Label.TRUCK, Label.BUS, Label.PEDESTRIAN, Label.CYCLIST)
"""Classes whose objects carry an instance id and a box."""
