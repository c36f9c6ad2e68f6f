"""Vision transformers of DINO and DINOv2 as frozen teachers: one feature for each patch of the image.

The names of the parameters are those of the published files. Nothing here is for training (no drop path, no masking).
Images whose sides are no multiples of the patch are padded below and on the right with the mean colour of ImageNet,
less than a patch: stride and place of the cells stay whole numbers of pixels, and no pixel is blurred by resizing. The
map then has ceil(H / patch) x ceil(W / patch) cells, the last of them partly of padding.

Position embeddings come in the grid of the pre-training (224 pixels for DINO, 518 for DINOv2) and are interpolated to
the image's grid, bicubic, as the networks' own code does it. Its quirk: it adds 0.1 to the target number of rows
and columns before it derives the scale, against rounding errors, which moves the far end of a grid of 37 patches
by a tenth of a cell. The weights are used that way everywhere, so the default follows; the DINOv2 networks with
registers were published without the offset and with anti-aliasing.

Letters: I images, C channels, H W pixels, h w cells, T tokens, A heads.

Source: Caron et al., ICCV 2021 (DINO); Oquab et al., TMLR 2024 (DINOv2); Darcet et al., ICLR 2024 (registers).
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from models.image.base import DenseNetwork
from models.image.teacher import TeacherConfig
from models.weights import VIT_FORMATS, LoadReport, load_state, read_checkpoint, select_weights

ViTName = Literal[
    "vit_small_16",
    "vit_small_8",
    "vit_base_16",
    "vit_base_8",
    "vit_small_14",
    "vit_base_14",
    "vit_large_14",
    "vit_small_14_reg",
    "vit_base_14_reg",
    "vit_large_14_reg",
]
VIT_NAMES: tuple[ViTName, ...] = get_args(ViTName)


@dataclass(frozen=True, kw_only=True)
class ViTLayout:
    """Sizes of one network."""

    width: int  # C
    depth: int  # blocks
    heads: int  # A
    patch: int  # pixels
    grid: int  # patches a side in pre-training
    layer_scale: bool = False  # DINOv2: a learnt factor for each channel of what a block adds
    registers: int = 0  # tokens without a patch
    grid_offset: float = 0.1  # added to the target rows and columns when the scale of the positions is derived
    antialias: bool = False  # interpolate positions with anti-aliasing


_SIZES = {"small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16)}


def vit_layout(name: ViTName) -> ViTLayout:
    """Sizes of a published network: patches of 16 and 8 pixels are DINO's, of 14 pixels DINOv2's."""
    _, size, patch, *registers = name.split("_")
    width, depth, heads = _SIZES[size]
    dinov2 = patch == "14"
    return ViTLayout(
        width=width,
        depth=depth,
        heads=heads,
        patch=int(patch),
        grid=(518 if dinov2 else 224) // int(patch),
        layer_scale=dinov2,
        registers=4 if registers else 0,
        grid_offset=0.0 if registers else 0.1,
        antialias=bool(registers),
    )


@dataclass(frozen=True, kw_only=True)
class VitTeacherConfig(TeacherConfig):
    """A vision transformer as a teacher: `vit_<size>_16` and `_8` are DINO's, `vit_<size>_14` DINOv2's.

    Weights: files of format dino or dinov2. See `TeacherConfig` for the rest.

    Attributes:
        name: which one; `_reg` is with registers.
        normalise_levels: apply the network's own last LayerNorm.
    """

    NAMES = VIT_NAMES
    SOURCES = tuple(VIT_FORMATS)

    name: ViTName = "vit_small_16"
    normalise_levels: bool = True

    @property
    def stride(self) -> int:
        """The patch."""
        return vit_layout(self.name).patch

    def network(self) -> VisionTransformer:
        """The transformer."""
        return VisionTransformer(vit_layout(self.name), last_norm=self.normalise_levels)

    def fill(self, network: nn.Module, file_format: str, path: str) -> LoadReport:
        """Read a published file."""
        assert isinstance(network, VisionTransformer)
        return load_vit_weights(network, file_format, path, min_match=self.min_match)


class SelfAttention(nn.Module):
    """Each token gathers from all tokens of its image."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "I T C"]) -> Float[Tensor, "I T C"]:
        """softmax(q k^T / sqrt(C / A)) v for each head, heads side by side, projected."""
        images, tokens, width = x.shape
        qkv = self.qkv(x).view(images, tokens, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        gathered = F.scaled_dot_product_attention(query, key, value)
        out: Tensor = self.proj(gathered.transpose(1, 2).reshape(images, tokens, width))
        return out


class _LayerScale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Float[Tensor, "I T C"]) -> Float[Tensor, "I T C"]:
        """Channel by channel."""
        return x * self.gamma


class _Block(nn.Module):
    def __init__(self, layout: ViTLayout) -> None:
        super().__init__()
        width = layout.width
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = SelfAttention(width, layout.heads)
        self.ls1 = _LayerScale(width) if layout.layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(
            OrderedDict(fc1=nn.Linear(width, 4 * width), act=nn.GELU(), fc2=nn.Linear(4 * width, width))
        )
        self.ls2 = _LayerScale(width) if layout.layer_scale else nn.Identity()

    def forward(self, x: Float[Tensor, "I T C"]) -> Float[Tensor, "I T C"]:
        """Two residual branches, normalised before."""
        x = x + self.ls1(self.attn(self.norm1(x)))
        out: Tensor = x + self.ls2(self.mlp(self.norm2(x)))
        return out


class VisionTransformer(DenseNetwork):
    """Features of patches; a cell is a patch."""

    def __init__(self, layout: ViTLayout, *, last_norm: bool = True) -> None:
        """Random weights (normal, 0.02).

        Without `last_norm` the last block's output is given as it is.
        """
        super().__init__()
        self.layout, self.last_norm = layout, last_norm
        width = layout.width
        self.patch_embed = nn.Sequential(OrderedDict(proj=nn.Conv2d(3, width, layout.patch, stride=layout.patch)))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + layout.grid**2, width))
        if layout.registers:
            self.register_tokens = nn.Parameter(torch.zeros(1, layout.registers, width))
        self.blocks = nn.ModuleList(_Block(layout) for _ in range(layout.depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.num_features, self.stride = width, layout.patch
        self.origin_px = (layout.patch - 1) / 2
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                nn.init.trunc_normal_(parameter, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, images: Float[Tensor, "I 3 H W"]) -> Float[Tensor, "I C h w"]:
        """Features of normalised images; h = ceil(H / patch), w = ceil(W / patch)."""
        patch = self.layout.patch
        below, right = -images.shape[-2] % patch, -images.shape[-1] % patch
        cells = self.patch_embed(F.pad(images, (0, right, 0, below)))
        rows, columns = cells.shape[-2:]
        x = cells.flatten(2).transpose(1, 2) + self.patch_positions(rows, columns)
        # The first side and not len(), which would fix the number of images where the network is traced for export.
        before = [self.cls_token + self.pos_embed[:, :1]]
        if self.layout.registers:
            before.append(self.register_tokens)
        x = torch.cat([*(token.expand(images.shape[0], -1, -1) for token in before), x], dim=1)
        for block in self.blocks:
            x = block(x)
        if self.last_norm:
            x = self.norm(x)
        patches: Tensor = x[:, 1 + self.layout.registers :]
        return patches.transpose(1, 2).reshape(images.shape[0], -1, rows, columns)

    def patch_positions(self, rows: int, columns: int) -> Float[Tensor, "1 T C"]:
        """Position embeddings of a grid of patches, row by row."""
        learnt = self.pos_embed[:, 1:]
        side = math.isqrt(learnt.shape[1])
        if (rows, columns) == (side, side):
            return learnt
        grid = learnt.transpose(1, 2).unflatten(2, (side, side)).float()
        # Given a scale, torch samples by it and not by the ratio of the sizes: that is how the offset has an effect.
        offset = self.layout.grid_offset
        scale = ((rows + offset) / side, (columns + offset) / side) if offset else None
        size = None if offset else (rows, columns)
        grid = F.interpolate(grid, size, scale, mode="bicubic", antialias=self.layout.antialias)
        return grid.flatten(2).transpose(1, 2).to(learnt.dtype)


def load_vit_weights(network: VisionTransformer, file_format: str, path: str, *, min_match: float) -> LoadReport:
    """Fill a transformer from a public file; a file of another pre-training grid brings its own position embeddings.

    Raises:
        ValueError: unknown format, unreadable file, too few matches, or a tensor that is not finite.
    """
    state, dropped = select_weights(read_checkpoint(path), file_format, VIT_FORMATS)
    make_room_for_positions(network, state)
    return load_state(network, state, source=f"{path} as {file_format}", min_match=min_match, dropped=dropped)


def make_room_for_positions(network: VisionTransformer, state: Mapping[str, Tensor]) -> None:
    """Give the network position embeddings of the grid that a file has, if it has one."""
    positions = state.get("pos_embed")
    if positions is not None and positions.dim() == 3 and _is_square(positions.shape[1] - 1):
        device = network.pos_embed.device
        network.pos_embed = nn.Parameter(torch.zeros(1, positions.shape[1], network.num_features, device=device))


def _is_square(number: int) -> bool:
    return number > 0 and math.isqrt(number) ** 2 == number
