"""Pixel contrast: an image network learns to find the same place again under another crop and other colours.

Paper: Janda et al., "Contrastive Learning for Self-Supervised Pre-Training of Point Cloud Segmentation Networks With
Image Data", CRV 2023; its first stage. The second stage is `pixel_to_point`.
Learnt: an image network, a ResNet with a U-Net decoder to 16 channels a pixel, from ImageNet weights or from nothing;
no head, since the features themselves are what the second stage uses. In: images, twice augmented
(`data.augment.image`, colours as in SimCLR: `data.augment.image.colour.enabled: true`). Points play no part.

    for each image: draw places in the part that both views show
    positives: the features of one place in both views; negatives: those of all other drawn places of the batch

Deviations from the paper: `docs/methods/pixel_contrast.md`.

Letters: I images, K places an image, P places, D features of a pixel, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from common.ranges import at_least
from data.batch_spec import BatchSpec
from data.sample import Batch
from models.contrast.losses import gather_with_grad
from models.heads import unit, unit_pixels
from models.image.base import ImageEncoderConfig
from models.image.unet import ResNetUnetConfig
from models.methods.base import LossTerms, Objective, RowContrastConfig, contrast_terms
from models.pairing import FeatureMap, read_pixels
from models.visuals import MatchSketch, PixelSketch, Sketch

_SHOWN = 24
"""Places whose matches are drawn."""


@dataclass(frozen=True, kw_only=True)
class PixelContrastConfig(RowContrastConfig):
    """Settings of the first stage. See `RowContrastConfig` for the rest.

    Attributes:
        image_backbone: image network that trains; `image_backbone.name` chooses. The paper's starts from ImageNet:
            `weights: torchvision:<path>`.
        num_places: K, drawn in each image.
        negatives: "both_views": the other drawn places in both views; "other_view": in the view of the positive only.
    """

    image_backbone: ImageEncoderConfig = field(default_factory=lambda: ResNetUnetConfig(preset="resnet18"))
    num_places: int = 256
    negatives: Literal["both_views", "other_view"] = "both_views"

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, num_places=1)

    def batch_spec(self) -> BatchSpec:
        """Two augmentations of each image."""
        return BatchSpec(second_images=True)

    def build(self) -> PixelContrast:
        """Assemble the network."""
        return PixelContrast(self)


class PixelContrast(Objective):
    """An image network and the loss between its two views."""

    def __init__(self, config: PixelContrastConfig) -> None:
        super().__init__()
        self.config = config
        self.image_backbone = config.image_backbone.build()

    def forward(self, batch: Batch) -> LossTerms:
        """Contrast places of the two views.

            a_p, b_p = unit features of place p in the first and in the second view
            loss = mean over p of (l(a_p -> b_p) + l(b_p -> a_p)) / 2
            l(a_p -> b_p) = -log( e(a_p, b_p) / (sum over q of e(a_p, b_q) + sum over q != p of e(a_p, a_q)) )
            e(x, y) = exp(x . y / temperature); the last sum for negatives in both views only

        Both views go through the network as one batch, so that BatchNorm sees them alike. Images whose views have
        nothing in common have no places; without any place the loss and its gradient are 0.

        Raises:
            ValueError: the batch lacks two views of its images.

        Source: Janda et al., section III-A; Chen et al., SimCLR (ICML 2020), eq. 1, for the negatives.
        """
        views = (batch, batch.need("second", by="pixel_contrast"))
        images, second_images = (view.need("images", by="pixel_contrast") for view in views)
        affine, second_affine = (view.need("cameras", by="pixel_contrast").affine for view in views)
        image, uv, uv_second = draw_places(
            affine, second_affine, _size(images), _size(second_images), self.config.num_places
        )
        first, second = self.views(images, second_images)
        a, b = self._read(first, image, uv), self._read(second, image, uv_second)
        return contrast_terms(self._contrast(a, b), a, b, watch_rows=self.config.watch_rows)

    def views(
        self, images: UInt8[Tensor, "I 3 H W"], second: UInt8[Tensor, "I 3 H2 W2"]
    ) -> tuple[Float[Tensor, "I D _ _"], Float[Tensor, "I D _ _"]]:
        """Maps of both views."""
        if images.shape == second.shape:
            first_map, second_map = self.image_backbone(torch.cat((images, second))).chunk(2)
            return first_map, second_map
        return self.image_backbone(images), self.image_backbone(second)

    def _read(
        self, feature_map: Float[Tensor, "I D h w"], image: Int[Tensor, " P"], uv: Float[Tensor, "P 2"]
    ) -> Float[Tensor, "P D"]:
        """Unit features at places."""
        network = self.image_backbone
        return unit(read_pixels(FeatureMap(feature_map, network.stride, network.origin_px), image, uv))

    def _contrast(self, a: Float[Tensor, "P D"], b: Float[Tensor, "P D"]) -> Float[Tensor, ""]:
        config = self.config
        if config.negatives == "other_view":
            return config.info_nce(a, b, symmetric=True)
        excluded = _itself(2 * a.shape[0], a, gather=config.gather_negatives)
        return config.info_nce(torch.cat((a, b)), torch.cat((b, a)), excluded=excluded)

    def pixel_embeddings(self, images: UInt8[Tensor, "I 3 H W"]) -> Float[Tensor, "I D H W"]:
        """Unit feature of each pixel."""
        return unit_pixels(self.image_backbone.feature_map(images), _size(images))

    def sketches(self, batch: Batch) -> dict[str, Sketch]:
        """Similarity of the first image's middle to its pixels; where places of it are found in its other view."""
        if batch.images is None:
            return {}
        images = batch.images[:1]
        pixels = self.pixel_embeddings(images)[0]
        row, column = images.shape[-2] // 2, images.shape[-1] // 2
        shown: dict[str, Sketch] = {
            "similarity": PixelSketch(
                image=images[0],
                values=torch.einsum("dhw,d->hw", pixels, pixels[:, row, column]),
                scale="similarity",
                caption="cosine of each pixel's feature and that of the middle",
            )
        }
        second = batch.second
        if second is None or second.images is None or batch.cameras is None or second.cameras is None:
            return shown
        where = torch.linspace(0.1, 0.9, _SHOWN)
        around = torch.stack((where, (where * 7) % 1), dim=1)[None]  # spread over the image, without random numbers
        image, uv, true = _places_at(
            around, batch.cameras.affine[:1], second.cameras.affine[:1], _size(images), _size(second.images)
        )
        others = self.pixel_embeddings(second.images[:1])[0]
        anchors = unit(read_pixels(FeatureMap(pixels[None]), image, uv))
        best = torch.einsum("pd,dhw->phw", anchors, others).flatten(1).argmax(dim=1)
        width = others.shape[-1]
        found = torch.stack((best % width, best // width), dim=1).to(true.dtype)
        shown["matches"] = MatchSketch(
            image=second.images[0],
            found=found,
            true=true,
            caption="most similar pixel of the other view, and where the place is",
        )
        return shown


def _size(images: UInt8[Tensor, "I 3 H W"]) -> tuple[int, int]:
    return images.shape[-2], images.shape[-1]


def _itself(rows: int, like: Tensor, *, gather: bool) -> Bool[Tensor, "N T"]:
    """Where a row meets itself among the targets, whose halves are exchanged."""
    start, total = 0, rows
    if gather:  # a narrow column, to learn where this rank's rows stand among those of all
        _, start, total = gather_with_grad(like.new_zeros(rows, 1))
    row = torch.arange(rows, device=like.device)
    excluded = torch.zeros(rows, total, dtype=torch.bool, device=like.device)
    excluded[row, start + (row + rows // 2) % max(rows, 1)] = True
    return excluded


# ---- places


def draw_places(
    affine: Float[Tensor, "I 2 3"],
    affine_second: Float[Tensor, "I 2 3"],
    size: tuple[int, int],
    size_second: tuple[int, int],
    num_places: int,
) -> tuple[Int[Tensor, " P"], Float[Tensor, "P 2"], Float[Tensor, "P 2"]]:
    """Places that both views of an image show, drawn evenly over them from torch's CPU generator.

    Each `affine` maps pixel coordinates of the stored image to those of its view, each size is a view's height and
    width. `num_places` are drawn in each image, fewer only where views are turned against each other.

    Returns:
        Image of each place, its pixel coordinates in the first view and in the second one.
    """
    around = torch.rand(affine.shape[0], num_places, 2).to(affine.device)
    return _places_at(around, affine, affine_second, size, size_second)


def _places_at(
    around: Float[Tensor, "I K 2"],
    affine: Float[Tensor, "I 2 3"],
    affine_second: Float[Tensor, "I 2 3"],
    size: tuple[int, int],
    size_second: tuple[int, int],
) -> tuple[Int[Tensor, " P"], Float[Tensor, "P 2"], Float[Tensor, "P 2"]]:
    """Places at shares (0 to 1, 0 to 1) of the common part; see `draw_places`.

    In float64: a pixel's place is good to about 1e-4 px in float32 only, and places on the edge must not fall out.
    """
    to_first, to_second = _square(affine), _square(affine_second)
    second_of_first = to_second @ torch.linalg.inv(to_first)
    # The box around the second view, in pixels of the first one.
    height, width = size_second
    corners = to_first.new_tensor([[0, 0], [width - 1, 0], [0, height - 1], [width - 1, height - 1]])
    back = torch.linalg.inv(second_of_first)
    box = corners @ back[:, :2, :2].transpose(1, 2) + back[:, None, :2, 2]
    last = corners.new_tensor([size[1] - 1, size[0] - 1])
    low, high = box.amin(dim=1).clamp(min=0), torch.minimum(box.amax(dim=1), last)
    uv = low[:, None] + around.double() * (high - low)[:, None]
    uv_second = uv @ second_of_first[:, :2, :2].transpose(1, 2) + second_of_first[:, None, :2, 2]
    last_second = corners.new_tensor([size_second[1] - 1, size_second[0] - 1])
    slack = 1e-6
    inside = ((uv_second >= -slack) & (uv_second <= last_second + slack)).all(dim=2) & (high > low).all(dim=1)[:, None]
    image = torch.arange(len(uv), device=uv.device)[:, None].expand(inside.shape)
    return image[inside], uv[inside].float(), uv_second[inside].float()


def _square(affine: Float[Tensor, "I 2 3"]) -> Float[Tensor, "I 3 3"]:
    last = affine.new_tensor([0.0, 0.0, 1.0]).expand(affine.shape[0], 1, 3)
    return torch.cat((affine, last), dim=1).double()
