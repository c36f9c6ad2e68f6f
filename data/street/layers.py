"""The texture layers that surfaces refer to; `textures.py` paints them anew for each world."""

from __future__ import annotations

from enum import IntEnum, auto


class Layer(IntEnum):
    """Index of a texture layer."""

    PLAIN = 0
    ASPHALT = auto()
    LINE_SOLID = auto()
    LINE_DASHED = auto()
    ZEBRA = auto()
    PARKING_LEFT = auto()
    PARKING_RIGHT = auto()
    SIDEWALK = auto()
    KERB = auto()
    TERRAIN = auto()
    FACADE_0 = auto()
    FACADE_1 = auto()
    FACADE_2 = auto()
    FACADE_3 = auto()
    SHOP_0 = auto()
    SHOP_1 = auto()
    ROOF = auto()
    WALL = auto()
    BOARDS = auto()
    LEAVES = auto()
    BARK = auto()
    METAL = auto()
    PAINT = auto()
    GLASS = auto()
    WHEEL = auto()
    CARGO = auto()
    BUS_SIDE = auto()
    CLOTH = auto()
    SIGN_LIMIT = auto()
    SIGN_WARNING = auto()
    SIGN_STOP = auto()
    SIGN_PARKING = auto()
    SIGN_PRIORITY = auto()
    SIGN_DIRECTION = auto()
