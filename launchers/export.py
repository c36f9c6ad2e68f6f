"""`tandem export`: a trained network as a file for other code, proven by reading it back."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from common.printable import say
from common.run_files import CHECKPOINT_CONFIG
from common.small_files import checked, read_json
from configs.runs import RunConfig, trained
from engine.checkpoint import read_state
from engine.errors import CheckpointError
from launchers.cli import guarded
from launchers.evaluation.networks import origin_of
from launchers.exporting.formats import FORMATS, IMAGES, SLIDR, resnet_of
from launchers.exporting.layouts import left_behind, text_beside, write_layout
from launchers.exporting.onnx_file import IMAGE_SIZE, Part, onnx_files, write_onnx
from launchers.exporting.proof import check, random_image, random_voxels
from launchers.exporting.scale import scaled
from launchers.options.export import ONNX, SUFFIXES, parser
from launchers.runs.provenance import own_version
from launchers.training.restore import build_objective, find_checkpoint_folder, load_run_config
from models.image.base import describe_input
from models.layouts.base import Fed
from models.layouts.known import LAYOUTS
from models.lidar.inputs import SLIDR_INPUT, PointInput
from models.methods.base import Objective


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb."""
    p = parser()
    options = p.parse_args(argv)
    out = Path(options.out)
    suffix = SUFFIXES[options.format]
    if out.is_dir() and Path(options.source).suffix in SUFFIXES.values():
        p.error(f"{out} is a folder: the run comes first, then the file; did you mean {out} {options.source}?")
    if out.suffix != suffix:
        p.error(f"OUT is {options.out!r}, expected a name that ends in {suffix} for {options.format}")
    beside = onnx_files(out)[1:] if options.format == ONNX else [] if options.format in FORMATS else [text_beside(out)]
    for path in (out, *beside):
        if path.exists() and not options.force:
            p.error(f"{path} exists; choose another name or add --force")
    if options.intensity_scale is not None and options.format not in LAYOUTS:
        p.error(
            f"--intensity-scale is for layouts of 3D networks ({', '.join(LAYOUTS)}); {options.format} takes the input "
            "that the run had"
        )
    if options.format != ONNX and (options.part, options.image_size) != (None, None):
        p.error(f"--part and --image-size are for --format {ONNX}")
    if options.image_size is not None and min(options.image_size) < 1:
        p.error(f"--image-size: got {options.image_size}, expected two numbers of pixels")
    checkpoint = find_checkpoint_folder(Path(options.source))
    config = load_run_config(checkpoint)
    if "backbone" in config.method.FED_BY_METHOD and (options.format != IMAGES and options.part != "image_backbone"):
        raise CheckpointError(
            f"{checkpoint} could not be exported as {options.format}: its 3D network is fed with what the rest of "
            f"{type(config.method).__name__} makes of points, and no file holds that; expected --format {IMAGES}, "
            f"or --format {ONNX} --part image_backbone: its image network"
        )
    objective = build_objective(checkpoint, config)
    try:
        if options.format == ONNX:
            size = tuple(options.image_size or IMAGE_SIZE)
            _export_onnx(out, options.part, (size[0], size[1]), checkpoint, config, objective)
        elif options.format in FORMATS:
            _export_format(out, options.format, options.intensity_scale, checkpoint, config, objective)
        else:
            _export_layout(out, options.format, options.intensity_scale, checkpoint, config, objective)
    except ValueError as error:
        raise CheckpointError(f"{checkpoint} could not be exported as {options.format}: {error}") from error
    say(f"{out}: {out.stat().st_size / 2**20:.1f} MiB")
    return 0


def _export_layout(
    out: Path, name: str, intensity_scale: float | None, checkpoint: Path, config: RunConfig, objective: Objective
) -> None:
    fed = Fed(points=PointInput.of(config.data.voxel), voxels=config.data.voxel)
    network = LAYOUTS[name].network(objective)
    if intensity_scale is not None:
        network, fed = scaled(network, fed, intensity_scale)
    metadata = {**describe(checkpoint, config), "input": fed.points.to_text()}
    proven = write_layout(out, LAYOUTS[name], network, fed, metadata)
    say(f"exported {checkpoint} for {LAYOUTS[name].title}")
    for key in sorted(metadata):
        say(f"  {key}: {metadata[key]}")
    say(f"input: {fed.points}")
    added = f", {proven.added} of them 0 here" if proven.added else ""
    print(
        f"read back: all {proven.tensors} tensors{added}; rebuilt from them, features differ by at most "
        f"{proven.difference:.2g} of the largest"
    )
    missing = left_behind(LAYOUTS[name], objective)
    if missing:
        say(missing)
    say(f"{text_beside(out)}: what to set there")


def _export_onnx(
    out: Path,
    part: Part | None,
    image_size: tuple[int, int],
    checkpoint: Path,
    config: RunConfig,
    objective: Objective,
) -> None:
    fed = Fed(points=PointInput.of(config.data.voxel), voxels=config.data.voxel)
    proven = write_onnx(out, objective, part, fed, image_size)
    say(f"exported {checkpoint}: {proven.part}")
    print(
        f"run in onnxruntime, features on a random input differ by at most {proven.difference:.2g} of the largest from "
        "the run's"
    )
    say(f"beside it: {', '.join(path.name for path in proven.beside)}")


def _export_format(
    out: Path, name: str, intensity_scale: float | None, checkpoint: Path, config: RunConfig, objective: Objective
) -> None:
    file_format = FORMATS[name]
    network = file_format.network(objective)
    metadata = {} if name == IMAGES else describe(checkpoint, config)
    if name == SLIDR:
        metadata["input"] = (
            PointInput.of(config.data.voxel).scaled(intensity_scale or SLIDR_INPUT.intensity_scale).to_text()
        )
    file_format.write(out, objective, metadata)
    inputs = random_image() if name == IMAGES else random_voxels(int(metadata["in_channels"]))
    report, difference = check(out, file_format, network, inputs)
    say(f"exported {checkpoint}\n{report.text()}")
    for key in sorted(metadata):
        say(f"  {key}: {metadata[key]}")
    fed = describe_input(resnet_of(objective)) if name == IMAGES else PointInput.from_text(metadata["input"])
    say(f"input: {fed}")
    print(f"read back: features on a random input differ by at most {difference:g}")


def describe(checkpoint: Path, run: RunConfig) -> dict[str, str]:
    """What a reader of the file needs to know, as strings: how to build the network, what to feed it, where it is from.

    "method", "backbone" and "voxel" are the run's own settings (the latter two as JSON), "in_channels" the features of
    an input voxel, "input" what they mean (`models.lidar.inputs.PointInput`), "run" and "step" say which weights these
    are, "teacher" and "leak" what they learnt from beside the data. `run` is the checkpoint's config as it was loaded.

    Raises:
        CheckpointError: the checkpoint's config is missing or damaged.
    """
    path = checkpoint / CHECKPOINT_CONFIG
    try:
        config = read_json(path, {"run_dir": "text", "data": "mapping"})
        _, method = trained(config or {})
        checked(method, {"name": "text", "backbone": "mapping"}, {})
        checked(config["data"], {"voxel": "mapping"}, {})
        checked(method["backbone"], {"in_channels": "count"}, {})
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be used ({error}); name another checkpoint") from error
    teacher, leak = origin_of(run)
    return {
        "teacher": teacher,
        "leak": leak,
        "input": PointInput.of(run.data.voxel).to_text(),
        "method": method["name"],
        "backbone": json.dumps(method["backbone"]),
        "voxel": json.dumps(config["data"]["voxel"]),
        "in_channels": str(method["backbone"]["in_channels"]),
        "run": Path(config["run_dir"]).name,
        "step": str(read_state(checkpoint)["step"]),
        "tandem_version": own_version(),
    }


if __name__ == "__main__":
    sys.exit(guarded(main, sys.argv[1:]))
