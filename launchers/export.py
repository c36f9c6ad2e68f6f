"""`tandem export`: a trained network as a file for other code, proven by reading it back."""

from __future__ import annotations

import copy
import io
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from common.files import replace_file
from common.printable import say
from common.run_files import CHECKPOINT_CONFIG
from common.small_files import checked, read_json
from configs.runs import RunConfig, trained
from engine.checkpoint import read_state
from engine.errors import CheckpointError
from launchers.cli import guarded
from launchers.evaluation.networks import origin_of
from launchers.options.export import SUFFIXES, parser
from launchers.runs.provenance import own_version
from launchers.training.restore import build_objective, find_checkpoint_folder, load_run_config
from models.image.base import describe_input
from models.image.resnet import ResNet
from models.image.resnet_encoder import ResNetEncoder
from models.lidar.inputs import SLIDR_INPUT, PointInput
from models.lidar.minkowski import to_minkowski
from models.lidar.res16unet import Res16UNet
from models.methods.base import Objective
from models.weights import LoadReport, export_backbone, load_backbone, load_image_weights, load_slidr_backbone


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb."""
    p = parser()
    options = p.parse_args(argv)
    out = Path(options.out)
    suffix = FORMATS[options.format].suffix
    if out.is_dir() and Path(options.source).suffix in SUFFIXES.values():
        p.error(f"{out} is a folder: the run comes first, then the file; did you mean {out} {options.source}?")
    if out.suffix != suffix:
        p.error(f"OUT is {options.out!r}, expected a name that ends in {suffix} for {options.format}")
    if out.exists() and not options.force:
        p.error(f"{out} exists; choose another name or add --force")
    if options.intensity_scale is not None and options.format != SLIDR:
        p.error(f"--intensity-scale is for --format {SLIDR}; {options.format} takes the input that the run had")
    file_format = FORMATS[options.format]
    checkpoint = find_checkpoint_folder(Path(options.source))
    config = load_run_config(checkpoint)
    objective = build_objective(checkpoint, config)
    try:
        network = file_format.network(objective)
        metadata = {} if options.format == IMAGES else describe(checkpoint, config)
        if options.format == SLIDR:
            scale = options.intensity_scale or SLIDR_INPUT.intensity_scale
            metadata["input"] = PointInput.of(config.data.voxel).scaled(scale).to_text()
        file_format.write(out, objective, metadata)
        inputs = _random_image() if options.format == IMAGES else random_voxels(int(metadata["in_channels"]))
        report, difference = check(out, file_format, network, inputs)
    except ValueError as error:
        raise CheckpointError(f"{checkpoint} could not be exported as {options.format}: {error}") from error
    say(f"exported {checkpoint}\n{report.text()}")
    for name in sorted(metadata):
        say(f"  {name}: {metadata[name]}")
    fed = describe_input(_resnet_of(objective)) if options.format == IMAGES else PointInput.from_text(metadata["input"])
    say(f"input: {fed}")
    print(f"read back: features on a random input differ by at most {difference:g}")
    say(f"{out}: {out.stat().st_size / 2**20:.1f} MiB")
    return 0


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


# ---- formats


@dataclass(frozen=True)
class Format:
    """One file format.

    Attributes:
        suffix: of the file's name.
        network: the network of a method that the file holds.
        write: (path, objective, metadata) writes the file, whole or not at all.
        read: (path, network) fills a network of the same shape from the file.
        tolerance: how far features read back may be from the run's, over the largest of them: 0 where tensors are
            written as they are, rounding where a scale is folded in and out again.
    """

    suffix: str
    network: Callable[[Objective], nn.Module]
    write: Callable[[Path, Objective, dict[str, str]], None]
    read: Callable[[Path, nn.Module], LoadReport]
    tolerance: float = 0.0


def _backbone_of(objective: Objective) -> nn.Module:
    backbone = objective.part("backbone")
    if backbone is None:
        raise ValueError(f"{type(objective).__name__} has no 3D network; use --format {IMAGES} for its image network")
    return backbone


def _resnet_of(objective: Objective) -> ResNet:
    encoder = objective.part("image_backbone")
    if encoder is None:
        raise ValueError(
            f"{type(objective).__name__} has no image network that it trains; use --format tandem for its 3D network"
        )
    if not isinstance(encoder, ResNetEncoder):
        raise ValueError(f"the image network is a {type(encoder).__name__}, and torchvision's layout is for a ResNet")
    return encoder.network


def _write_tandem(path: Path, objective: Objective, metadata: dict[str, str]) -> None:
    export_backbone(path, _backbone_of(objective), metadata=metadata)


def _read_tandem(path: Path, backbone: nn.Module) -> LoadReport:
    return load_backbone(path, backbone, min_match=1.0)[0]


def _write_slidr(path: Path, objective: Objective, metadata: dict[str, str]) -> None:
    if not isinstance(objective.backbone, Res16UNet):
        raise ValueError(
            f"the backbone is a {type(objective.backbone).__name__}; SLidR's layout is for a Res16UNet; use --format "
            "tandem"
        )
    fed = PointInput.from_text(metadata["input"])
    state = to_minkowski(objective.backbone.state_dict(), _linear_head(objective), fed=fed)
    _save(path, {"model_points": _plain(state), "config": metadata})


def _read_slidr(path: Path, backbone: nn.Module) -> LoadReport:
    return load_slidr_backbone(path, backbone, min_match=1.0)


def _write_images(path: Path, objective: Objective, metadata: dict[str, str]) -> None:
    _save(path, _plain(_resnet_of(objective).state_dict()))


def _read_images(path: Path, network: nn.Module) -> LoadReport:
    return load_image_weights(network, "torchvision", str(path), min_match=1.0)


def _plain(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of tensors on the CPU.

    Raises:
        ValueError: one is not finite.
    """
    broken = [key for key, value in state.items() if not bool(torch.isfinite(value).all())]
    if broken:
        raise ValueError(f"not finite: {', '.join(broken[:5])}. The run has diverged; nothing was written")
    return {key: value.detach().cpu().clone() for key, value in state.items()}


def _save(path: Path, content: Mapping[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()  # torch's own writing of files turns every error into "file write failed"
    torch.save(content, buffer)
    replace_file(path, buffer.getvalue(), durable=False)


def _linear_head(objective: Objective) -> tuple[Float[Tensor, "D C"], Float[Tensor, " D"]] | None:
    """Weight and bias of a point head that is one linear layer; None for any other head."""
    head = objective.part("point_head")
    layers = [] if head is None else [part for part in head.modules() if next(part.children(), None) is None]
    if len(layers) == 1 and isinstance(layers[0], nn.Linear) and layers[0].bias is not None:
        return layers[0].weight, layers[0].bias
    return None


IMAGES = "torchvision"
"""The format of image networks."""
SLIDR = "slidr"
"""The layout whose input has another scale."""

FORMATS = {
    "tandem": Format(SUFFIXES["tandem"], _backbone_of, _write_tandem, _read_tandem),
    SLIDR: Format(SUFFIXES[SLIDR], _backbone_of, _write_slidr, _read_slidr, tolerance=1e-5),
    IMAGES: Format(SUFFIXES[IMAGES], _resnet_of, _write_images, _read_images),
}


# ---- proof


def check(path: Path, file_format: Format, network: nn.Module, inputs: tuple[Any, ...]) -> tuple[LoadReport, float]:
    """Fill a copy with scrambled weights from the file, and compare it with the original.

    Returns:
        The report of the load, and the largest difference of the features.

    Raises:
        CheckpointError: the difference is larger than the format's rounding; the file is removed.
    """
    copied = copy.deepcopy(network)
    with torch.no_grad():
        for tensor in (*copied.parameters(), *copied.buffers()):
            tensor.fill_(1)  # whatever the file does not fill will show
    report = file_format.read(path, copied)
    with torch.no_grad():
        features = network.eval()(*inputs)
        difference = float((features - copied.eval()(*inputs)).abs().max())
    if not difference <= file_format.tolerance * float(features.abs().max()):  # true of NaN, too
        path.unlink()
        raise CheckpointError(
            f"{path}: read back, its features differ by {difference} from the run's; the file was removed"
        )
    return report, difference


def random_voxels(in_channels: int) -> tuple[Int[Tensor, "M 4"], Float[Tensor, "M F"], int]:
    """Some hundred random voxels of two samples, negative coordinates among them, and the 2; the same at every call."""
    generator = torch.Generator().manual_seed(0)
    cells = torch.randint(-12, 12, (600, 3), generator=generator)
    sample = torch.randint(0, 2, (600, 1), generator=generator)
    coords = torch.unique(torch.cat([sample, cells], dim=1), dim=0).int()
    return coords, torch.rand(len(coords), in_channels, generator=generator), 2


def _random_image() -> tuple[Float[Tensor, "1 3 H W"]]:
    return (torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(0)),)


if __name__ == "__main__":
    sys.exit(guarded(main, sys.argv[1:]))
