"""The two pictures of README.md: what a run sees and learns, and how the packages stand on each other.

    tandem prepare synthetic - runs/street/shards num_logs=50 frames_per_log=6
    tandem pretrain configs/pretrain/slidr_street.yaml data.shards=runs/street/shards run_dir=runs/slidr_street
    python -m benchmarks.readme_picture --run runs/slidr_street docs/images/readme.png
    python -m benchmarks.readme_picture docs/images/architecture.svg

The PNG shows one sweep of the validation split in one camera: LiDAR by distance, superpixels, and the first three
principal components of the learnt features of points and of pixels, as red, green and blue.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.common import setting
from data.convert.sets import SETTINGS
from data.loading.evaluation import load_batch
from data.sample import Sample
from data.storage.manifest import load_manifest
from data.storage.reader import SampleReader
from data.views.pairs import point_pixel_pairs
from launchers.drawing.canvas import RgbImage, captioned, tiled
from launchers.drawing.scenes import principal_colours, projection_view, superpixel_view
from launchers.drawing.training_pictures import PixelEmbedder, PointEmbedder
from launchers.training.restore import build_objective, find_checkpoint_folder, load_run_config
from models.methods import METHODS

_WIDTH_PX = 640

# Rows of the drawing, top to bottom: package, what lies in it. An arrow of the import rule only ever points down.
_FLOORS: tuple[tuple[tuple[str, str], ...], ...] = (
    (("launchers", "the verbs of tandem: prepare, pretrain, evaluate, report, submit, ..."),),
    (("configs", "typed settings; a run is one YAML file"),),
    (
        ("engine", "DeepSpeed loop, checkpoints, downstream protocols"),
        ("models", f"image and LiDAR networks, {len(METHODS)} methods"),
    ),
    (("data", f"raw logs to shards, shards to batches; {len(SETTINGS)} sources of logs"),),
    (("common", "files, retries, ranges"),),
)
_FLOW = ("raw logs", "shards", "batches", "loss, checkpoints", "results, report, exported weights")


def street_picture(run: Path, shards: str | None, key: str | None, camera: int) -> RgbImage:
    """Four views of one validation sample of the run's set, with the newest weights of the run."""
    checkpoint = find_checkpoint_folder(run)
    config = load_run_config(checkpoint)
    objective = build_objective(checkpoint, config)
    if not isinstance(objective, PointEmbedder) or not isinstance(objective, PixelEmbedder):
        raise SystemExit(f"{run}: the picture needs a method that embeds points and pixels, such as slidr")
    manifest = load_manifest(shards or config.data.shards)
    reader = SampleReader(manifest)
    rows = manifest.indices("val")
    index = next((int(row) for row in rows if manifest.key(int(row)) == key), int(rows[len(rows) // 2]))
    sample = reader.read(index)
    batch = load_batch(reader, [index], config.data, config.method.batch_spec())
    with torch.no_grad():
        points = objective.point_embeddings(batch)[batch.point_voxel].float().numpy()
        image = torch.from_numpy(_image_of(sample, camera, config.data.image_size).transpose(2, 0, 1).copy())
        pixels = objective.pixel_embeddings(image[None])[0].float().movedim(0, -1).numpy()
    return _sheet(sample, batch.points.numpy(), camera, points, pixels)


def _image_of(sample: Sample, camera: int, image_size: tuple[int, int]) -> RgbImage:
    image = sample.cameras[camera].image
    if image is None or image.shape[:2] != image_size:
        raise SystemExit(f"{sample.key}: expected a camera image of {image_size}, as the street world has it")
    return image


def _sheet(sample: Sample, points: np.ndarray, camera: int, of_points: np.ndarray, of_pixels: np.ndarray) -> RgbImage:
    """The four pictures; `points` [N, 3] are those that have the features `of_points` [N, D]."""
    view = sample.cameras[camera]
    assert view.image is not None
    assert view.superpixels is not None
    sweep = dataclasses.replace(sample, points_lidar=points, intensity=np.zeros(len(points), np.float32), labels=None)
    pairs = point_pixel_pairs(sweep, (camera,))
    range_m = np.linalg.norm(points[pairs.point].astype(np.float64), axis=1)
    colours = principal_colours(of_points)
    by_distance = projection_view(view.image, pairs.uv, range_m, target_width=_WIDTH_PX)
    segments = superpixel_view(view.image, view.superpixels, _WIDTH_PX)
    learnt = projection_view(view.image, pairs.uv, range_m, colours.colours(of_points)[pairs.point], _WIDTH_PX)
    pixels = np.kron(colours.colours(of_pixels), np.ones((2, 2, 1), np.uint8))
    captions = {
        "a LiDAR sweep over the image, by distance": by_distance,
        "superpixels: points and pixels in one are a pair": segments,
        "learnt features of the points (PCA)": learnt,
        "features of the pixels, in the same colours": pixels,
    }
    return tiled([captioned(image, text) for text, image in captions.items()], columns=2)


def small_png(image: RgbImage) -> bytes:
    """A PNG of 256 colours: a third of the size, and no difference that one sees in a README."""
    out = io.BytesIO()
    Image.fromarray(image).quantize(256, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    return out.getvalue()


def architecture() -> str:
    """The packages as floors of a house, and what becomes of a log, as SVG."""
    width, floor, gap, left = 860, 52, 14, 20
    parts, top = [], 16
    for row in _FLOORS:
        each = (width - 2 * left - gap * (len(row) - 1)) / len(row)
        for column, (name, what) in enumerate(row):
            x = left + column * (each + gap)
            parts += [
                f'<rect x="{x:g}" y="{top}" width="{each:g}" height="{floor}" rx="6" fill="#eef2f5" stroke="#607d8b"/>',
                f'<text x="{x + 14:g}" y="{top + 22}" font-weight="bold">{name}/</text>',
                f'<text x="{x + 14:g}" y="{top + 41}" font-size="13">{what}</text>',
            ]
        top += floor + gap
    top += 18
    steps = "  →  ".join(_FLOW)
    parts += [
        f'<text x="{left}" y="{top}" font-size="13">Each package imports only those below it; engine and models do not '
        "know each other.</text>",
        f'<text x="{left}" y="{top + 24}" font-size="13">{steps}</text>',
    ]
    height = top + 40
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="15" fill="#222">'
    )
    return "\n".join([head, f'<rect width="{width}" height="{height}" fill="#fff"/>', *parts, "</svg>", ""])


def main(argv: Sequence[str] | None = None) -> None:
    """Write one of the two."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("out", type=Path, help="file to write: .svg for the drawing, .png for the picture")
    p.add_argument("--run", type=Path, help="a finished run of slidr on the street world")
    p.add_argument("--shards", help="the run's set, if it has moved")
    p.add_argument("--sample", metavar="KEY", help="of the validation split (default: the one in its middle)")
    p.add_argument("--camera", type=int, default=1, help="of the sample (default: %(default)s, the front)")
    options = p.parse_args(argv)
    if options.out.suffix == ".svg":
        options.out.write_text(architecture(), encoding="utf-8")
        return
    if options.run is None:
        p.error("a picture needs --run")
    options.out.write_bytes(small_png(street_picture(options.run, options.shards, options.sample, options.camera)))
    seed = load_run_config(find_checkpoint_folder(options.run)).seed
    print(f"{options.out}: {options.out.stat().st_size / 1024:.0f} KiB. {setting(seed)}")


if __name__ == "__main__":
    main()
