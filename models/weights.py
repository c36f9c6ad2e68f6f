"""Other people's weights into our networks, and ours into files; `models.weight_files` reads, and executes nothing.

Every load gives a `LoadReport` (matched, missing, mismatched, unused) and refuses below a set share of matches: a
wrong prefix otherwise leaves a random network that trains and disappoints.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from common.files import replace_file
from common.nearby import nearby
from common.run_files import WEIGHTS_FILE, damage, list_checkpoints
from models.image.base import IMAGENET_STD
from models.lidar.inputs import SLIDR_INPUT, PointInput
from models.lidar.minkowski import from_minkowski
from models.weight_files import read_checkpoint as read_checkpoint

MIN_MATCH = 0.9
"""Share of a network's tensors that a file must fill."""

BACKBONE_FORMAT = "tandem-backbone-1"


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """What became of each key."""

    source: str  # file or description, for the text
    matched: tuple[str, ...]  # filled from the file
    missing: tuple[str, ...]  # in the network, not in the file
    mismatched: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]  # key, shape in the network, in the file
    unused: tuple[str, ...]  # in the file, not in the network, and not left out on purpose
    dropped: tuple[str, ...] = ()  # left out by the format's rule (classifier, queue, momentum copy)

    @property
    def share(self) -> float:
        """Matched part of the network's tensors, 0 to 1."""
        total = len(self.matched) + len(self.missing) + len(self.mismatched)
        return len(self.matched) / total if total else 1.0

    def text(self) -> str:
        """A few lines for a person."""
        lines = [
            f"{self.source}: {len(self.matched)} matched ({self.share:.0%} of the network), "
            f"{len(self.missing)} missing, {len(self.mismatched)} mismatched, {len(self.unused)} unused, "
            f"{len(self.dropped)} dropped by rule"
        ]
        shapes = [f"{key} (network {want}, file {got})" for key, want, got in self.mismatched]
        for name, keys in (("missing", self.missing), ("mismatched", shapes), ("unused", self.unused)):
            if keys:
                more = f", ... {len(keys) - 5} more" if len(keys) > 5 else ""
                lines.append(f"  {name}: {', '.join(keys[:5])}{more}")
        return "\n".join(lines)


# ---- image formats


@dataclass(frozen=True, kw_only=True)
class KeyRule:
    """How one family of checkpoints names a tower's tensors.

    Attributes:
        containers: keys under which the state dict may lie, first found wins; none: the file is the state dict.
        prefix: regular expression that a tower's key begins with and that is cut off; keys without it are dropped.
        drop: regular expression of keys (after cutting) that are no part of an encoder.
        bgr: the network was fed BGR from 0 to 255, less ImageNet's mean, and is converted to the input that networks
            have here. Exact, padding included: both inputs are 0 where the image has the mean colour.
    """

    containers: tuple[str, ...] = ()
    prefix: str = ""
    drop: str = r"fc\."
    bgr: bool = False

    def select(self, content: Mapping[str, object]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
        """The tower's tensors by the network's names, and the keys that were dropped."""
        state: Mapping[str, object] = content
        for name in self.containers:
            inner = content.get(name)
            if isinstance(inner, Mapping):
                state = inner
                break
        tensors: dict[str, Tensor] = {}
        dropped: list[str] = []
        for key, value in state.items():
            prefix = re.match(self.prefix, key)
            name = key[prefix.end() :] if prefix else ""
            if prefix is None or re.match(self.drop, name) or not isinstance(value, Tensor):
                dropped.append(key)
            else:
                tensors[name] = value
        first = tensors.get("conv1.weight")
        if self.bgr and first is not None and first.ndim == 4 and first.shape[1] == 3:
            tensors["conv1.weight"] = first.flip(1) * (255 * torch.tensor(IMAGENET_STD)).view(1, 3, 1, 1)
        return tensors, tuple(dropped)


_NO_RESNET = r"(?!conv1\.|bn1\.|layer[1-4]\.)"

IMAGE_FORMATS: dict[str, KeyRule] = {
    "torchvision": KeyRule(),
    "moco_v1": KeyRule(containers=("state_dict",), prefix=r"module\.encoder_q\."),
    "moco_v2": KeyRule(containers=("state_dict",), prefix=r"module\.encoder_q\."),
    "moco_v3": KeyRule(containers=("state_dict",), prefix=r"module\.base_encoder\."),
    # Full checkpoints hold teacher and student; the teacher is the better network (DINO, section 5.2).
    "dino": KeyRule(
        containers=("teacher", "student", "state_dict"), prefix=r"(?:module\.)?(?:backbone\.)?", drop=r"(?:head|fc)\."
    ),
    # OpenMMLab's files with `to_rgb=False` and a standard deviation of 1, as SimIPU's released code has it.
    # Whole detectors are among them: what is no tensor of a ResNet is left out.
    "openmmlab_bgr": KeyRule(
        containers=("state_dict",),
        prefix=r"(?:(?:img_)?backbone\.)?",
        drop=_NO_RESNET,
        bgr=True,
    ),
    # The same of images as torchvision's networks take them, which most of their configs have. No tensor says which.
    "openmmlab_rgb": KeyRule(containers=("state_dict",), prefix=r"(?:(?:img_)?backbone\.)?", drop=_NO_RESNET),
    # The image network beside the 3D network in a pre-training checkpoint of the SLidR family.
    "slidr_images": KeyRule(containers=("model_images", "state_dict"), prefix=r"(?:model_images\.)?encoder\."),
}
"""Prefix rules of public image checkpoints, ResNet encoders."""

VIT_FORMATS: dict[str, KeyRule] = {
    "dino": IMAGE_FORMATS["dino"],
    "slidr_images": IMAGE_FORMATS["slidr_images"],
    # The mask token stands in for hidden patches in pre-training only.
    "dinov2": KeyRule(
        containers=("teacher", "student"),
        prefix=r"(?:module\.)?(?:backbone\.)?",
        drop=r"(?:mask_token$|(?:dino_|ibot_)?head\.)",
    ),
}
"""The same for vision transformers."""


def select_weights(
    content: Mapping[str, object], file_format: str, formats: Mapping[str, KeyRule]
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The network's tensors in a file's content, and the keys that were dropped.

    Raises:
        ValueError: unknown format.
    """
    rule = formats.get(file_format)
    if rule is None:
        raise ValueError(f"weights: unknown format {file_format!r}: expected one of {', '.join(formats)}")
    return rule.select(content)


def load_image_weights(encoder: nn.Module, file_format: str, path: str, *, min_match: float = MIN_MATCH) -> LoadReport:
    """Fill an image encoder from a public checkpoint.

    Raises:
        ValueError: unknown format, unreadable file, too few matches (names the format that would fit better, if one
            does), or a tensor that is not finite.
    """
    content = read_checkpoint(path) if file_format in IMAGE_FORMATS else {}
    state, dropped = select_weights(content, file_format, IMAGE_FORMATS)
    source = f"{path} as {file_format}"
    report = compare(encoder, state, source=source, dropped=dropped)
    if report.share < min_match:
        shares = {name: compare(encoder, r.select(content)[0], source=name).share for name, r in IMAGE_FORMATS.items()}
        best = max(shares, key=lambda name: shares[name])
        fits = shares[best] > max(report.share, 0.5)
        hint = f"It looks like {best!r} ({shares[best]:.0%} would match)." if fits else ""
        raise ValueError(_refusal(report, min_match, hint))
    return load_state(encoder, state, source=source, min_match=min_match, dropped=dropped)


# ---- matching


def compare(
    module: nn.Module, state: Mapping[str, Tensor], *, source: str, dropped: tuple[str, ...] = ()
) -> LoadReport:
    """Which keys fit, without loading anything.

    BatchNorm's step counters are not counted: older files lack them and nothing depends on them.
    """
    ours = {key: value for key, value in module.state_dict().items() if not _is_counter(key)}
    theirs = {key: value for key, value in state.items() if not _is_counter(key)}
    shapes = {key: (tuple(ours[key].shape), tuple(theirs[key].shape)) for key in ours if key in theirs}
    return LoadReport(
        source=source,
        matched=tuple(key for key, (here, there) in shapes.items() if here == there),
        missing=tuple(key for key in ours if key not in theirs),
        mismatched=tuple((key, here, there) for key, (here, there) in shapes.items() if here != there),
        unused=tuple(key for key in theirs if key not in ours),
        dropped=dropped,
    )


def load_state(
    module: nn.Module,
    state: Mapping[str, Tensor],
    *,
    source: str,
    min_match: float = MIN_MATCH,
    dropped: tuple[str, ...] = (),
) -> LoadReport:
    """Copy the tensors that fit by name and shape into the module.

    Raises:
        ValueError: fewer than `min_match` of the module's tensors match, or one that matches is not finite.
            Nothing was copied then.
    """
    report = compare(module, state, source=source, dropped=dropped)
    if report.share < min_match:
        raise ValueError(_refusal(report, min_match, ""))
    broken = [k for k in report.matched if not bool(torch.isfinite(state[k]).all())]
    if broken:
        raise ValueError(f"weights: {source}: not finite: {', '.join(broken[:5])}. The file is damaged or diverged")
    fitting = {key: state[key] for key in report.matched}
    fitting |= {k: v for k, v in state.items() if _is_counter(k) and k in module.state_dict()}
    module.load_state_dict(fitting, strict=False)
    return report


def _is_counter(key: str) -> bool:
    return key.endswith("num_batches_tracked")


def _refusal(report: LoadReport, min_match: float, hint: str) -> str:
    return (
        f"weights: only {report.share:.0%} of the network's tensors match, expected at least {min_match:.0%}. {hint}\n"
        f"{report.text()}"
    )


# ---- checkpoints of our own runs

OWN_FORMAT = "tandem"
"""Weights `tandem:<path>`: a run's folder, one of its checkpoints, or a file of weights."""
OWN_IMAGE_PREFIX = "image_backbone."
"""What the names of a run's image network begin with."""


def read_own_weights(path: str | Path, prefix: str) -> dict[str, Tensor]:
    """One network's tensors from a run of ours.

    `path` is a `.safetensors` file, a checkpoint folder, or a run folder (its newest intact checkpoint); `prefix`, the
    network's place in the method, is cut off the names.

    Raises:
        ValueError: nothing there, damaged, or no name begins with the prefix.
    """
    file = own_weights_file(Path(path))
    content = read_checkpoint(file)
    state = {k.removeprefix(prefix): v for k, v in content.items() if k.startswith(prefix) and isinstance(v, Tensor)}
    if not state:
        parts = ", ".join(sorted({key.split(".")[0] for key in content}))
        raise ValueError(f"weights: {file}: no name begins with {prefix!r}; the run's method has: {parts}")
    return state


def own_weights_file(path: Path) -> Path:
    """The file of weights that a path means.

    Of a run, the newest checkpoint whose weights are what was written, by the sha256 in its files.json
    (written last: a folder without it was never finished). That is the checkpoint that the run itself continues from,
    unless only another of its files is damaged.

    Raises:
        ValueError: there is none.
    """
    if path.is_file():
        return path
    if (path / WEIGHTS_FILE).is_file():
        if damage(path, [WEIGHTS_FILE]) is not None:
            raise ValueError(f"weights: {path} is damaged or unfinished. Name another checkpoint or the run's folder")
        return path / WEIGHTS_FILE
    for folder in list_checkpoints(path):
        if damage(folder, [WEIGHTS_FILE]) is None:
            return folder / WEIGHTS_FILE
    near = nearby(path, lambda folder: bool(list_checkpoints(folder)))
    raise ValueError(
        f"weights: {path}: expected a run's folder with an intact checkpoint, one of those, or a file{near}"
    )


# ---- SLidR's own checkpoints


def slidr_points(content: Mapping[str, object]) -> dict[str, Tensor]:
    """The 3D network's tensors in the content of a checkpoint of the SLidR family, by their names."""
    inner = content.get("model_points")
    if not isinstance(inner, Mapping):
        rule = KeyRule(containers=("state_dict",), prefix=r"model_points\.", drop=r"(?!)")
        inner = rule.select(content)[0] or content
    return {str(key): value for key, value in inner.items() if isinstance(value, Tensor)}


def slidr_metadata(content: Mapping[str, object]) -> dict[str, str]:
    """What `tandem export` states in a file of that layout; empty for files from elsewhere."""
    stated = content.get("config")
    if not isinstance(stated, Mapping) or "tandem_version" not in stated:
        return {}
    return {str(key): str(value) for key, value in stated.items()}


def slidr_input(content: Mapping[str, object]) -> PointInput:
    """What the network in such a file was fed, or expects.

    Raises:
        ValueError: the file's statement cannot be read.
    """
    stated = slidr_metadata(content)
    if "input" in stated:
        return PointInput.from_text(stated["input"])
    return PointInput() if stated else SLIDR_INPUT  # exports of versions before 0.3 were not converted


def load_slidr_backbone(
    path: str | Path,
    backbone: nn.Module,
    *,
    head: nn.Linear | None = None,
    min_match: float = MIN_MATCH,
    fed: PointInput | None = None,
) -> LoadReport:
    """Fill a `Res16UNet` from a checkpoint of the SLidR family (`model_points`, or a Lightning file).

    The scale of the intensity that it was fed goes into the first layer: the network here takes 0 to 1. An offset does
    not: it is `VoxelConfig.intensity_offset`, in units of the intensity here (`PointInput.scaled`).

    Args:
        path: the file.
        backbone: has the same preset and number of input channels.
        head: a linear point head to fill from their last layer; None drops it, as downstream tasks do.
        min_match: share of the network's tensors that the file must fill.
        fed: the network's input; None: as the file states it, 0 to 255 for a published one, which states nothing.

    Raises:
        ValueError: see `read_checkpoint`, `slidr_input` and `load_state`; or their last layer does not fit `head`.
    """
    content = read_checkpoint(path)
    theirs = slidr_points(content)
    state, others = from_minkowski(theirs, backbone.state_dict(), fed=fed or slidr_input(content))
    last = ("final.kernel", "final.bias")
    unknown = {key: theirs[key] for key in others if key not in last}
    dropped = tuple(key for key in others if key in last)
    report = load_state(backbone, state | unknown, source=str(path), min_match=min_match, dropped=dropped)
    if head is not None:
        missing = [key for key in last if key not in theirs]
        if missing:
            raise ValueError(f"weights: {path} has no {missing[0]}, so the point head cannot be filled")
        # One kernel offset: [1, in, out] or [in, out].
        weight = theirs["final.kernel"].reshape(-1, theirs["final.kernel"].shape[-1]).T
        final = {"weight": weight, "bias": theirs["final.bias"].flatten()}
        load_state(head, final, source=f"{path}: final", min_match=1.0)
    return report


# ---- our own backbones


def export_backbone(path: str | Path, backbone: nn.Module, *, metadata: Mapping[str, str]) -> None:
    """Write the 3D network's tensors as safetensors, atomically.

    `metadata` is what is needed to build the network (without heads) again and to know where it comes from:
    configuration as JSON, input features, data, step. Strings only, as the format demands.

    Raises:
        ValueError: wrong suffix, or a tensor is not finite.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"export: {path}: expected a name that ends in .safetensors")
    # clone: safetensors refuses tensors that share memory.
    state = {key: value.detach().cpu().contiguous().clone() for key, value in backbone.state_dict().items()}
    broken = [key for key, value in state.items() if not bool(torch.isfinite(value).all())]
    if broken:
        raise ValueError(f"export: not finite: {', '.join(broken[:5])}. The run has diverged; nothing was written")
    path.parent.mkdir(parents=True, exist_ok=True)
    # As bytes: safetensors' own writing gives no OSError, and makes files that their owner alone may read.
    replace_file(path, save(state, metadata={**metadata, "format": BACKBONE_FORMAT}), durable=False)


def read_backbone_metadata(path: str | Path) -> dict[str, str]:
    """The metadata that `export_backbone` wrote, from the file's header alone.

    Raises:
        ValueError: the file is missing, damaged, or not an exported backbone.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"weights: {path} cannot be read as safetensors: {error}; expected a whole file of `tandem export`, "
            "which with --format slidr or torchvision writes files of those layouts"
        ) from error
    if metadata.get("format") != BACKBONE_FORMAT:
        raise ValueError(
            f"weights: {path} has format {metadata.get('format')!r}, expected {BACKBONE_FORMAT!r} as `tandem export` "
            "writes it"
        )
    return {key: value for key, value in metadata.items() if key != "format"}


def load_backbone(
    path: str | Path, backbone: nn.Module, *, min_match: float = MIN_MATCH
) -> tuple[LoadReport, dict[str, str]]:
    """Fill a 3D network from a file that `export_backbone` wrote.

    Returns:
        The report and the metadata.

    Raises:
        ValueError: see `read_backbone_metadata` and `load_state`.
    """
    metadata = read_backbone_metadata(path)
    return load_state(backbone, load_file(str(path)), source=str(path), min_match=min_match), metadata
