"""Hand-made frames for detection metrics: cars in a row, each at its own place, with a tall box in the image."""

from collections.abc import Sequence

import numpy as np

from engine.detection.frames import FoundObjects, TrueObjects

SIZE = dict.fromkeys(("Car", "Van", "Truck", "Bus"), (4.0, 2.0, 1.5))
OTHER_SIZE = (1.0, 1.0, 2.0)
TALL_PX = 60.0


def box(name: str, x: float, y: float = 0.0, *, z: float = 0.0, yaw: float = 0.0) -> list[float]:
    return [x, y, z, *SIZE.get(name, OTHER_SIZE), yaw]


def rectangle(x: float, height: float = TALL_PX) -> list[float]:
    """In the image; those of places 10 m apart do not overlap."""
    return [20 * x, 100.0, 20 * x + 100, 100.0 + height]


def true_frame(
    objects: Sequence[tuple[str, float]],
    *,
    key: str = "0",
    heights: Sequence[float] | None = None,
    occlusions: Sequence[int] | None = None,
    truncations: Sequence[float] | None = None,
    alphas: Sequence[float] | None = None,
    ignored_px: Sequence[Sequence[float]] = (),
    yaws: Sequence[float] | None = None,
) -> TrueObjects:
    """Objects by (category, x)."""
    count = len(objects)
    tall = heights or [TALL_PX] * count
    return TrueObjects(
        key=key,
        boxes=np.array(
            [box(name, x, yaw=yaw) for (name, x), yaw in zip(objects, yaws or [0.0] * count, strict=True)], dtype=float
        ).reshape(-1, 7),
        categories=tuple(name for name, _ in objects),
        occlusions=np.array(occlusions or [0] * count, dtype=np.int64),
        truncations=np.array(truncations or [0.0] * count, dtype=float),
        alphas=np.array(alphas or [0.0] * count, dtype=float),
        image_boxes_px=np.array(
            [rectangle(x, height) for (_, x), height in zip(objects, tall, strict=True)], dtype=float
        ).reshape(-1, 4),
        ignored_px=np.array(ignored_px, dtype=float).reshape(-1, 4),
    )


def found_frame(
    objects: Sequence[tuple[str, float, float]],
    *,
    key: str = "0",
    heights: Sequence[float] | None = None,
    alphas: Sequence[float] | None = None,
    yaws: Sequence[float] | None = None,
    image: bool = True,
) -> FoundObjects:
    """Objects by (class, x, score)."""
    count = len(objects)
    tall = heights or [TALL_PX] * count
    return FoundObjects(
        key=key,
        boxes=np.array(
            [box(name, x, yaw=yaw) for (name, x, _), yaw in zip(objects, yaws or [0.0] * count, strict=True)],
            dtype=float,
        ).reshape(-1, 7),
        scores=np.array([score for _, _, score in objects], dtype=float),
        classes=tuple(name for name, _, _ in objects),
        image_boxes_px=np.array(
            [rectangle(x, height) for (_, x, _), height in zip(objects, tall, strict=True)], dtype=float
        ).reshape(-1, 4)
        if image
        else None,
        alphas=np.array(alphas or [0.0] * count, dtype=float),
    )
