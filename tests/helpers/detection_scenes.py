"""Small random scenes in which the rules of detection metrics bite: ties, neutral objects, frames without any."""

import numpy as np

from engine.detection.frames import FoundObjects, TrueObjects

SIZES = {
    "Car": (3.9, 1.6, 1.5),
    "Van": (5.1, 1.9, 2.2),
    "Truck": (10.1, 2.6, 3.2),
    "Bus": (11.0, 2.9, 3.2),
    "Pedestrian": (0.8, 0.6, 1.7),
    "Person_sitting": (0.8, 0.6, 1.3),
    "Cyclist": (1.8, 0.6, 1.7),
}

Frames = list[tuple[TrueObjects, FoundObjects]]


def scene(seed: int, categories: tuple[str, ...], classes: tuple[str, ...], *, frames: int | None = None) -> Frames:
    """Frames with objects in a row, most of them found, some twice, some in the wrong class, some where none is.

    Args:
        seed: of all randomness.
        categories: what true objects are.
        classes: what found objects are said to be.
        frames: how many; None: 1 to 5.
    """
    rng = np.random.default_rng(seed)
    few = max(1, int(rng.integers(1, len(categories) + 1)))
    mixed = tuple(rng.permutation(categories)[:few])
    noise = float(rng.choice([0.02, 0.1, 0.3]))
    count = int(rng.integers(1, 6)) if frames is None else frames
    return [_frame(rng, f"{number:03d}", mixed, classes, noise) for number in range(count)]


def _frame(
    rng: np.random.Generator, key: str, categories: tuple[str, ...], classes: tuple[str, ...], noise: float
) -> tuple[TrueObjects, FoundObjects]:
    names = tuple(str(name) for name in rng.choice(categories, rng.choice([0, 1, 3, 6])))
    count = len(names)
    boxes = np.array([_box(rng, name) for name in names], dtype=np.float64).reshape(-1, 7)
    image = np.array([_image_box(rng, number) for number in range(count)]).reshape(-1, 4)
    alphas = rng.uniform(-np.pi, np.pi, count)
    truth = TrueObjects(
        key=key,
        boxes=boxes,
        categories=names,
        num_lidar_points=rng.choice([0, 1, 5, 6, 200], count, p=[0.1, 0.2, 0.2, 0.1, 0.4]).astype(np.int64),
        difficulties=rng.choice([-1, 1, 2], count).astype(np.int64),
        truncations=rng.choice([0.0, 0.15, 0.2, 0.4, 0.9], count, p=[0.6, 0.1, 0.1, 0.1, 0.1]),
        occlusions=rng.choice([0, 1, 2, 3], count, p=[0.6, 0.2, 0.1, 0.1]).astype(np.int64),
        image_boxes_px=image,
        alphas=alphas,
        ignored_px=np.array([_image_box(rng, 10 + number) for number in range(rng.integers(0, 3))]).reshape(-1, 4),
    )
    return truth, _found(rng, truth, classes, noise)


def _found(rng: np.random.Generator, truth: TrueObjects, classes: tuple[str, ...], noise: float) -> FoundObjects:
    rows = [row for row in range(len(truth)) for _ in range(rng.choice([0, 1, 2], p=[0.2, 0.6, 0.2]))]
    rng.shuffle(rows)
    boxes = [truth.boxes[row] + rng.normal(size=7) * noise * [1, 0.5, 0.3, 0.5, 0.2, 0.2, 0.5] for row in rows]
    image = [truth.image_boxes_px[row] + rng.normal(size=4) * noise * 8 for row in rows]
    alphas = [truth.alphas[row] + rng.normal() * noise for row in rows]
    names = [truth.categories[row] for row in rows]
    names = [name if name in classes and rng.random() < 0.85 else str(rng.choice(classes)) for name in names]
    for row, name in enumerate(names):  # headings the other way, heights of exactly a limit
        if rng.random() < 0.1:
            boxes[row][6] += np.pi
        if rng.random() < 0.2:
            image[row][3] = image[row][1] + rng.choice([24.5, 25.0, 39.9, 40.0])
        if rng.random() < 0.15:
            boxes[row] = np.array(_box(rng, name))
    for number in range(rng.choice([0, 1, 3])):  # nothing is there, but perhaps a region that is not labelled
        name = str(rng.choice(classes))
        names.append(name)
        boxes.append(np.array(_box(rng, name)))
        image.append(_image_box(rng, 10 + number) + rng.normal(size=4))
        alphas.append(float(rng.uniform(-3, 3)))
    table = np.array(boxes, dtype=np.float64).reshape(-1, 7)
    table[:, 3:6] = np.abs(table[:, 3:6])
    table[:, 6] = (table[:, 6] + np.pi) % (2 * np.pi) - np.pi
    ties = rng.choice([0.0, 0.1, 0.35, 0.5, 0.73, 0.9, 1.0], len(names))
    scores = np.where(rng.random(len(names)) < 0.5, ties, rng.random(len(names)).round(3))
    return FoundObjects(
        key=truth.key,
        boxes=table,
        scores=scores,
        classes=tuple(names),
        image_boxes_px=np.array(image, dtype=np.float64).reshape(-1, 4),
        alphas=np.array(alphas, dtype=np.float64),
    )


def _box(rng: np.random.Generator, name: str) -> list[float]:
    """Anywhere on a few spots, so that objects meet, at 5 to 60 m."""
    size = np.array(SIZES[name]) * rng.uniform(0.9, 1.1, 3)
    x = rng.choice([6.0, 12.0, 29.7, 31.0, 49.0, 52.0, 60.0]) + rng.normal() * 0.8
    return [x, rng.choice([-3.0, 0.0, 3.0]) + rng.normal() * 0.5, rng.normal() * 0.1, *size, rng.uniform(-3.1, 3.1)]


def _image_box(rng: np.random.Generator, number: int) -> np.ndarray:
    """Each number has its own place in a row."""
    height = rng.choice([20.0, 24.9, 25.0, 25.1, 39.9, 40.0, 60.0], p=[0.05, 0.05, 0.1, 0.1, 0.1, 0.1, 0.5])
    left, top = 60.0 * number + rng.normal(), 100.0 + rng.integers(0, 4)
    return np.array([left, top, left + 50.0, top + height])
