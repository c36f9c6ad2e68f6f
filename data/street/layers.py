"""The texture layers that surfaces refer to; `textures.py` paints them for each world."""

from __future__ import annotations

from enum import IntEnum


class Layer(IntEnum):
    """Index of a texture layer."""

    # fmt: off
    (
        PLAIN, ASPHALT, LINE_SOLID, LINE_DASHED, ZEBRA, PARKING_LEFT, PARKING_RIGHT, SIDEWALK, KERB, TERRAIN,
        FACADE_0, FACADE_1, FACADE_2, FACADE_3, SHOP_0, SHOP_1, ROOF, WALL, BOARDS,
        LEAVES, BARK, METAL, PAINT, GLASS, WHEEL, CARGO, BUS_SIDE, CLOTH,
        SIGN_LIMIT, SIGN_WARNING, SIGN_STOP, SIGN_PARKING, SIGN_PRIORITY, SIGN_DIRECTION,
    ) = range(34)
    # fmt: on
