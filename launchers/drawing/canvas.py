"""Drawing primitives for pictures that people look at: colours, points, heat maps, captions, tiles.

Pure functions on numpy arrays; images are uint8 RGB, height x width x 3. Pixel (0, 0) is the *centre* of the top-left
pixel, so enlarging by s moves pixel coordinate u to (u + 0.5) s - 0.5: `enlarged_uv` does it for points that are
drawn on an enlarged image. Text is drawn in ASCII, the only alphabet of OpenCV's built-in fonts.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Bool, Float, Integer, UInt8

from data.sample import IGNORE_LABEL

BACKGROUND = (24, 26, 32)
FOREGROUND = (232, 232, 228)
UNLABELLED = (110, 110, 110)
_FONT = cv2.FONT_HERSHEY_SIMPLEX

RgbImage = UInt8[np.ndarray, "_ _ 3"]
"""Sizes are free: what comes out of a drawing function is often larger than what went in."""


# ---- colours


def turbo(values: Float[np.ndarray, " n"], low: float, high: float) -> UInt8[np.ndarray, "n 3"]:
    """Colours from blue (`low`) through green to red (`high`); values beyond the ends get the ends' colours.

    The darkest tenth of the map is left out: on the dark background those marks would be lost.
    """
    span = max(high - low, 1e-12)
    level = np.clip(np.nan_to_num((values - low) / span), 0.0, 1.0)
    table = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[:, None], cv2.COLORMAP_TURBO)[:, 0, ::-1]
    return np.asarray(table[np.round(26 + level * 229).astype(np.int64)], dtype=np.uint8)


_CLASS_COLOURS = (
    *((86, 180, 233), (0, 255, 0), (135, 15, 255), (195, 30, 0), (60, 255, 195), (105, 105, 225), (195, 195, 105)),
    *((180, 30, 150), (180, 105, 75), (210, 135, 0), (105, 180, 150), (0, 240, 255), (165, 255, 105), (180, 120, 165)),
    *((75, 120, 195), (195, 15, 90), (150, 225, 150), (120, 60, 225), (0, 120, 15), (0, 195, 45), (255, 105, 120)),
    *((255, 180, 210), (195, 135, 255), (45, 165, 105)),
)
"""Chosen one after another, each as far as can be (CIELAB) from those before it, from BACKGROUND and from UNLABELLED,
for normal vision and for people who see no red or no green."""


def class_palette(num_classes: int) -> UInt8[np.ndarray, "classes 3"]:
    """Colours that are told apart, also by the red-green blind as far as that goes. Stable by index.

    From the 25th on: golden-ratio steps of hue, three alternating brightnesses.
    """
    palette = np.zeros((num_classes, 3), dtype=np.uint8)
    palette[: len(_CLASS_COLOURS)] = _CLASS_COLOURS[:num_classes]
    for c in range(len(_CLASS_COLOURS), num_classes):
        # Golden ratio: neighbours in index lie far apart in hue.
        hue, value = (0.61803398875 * c + 0.58) % 1.0, (1.0, 0.72, 0.88)[c % 3]
        palette[c] = np.round(np.array(colorsys.hsv_to_rgb(hue, (0.75, 0.55, 0.9)[c % 3], value)) * 255)
    return palette


def class_colours(labels: UInt8[np.ndarray, " n"], num_classes: int) -> UInt8[np.ndarray, "n 3"]:
    """Colour of each label; grey for IGNORE_LABEL.

    Raises:
        ValueError: a label is neither a class nor IGNORE_LABEL.
    """
    known = labels != IGNORE_LABEL
    if known.any() and int(labels[known].max()) >= num_classes:
        raise ValueError(f"label {int(labels[known].max())} found, expected ids below {num_classes} or {IGNORE_LABEL}")
    colours = np.full((len(labels), 3), UNLABELLED, dtype=np.uint8)
    colours[known] = class_palette(num_classes)[labels[known]]
    return colours


# ---- size and position


def enlargement(image_size: tuple[int, int], target_width: int) -> int:
    """Whole factor that brings an image of (height, width) close to `target_width` without passing it; at least 1."""
    return max(1, target_width // image_size[1])


def enlarge(image: RgbImage, factor: int, *, smooth: bool = True) -> RgbImage:
    """The image `factor` times as large; not `smooth` keeps hard pixel edges."""
    if factor == 1:
        return np.asarray(image.copy())
    size = (image.shape[1] * factor, image.shape[0] * factor)
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_CUBIC if smooth else cv2.INTER_NEAREST))


def enlarged_uv(pixels_uv: Float[np.ndarray, "n 2"], factor: int) -> Float[np.ndarray, "n 2"]:
    """Where pixel coordinates lie after `enlarge`."""
    return np.asarray((pixels_uv + 0.5) * factor - 0.5)


# ---- marks


def paint_points(
    image: RgbImage,
    pixels_uv: Float[np.ndarray, "n 2"],
    colours: UInt8[np.ndarray, "n 3"],
    radius_px: Float[np.ndarray, " n"],
) -> RgbImage:
    """The image with a disc at each point, later rows over earlier ones: sort far to near.

    A point's centre pixel is its coordinate rounded; a disc of radius below 1 is that one pixel.
    """
    painted = image.copy()
    height, width = painted.shape[:2]
    centre = np.round(pixels_uv).astype(np.int64)
    reach = int(np.floor(radius_px.max())) if len(radius_px) else 0
    dv, du = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    offsets = np.stack([du.ravel(), dv.ravel()], axis=1)
    covered = np.hypot(offsets[:, 0], offsets[:, 1])[None] <= np.maximum(radius_px, 0.5)[:, None]
    point, offset = np.nonzero(covered)  # row-major: all pixels of a point follow those of the points before it
    at = centre[point] + offsets[offset]
    inside = (at[:, 0] >= 0) & (at[:, 0] < width) & (at[:, 1] >= 0) & (at[:, 1] < height)
    flat = at[inside, 1] * width + at[inside, 0]
    # The last writer of each pixel, found explicitly: assignment order of repeated indices is no documented promise.
    last = np.full(height * width, -1, dtype=np.int64)
    np.maximum.at(last, flat, point[inside])
    hit = last >= 0
    painted.reshape(-1, 3)[hit] = colours[last[hit]]
    return np.asarray(painted)


def boundaries(segments: Integer[np.ndarray, "height width"]) -> Bool[np.ndarray, "height width"]:
    """Pixels whose right or lower neighbour belongs to another segment."""
    edge = np.zeros(segments.shape, dtype=bool)
    edge[:, :-1] |= segments[:, :-1] != segments[:, 1:]
    edge[:-1] |= segments[:-1] != segments[1:]
    return edge


def blend(image: RgbImage, overlay: RgbImage, opacity: float) -> RgbImage:
    """`overlay` over `image`."""
    mixed = image.astype(np.float32) * (1 - opacity) + overlay.astype(np.float32) * opacity
    return np.round(mixed).astype(np.uint8)


def dimmed(image: RgbImage, share: float = 0.45) -> RgbImage:
    """Grey and darker, so that coloured marks stand out."""
    grey = image.astype(np.float32).mean(axis=2, keepdims=True)
    return np.repeat(np.round(grey * share), 3, axis=2).astype(np.uint8)


def cross(image: RgbImage, uv: tuple[float, float], size_px: int = 9) -> RgbImage:
    """The image with a white, black-rimmed cross that leaves the pixel at `uv` itself uncovered."""
    marked = image.copy()
    u, v = round(uv[0]), round(uv[1])
    gap = max(3, size_px // 4)  # the black rim's round end takes two of them
    for colour, thickness in (((0, 0, 0), 3), ((255, 255, 255), 1)):
        for du, dv in ((1, 0), (-1, 0), (0, 1), (0, -1)):
            start, end = (u + du * gap, v + dv * gap), (u + du * size_px, v + dv * size_px)
            cv2.line(marked, start, end, colour, thickness)
    return np.asarray(marked)


# ---- captions and tiles


def ascii_text(text: str) -> str:
    """The text with every character that the built-in font lacks replaced by '?'."""
    return text.encode("ascii", "replace").decode()


def text_width(text: str, scale: float = 0.5) -> int:
    """Width in pixels that `put_text` takes."""
    return int(cv2.getTextSize(ascii_text(text), _FONT, scale, 1)[0][0])


def put_text(
    image: RgbImage,
    text: str,
    left: int,
    baseline: int,
    *,
    scale: float = 0.5,
    colour: tuple[int, int, int] = FOREGROUND,
    rim: bool = False,
) -> None:
    """Write into `image` (in place); with a dark rim, it can be read on points."""
    if rim:
        cv2.putText(image, ascii_text(text), (left, baseline), _FONT, scale, BACKGROUND, 3, cv2.LINE_AA)
    cv2.putText(image, ascii_text(text), (left, baseline), _FONT, scale, colour, 1, cv2.LINE_AA)


def captioned(image: RgbImage, text: str) -> RgbImage:
    """The image with text above it, on as many lines as it needs; at most 3, what is longer is cut with '...'."""
    room = image.shape[1] - 12
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}".lstrip()
        if lines[-1] and text_width(longer) > room and len(lines) < _CAPTION_LINES:
            lines.append(word)
        else:
            lines[-1] = longer
    lines = [_cut(line, room) for line in lines]
    bar = np.full((4 + 20 * len(lines), image.shape[1], 3), BACKGROUND, dtype=np.uint8)
    for number, line in enumerate(lines):
        put_text(bar, line, 6, 17 + 20 * number)
    return np.concatenate([bar, image])


_CAPTION_LINES = 3


def _cut(text: str, room: int) -> str:
    if text_width(text) <= room:
        return text
    while text and text_width(text + "...") > room:
        text = text[:-1]
    return text + "..."


def with_scale(image: RgbImage, low: float, high: float, unit: str) -> RgbImage:
    """The image with a colour bar of `turbo` below it, its two ends and middle labelled in `unit`."""
    width = image.shape[1]
    bar = np.full((30, width, 3), BACKGROUND, dtype=np.uint8)
    left, right = 6, max(width - 7, 7)
    bar[4:12, left : right + 1] = turbo(np.linspace(0.0, 1.0, right - left + 1), 0.0, 1.0)[None]
    # As many digits as three labels of this span need: 0.00117 between -1.23 and 1.23 is 0.00.
    digits = 2 - math.floor(math.log10(high - low)) if high > low else 2
    for value, share in ((low, 0.0), ((low + high) / 2, 0.5), (high, 1.0)):
        text = (f"{value:.{max(digits, 0)}f} {unit}" if digits <= 5 else f"{value:.3g} {unit}").strip()
        middle = left + share * (right - left)
        at = int(np.clip(middle - text_width(text, 0.4) / 2, left, max(right - text_width(text, 0.4), left)))
        put_text(bar, text, at, 25, scale=0.4)
    return np.concatenate([image, bar])


def with_legend(image: RgbImage, names: Sequence[str], colours: UInt8[np.ndarray, "n 3"]) -> RgbImage:
    """The image with named colour patches below it, as many rows as they need."""
    rows: list[list[int]] = [[]]
    used = 6
    for i, name in enumerate(names):
        need = 30 + text_width(name, 0.4)
        if rows[-1] and used + need > image.shape[1]:
            rows.append([])
            used = 6
        rows[-1].append(i)
        used += need
    strip = np.full((18 * len(rows) + 6, image.shape[1], 3), BACKGROUND, dtype=np.uint8)
    for r, row in enumerate(rows):
        left, top = 6, 18 * r + 4
        for i in row:
            strip[top : top + 12, left : left + 12] = colours[i]
            put_text(strip, names[i], left + 17, top + 10, scale=0.4)
            left += 30 + text_width(names[i], 0.4)
    return np.concatenate([image, strip])


def tiled(images: Sequence[RgbImage], columns: int, gap_px: int = 6) -> RgbImage:
    """Images side by side, `columns` to a row, each at the top-left of its cell.

    Raises:
        ValueError: no images.
    """
    if not images:
        raise ValueError("no images to tile, expected at least one")
    rows = [images[i : i + columns] for i in range(0, len(images), columns)]
    widths = [max(row[c].shape[1] for row in rows if c < len(row)) for c in range(min(columns, len(images)))]
    heights = [max(image.shape[0] for image in row) for row in rows]
    height, width = sum(heights) + gap_px * (len(rows) - 1), sum(widths) + gap_px * (len(widths) - 1)
    sheet = np.full((height, width, 3), BACKGROUND, dtype=np.uint8)
    top = 0
    for row, row_height in zip(rows, heights, strict=True):
        left = 0
        for image, column_width in zip(row, widths, strict=False):
            sheet[top : top + image.shape[0], left : left + image.shape[1]] = image
            left += column_width + gap_px
        top += row_height + gap_px
    return sheet


def fit_width(image: RgbImage, width: int) -> RgbImage:
    """The image shrunk (never enlarged) to at most `width` pixels."""
    if image.shape[1] <= width:
        return image
    height = max(1, round(image.shape[0] * width / image.shape[1]))
    return np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA))


def png_bytes(image: RgbImage) -> bytes:
    """Lossless file content."""
    return _encoded(image, ".png", [])


def jpeg_bytes(image: RgbImage, quality: int = 88) -> bytes:
    """Small file content, for pages that hold many pictures."""
    return _encoded(image, ".jpg", [cv2.IMWRITE_JPEG_QUALITY, quality])


def _encoded(image: RgbImage, suffix: str, options: list[int]) -> bytes:
    done, content = cv2.imencode(suffix, image[..., ::-1], options)
    if not done:
        raise RuntimeError(f"OpenCV could not encode an image of shape {image.shape} as {suffix}")
    return bytes(content)
