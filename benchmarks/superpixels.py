"""Superpixels: implementations side by side; what cutting large images at a smaller size costs; agreement.

    python -m benchmarks.superpixels --implementations [IMAGE_FOLDER ...] [--streets N]  (pip install fast-slic==0.4.0)
    python -m benchmarks.superpixels [IMAGE_FOLDER ...] [--streets N] [--repeats N]
    python -m benchmarks.superpixels --scikit-image [IMAGE_FOLDER ...]      (pip install scikit-image==0.26.0)

--implementations: the default, OpenCV's (`superpixels.like=null` with the settings that were its default),
scikit-image's with SLidR's settings and, where it is installed, fast-slic with 5 and 10 iterations at the default's
size, each on every image in turn. Time is processor time; "times OpenCV" is the median of ratios on the same image.
Street world at 900 x 1600 against its true pixel classes (measures below); real images: mean variance of colour
(CIELAB) within superpixels.

Without an option, three tables on `superpixels.max_pixels`. Time: one core, the same street image at four sizes. Street
world at 900 x 1600, whose true pixel classes are known: recall of class borders within 1 and 2 pixels, purity (share of
pixels in their superpixel's majority class, the achievable accuracy of segmentation), share of pixels that lie on a
border (more borders recall more), superpixels. Real images: the same borders and pixels against those of SLIC at full
size; SLIC on the same image with noise of one grey level shows how far two equally good cuts lie apart.

--scikit-image instead: SLidR's settings (150, compactness 6, sigma 3, 10 iterations) cut by scikit-image, by
`superpixels.like=scikit-image` and by the other implementations, against scikit-image: share of the pairs of pixels
that either has in one superpixel and both have (Jaccard), border recall, superpixels; and time, as a ratio.

Source: Neubert and Protzel, Superpixel Benchmark and Comparison (Forum Bildverarbeitung 2012), for the measures.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Bool, Int, UInt8

from benchmarks.common import REPOSITORY, markdown, seconds_of, setting
from data.convert.raw_files import read_image
from data.preparing import fast_slic, fast_slic_numpy
from data.preparing.superpixels import SuperpixelConfig, segment
from data.sample import IGNORE_LABEL
from data.street.config import StreetCameraConfig, StreetConfig, StreetLidarConfig
from data.street.log import generate_log

Image = UInt8[np.ndarray, "H W 3"]
Ids = Int[np.ndarray, "H W"]

ALL_PIXELS = 1 << 40
MAX_PIXELS = (ALL_PIXELS, 720_000, 360_000, 160_000, 90_000, 40_000)
SIZES = ((160, 320), (375, 1242), (900, 1600), (1280, 1920))
STREET_SIZE = (900, 1600)
TOLERANCES_PX = (1, 2)
REAL = REPOSITORY.parent / "shared" / "data"
_REAL_PATTERNS = ("nuscenes/samples/CAM_*/*.jpg", "kitti_raw/*/*/image_02/data/*0.png")


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, help="real images, .jpg or .png (default: ../shared/data)")
    parser.add_argument("--streets", type=int, default=12, help="streets, two images each (default: %(default)s)")
    parser.add_argument("--implementations", action="store_true", help="implementations side by side instead")
    parser.add_argument("--scikit-image", action="store_true", help="agreement with scikit-image instead")
    parser.add_argument("--repeats", type=int, default=5, help="of each time (default: %(default)s)")
    options = parser.parse_args(argv)
    cv2.setNumThreads(1)
    print(setting(0))
    if options.scikit_image:
        images = [read_image(path) for path in real_paths(options.folders)]
        print(f"\nAgainst scikit-image, {len(images)} real images\n\n{against_scikit_image(images)}")
        return 0
    streets = list(street_images(options.streets))
    if options.implementations:
        images = [read_image(path) for path in real_paths(options.folders)]
        print(f"\n{len(streets)} street images, {len(images)} real ones\n\n{implementations(streets, images)}")
        return 0
    print(f"\nms an image, median of {options.repeats}\n\n{times(streets[0][0], options.repeats)}")
    height, width = STREET_SIZE
    print(f"\nStreet world, {len(streets)} images of {height} x {width}\n\n{against_labels(streets)}")
    images = [read_image(path) for path in real_paths(options.folders)]
    if images:
        print(f"\nAgainst SLIC at full size, {len(images)} real images\n\n{against_full_size(images)}")
    return 0


def street_images(count: int) -> Iterator[tuple[Image, UInt8[np.ndarray, "H W"]]]:
    """Images and pixel classes: one front and one side camera a street."""
    cameras = StreetCameraConfig(
        names=("front", "side"),
        image_size=STREET_SIZE,
        yaws_deg=(0.0, 60.0),
        mounts_m=((1.1, 0.0, 1.65), (0.9, 0.35, 1.62)),
        time_offsets_s=(0.0, 0.0),
    )
    lidar = StreetLidarConfig(beams=8, azimuths=64)
    world = StreetConfig(num_logs=count, frames_per_log=1, lidar=lidar, cameras=cameras)
    for log in range(count):
        for sample in generate_log(world, log):
            for view in sample.cameras:
                assert view.image is not None
                assert view.labels is not None
                yield view.image, view.labels


def real_paths(folders: Sequence[Path]) -> list[Path]:
    """Images in the folders, or some of the real frames beside the repository."""
    if folders:
        return sorted(path for folder in folders for end in ("jpg", "png") for path in folder.rglob(f"*.{end}"))
    return sorted(path for pattern in _REAL_PATTERNS for path in REAL.glob(pattern))


def _name(max_pixels: int) -> str:
    return "all" if max_pixels == ALL_PIXELS else f"{max_pixels:,}"


def _config(max_pixels: int) -> SuperpixelConfig:
    return SuperpixelConfig(max_pixels=max_pixels)


# ---- tables
def times(image: Image, repeats: int) -> str:
    """Milliseconds by size of the image and by max_pixels."""
    rows = []
    for max_pixels in MAX_PIXELS:
        row = [_name(max_pixels)]
        for height, width in SIZES:
            sized = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
            row.append(f"{1e3 * _seconds(sized, _config(max_pixels), repeats):.0f}")
        rows.append(row)
    return markdown(["max_pixels", *(f"{height} x {width}" for height, width in SIZES)], rows)


def _seconds(image: Image, config: SuperpixelConfig, repeats: int) -> float:
    segment(image, config)
    return statistics.median(seconds_of(lambda: segment(image, config), time.perf_counter) for _ in range(repeats))


def against_labels(streets: Sequence[tuple[Image, UInt8[np.ndarray, "H W"]]]) -> str:
    """Recall of class borders, purity, border share and number of superpixels by max_pixels."""
    rows = []
    for max_pixels in MAX_PIXELS:
        cuts = [(segment(image, _config(max_pixels)), labels) for image, labels in streets]
        shares = np.mean([agreement(labels, ids, labels != IGNORE_LABEL) for ids, labels in cuts], axis=0)
        count = np.mean([ids.max() + 1 for ids, _ in cuts])
        rows.append([_name(max_pixels), *(f"{share:.3f}" for share in shares), f"{count:.0f}"])
    return markdown(["max_pixels", *AGREEMENT, "superpixels"], rows)


def against_full_size(images: Sequence[Image]) -> str:
    """Agreement with SLIC at full size by max_pixels, and with itself after noise."""
    found: dict[str, list[list[float]]] = {}
    rng = np.random.default_rng(0)
    for image in images:
        full = segment(image, _config(ALL_PIXELS))
        cuts = {"all, noise of 1 grey level": segment(_with_noise(image, rng), _config(ALL_PIXELS))}
        cuts |= {_name(pixels): segment(image, _config(pixels)) for pixels in MAX_PIXELS[1:]}
        for name, ids in cuts.items():
            found.setdefault(name, []).append(agreement(full, ids, np.ones(full.shape, dtype=bool)))
    rows = [[name, *(f"{value:.3f}" for value in np.mean(values, axis=0))] for name, values in found.items()]
    return markdown(["max_pixels", *AGREEMENT], rows)


def against_scikit_image(images: Sequence[Image]) -> str:
    """Agreement with scikit-image of our implementations, and of itself after noise, by size of the images."""
    cut = _scikit_image()
    rng = np.random.default_rng(0)
    found: dict[tuple[str, str], list[list[float]]] = {}
    for image in images:
        step = round((image.shape[0] * image.shape[1] / 150) ** 0.5)
        slidr = SuperpixelConfig(
            like="scikit-image",
            compactness=6.0,
            smoothing=3 / step,
            iterations=10,
            min_fragment_percent=50,
            max_pixels=ALL_PIXELS,
        )
        calls: dict[str, tuple[Callable[[Image], Ids], Image]] = {
            "scikit-image": (cut, image),
            "scikit-image, noise of 1 grey level": (cut, _with_noise(image, rng)),
            "like=scikit-image": (partial(segment, config=slidr), image),
            "like=null": (partial(segment, config=dataclasses.replace(slidr, like=None)), image),
            "like=fast-slic": (partial(segment, config=dataclasses.replace(slidr, like="fast-slic")), image),
        }
        truth, first_s = cut(image), 0.0
        for name, (call, seen) in calls.items():
            ids = call(seen)
            seconds = min(seconds_of(partial(call, seen)) for _ in range(3))
            first_s = first_s or seconds
            row = [pair_jaccard(truth, ids), border_recall(borders(truth), ids, 2), ids.max() + 1.0, first_s / seconds]
            found.setdefault((f"{image.shape[0]} x {image.shape[1]}", name), []).append([*row, 1e3 * seconds])
    header = ["image", "cut by", "pair Jaccard", "recall 2 px", "superpixels", "times as fast", "ms"]
    digits = (3, 3, 0, 1, 0)
    rows = [
        [*key, *(f"{value:.{d}f}" for value, d in zip(np.mean(values, axis=0), digits, strict=True))]
        for key, values in sorted(found.items())
    ]
    return markdown(header, rows)


OPENCV = SuperpixelConfig(like=None, smoothing=0.05, iterations=5)
SLIDR = SuperpixelConfig(
    like="scikit-image",
    compactness=6.0,
    smoothing=0.0306,
    iterations=10,
    min_fragment_percent=50,
    max_pixels=ALL_PIXELS,
)


def implementations(streets: Sequence[tuple[Image, UInt8[np.ndarray, "H W"]]], images: Sequence[Image]) -> str:
    """Time, agreement with classes, variance of colour and number of superpixels by implementation."""
    ways: dict[str, Callable[[Image], Ids]] = {
        "OpenCV": partial(segment, config=OPENCV),
        "default": partial(segment, config=SuperpixelConfig()),
        "scikit-image's, SLidR's settings": partial(segment, config=SLIDR),
        **_fast_slic(),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    measured: dict[str, list[list[float]]] = {name: [] for name in ways}
    real: dict[str, list[list[float]]] = {name: [] for name in ways}
    for image, labels in streets:
        for name, (ids, taken) in _each_on(ways, image).items():
            seconds[name].append(taken)
            measured[name].append([*agreement(labels, ids, labels != IGNORE_LABEL)[1:], ids.max() + 1.0])
    for image in images:
        for name, (ids, _) in _each_on(ways, image).items():
            real[name].append([colour_variance(image, ids), ids.max() + 1.0])
    rows = []
    for name in ways:
        times = np.array(seconds[name])
        faster = np.median(np.array(seconds["OpenCV"]) / times)
        means = [*np.mean(measured[name], axis=0), *(np.mean(real[name], axis=0) if real[name] else ())]
        texts = [f"{value:.{digits}f}" for value, digits in zip(means, (3, 3, 3, 0, 1, 0), strict=False)]
        rows.append([name, f"{1e3 * np.median(times):.1f}", f"{faster:.1f}", *texts])
    header = ["cut by", "ms", "times OpenCV", *AGREEMENT[1:], "superpixels"]
    return markdown([*header, *(["real: variance", "superpixels"] if images else [])], rows)


def _each_on(ways: Mapping[str, Callable[[Image], Ids]], image: Image) -> dict[str, tuple[Ids, float]]:
    """Superpixels and processor seconds of each implementation on one image."""
    found = {}
    for name, way in ways.items():
        start = time.process_time()
        ids = way(image)
        found[name] = ids, time.process_time() - start
    return found


def _fast_slic() -> dict[str, Callable[[Image], Ids]]:
    """fast-slic at the default's size with its default settings; nothing where it is not installed."""
    try:
        made = importlib.import_module("fast_slic.avx2").SlicAvx2  # no dependency of the project
    except ImportError:
        return {}

    def cut(image: Image, iterations: int) -> Ids:
        size = SuperpixelConfig().max_pixels
        scale = min(1.0, (size / (image.shape[0] * image.shape[1])) ** 0.5)
        small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        ids = made(num_components=150, num_threads=1).iterate(np.ascontiguousarray(small), iterations)
        whole = cv2.resize(ids.astype(np.uint16), image.shape[1::-1], interpolation=cv2.INTER_NEAREST)
        used = np.bincount(whole.ravel()) > 0
        return np.asarray((np.cumsum(used) - 1)[whole])

    return {f"fast-slic, {number} iterations": partial(cut, iterations=number) for number in (5, 10)}


def _scikit_image() -> Callable[[Image], Ids]:
    try:
        slic = importlib.import_module("skimage.segmentation").slic  # no dependency of the project
    except ImportError as error:
        raise SystemExit("scikit-image is not installed: pip install scikit-image==0.26.0") from error
    return partial(slic, n_segments=150, compactness=6, sigma=3, start_label=0)


def _with_noise(image: Image, rng: np.random.Generator) -> Image:
    noise = rng.integers(-1, 2, image.shape)
    noisy: Image = np.clip(image.astype(np.int16) + noise, 0, 255).astype(np.uint8)
    return noisy


# ---- measures
def pair_jaccard(first: Ids, second: Ids) -> float:
    """Of the pairs of pixels that share a superpixel in either, the share that does in both."""
    joint = np.bincount(first.ravel().astype(np.int64) * (int(second.max()) + 1) + second.ravel())
    counts = (joint, np.bincount(first.ravel()), np.bincount(second.ravel()))
    both, one, other = (float((n.astype(np.float64) * (n - 1)).sum()) for n in counts)
    return both / (one + other - both)


AGREEMENT = [*(f"recall {tolerance} px" for tolerance in TOLERANCES_PX), "purity", "border share"]


def colour_variance(image: Image, ids: Ids) -> float:
    """Mean squared distance in CIELAB of pixels from the mean of their superpixel."""
    planes = fast_slic_numpy.lab(image, *fast_slic.lab_tables(), 9, 9).reshape(3, -1) / 64
    of_pixel = ids.ravel()
    sizes = np.bincount(of_pixel)
    means = [np.bincount(of_pixel, plane) / sizes for plane in planes]
    return float(sum(np.mean((plane - mean[of_pixel]) ** 2) for plane, mean in zip(planes, means, strict=True)))


def agreement(truth: np.ndarray, ids: Ids, known: Bool[np.ndarray, "H W"]) -> list[float]:
    """The numbers that `AGREEMENT` names; purity where the truth is known."""
    recalls = [border_recall(borders(truth), ids, tolerance) for tolerance in TOLERANCES_PX]
    return [*recalls, purity(ids[known], truth[known]), float(borders(ids).mean())]


def borders(ids: np.ndarray) -> Bool[np.ndarray, "H W"]:
    """Pixels with a neighbour (left, right, up, down) of another id."""
    found = np.zeros(ids.shape, dtype=bool)
    below, beside = ids[1:] != ids[:-1], ids[:, 1:] != ids[:, :-1]
    found[1:] |= below
    found[:-1] |= below
    found[:, 1:] |= beside
    found[:, :-1] |= beside
    return found


def border_recall(truth: Bool[np.ndarray, "H W"], ids: Ids, tolerance_px: int) -> float:
    """Share of true border pixels with a superpixel's border at most so far away in rows and in columns."""
    reach = np.ones((2 * tolerance_px + 1,) * 2, np.uint8)
    near = cv2.dilate(borders(ids).astype(np.uint8), reach).astype(bool)
    return float((near & truth).sum() / max(truth.sum(), 1))


def purity(ids: Int[np.ndarray, " n"], classes: np.ndarray) -> float:
    """Share of pixels whose class is the most frequent one of their superpixel."""
    num_classes = int(classes.max()) + 1
    pairs = np.bincount(ids.astype(np.int64) * num_classes + classes, minlength=(int(ids.max()) + 1) * num_classes)
    return float(pairs.reshape(-1, num_classes).max(axis=1).sum() / ids.size)


if __name__ == "__main__":
    raise SystemExit(main())
