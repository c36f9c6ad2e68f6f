"""Points and image cells look at themselves and at each other: self- and cross-attention with sinusoidal positions.

Attention is over a limited number of tokens on each side (sampled voxels, pooled cells), chosen by the caller: memory
and time grow with their product. It runs through torch's fused attention, which stores no weights.

Letters: I images (one pair of token sets each), K point tokens, C cell tokens, Q queries, S sources, D width, A axes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

FEED_FORWARD_FACTOR = 2
"""Hidden width of the feed-forward layers, as a multiple of D."""


def sinusoidal(
    positions: Float[Tensor, "*tokens A"], width: int, *, shortest: float, longest: float
) -> Float[Tensor, "*tokens D"]:
    """Sines and cosines of each coordinate at wavelengths in geometric steps, filled up with zeros to `width`.

    Args:
        positions: in any unit.
        width: D, at least 2 A.
        shortest: wavelength, in the unit of `positions`: twice the distance that should be distinguishable.
        longest: wavelength; the extent of the scene.

    Source: Vaswani et al., NeurIPS 2017, section 3.5, for several axes.
    """
    axes = positions.shape[-1]
    count = width // (2 * axes)
    steps = torch.arange(count, device=positions.device, dtype=positions.dtype) / max(count - 1, 1)
    wavelengths = longest * (shortest / longest) ** steps
    phases = (2 * torch.pi * positions[..., None] / wavelengths).flatten(-2)
    encoded = torch.cat([phases.sin(), phases.cos()], dim=-1)
    return F.pad(encoded, (0, width - encoded.shape[-1]))


class Attention(nn.Module):
    """Multi-head attention of queries to sources, both normalised first."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_norm, self.source_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key_value = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(
        self,
        queries: Float[Tensor, "I Q D"],
        sources: Float[Tensor, "I S D"],
        usable: Bool[Tensor, "I S"] | None = None,
    ) -> Float[Tensor, "I Q D"]:
        """What is added to the queries. Sources that are not usable are not looked at; without any, the first is."""
        query = self._heads(self.query(self.query_norm(queries)))
        key, value = (self._heads(x) for x in self.key_value(self.source_norm(sources)).chunk(2, dim=-1))
        mask = None
        if usable is not None:
            # A row without any source would be NaN.
            first = torch.zeros_like(usable)
            first[:, :1] = ~usable.any(dim=1, keepdim=True)
            mask = (usable | first)[:, None, None]
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out

    def _heads(self, rows: Float[Tensor, "I T D"]) -> Float[Tensor, "I heads T d"]:
        split: Tensor = rows.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return split


class FusionLayer(nn.Module):
    """Self-attention on each side, cross-attention both ways, a feed-forward layer on each side; all residual.

    Both cross-attentions look at the other side as it was before them, so neither side comes first.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.point_self, self.cell_self = Attention(width, heads), Attention(width, heads)
        self.point_cross, self.cell_cross = Attention(width, heads), Attention(width, heads)
        self.point_forward, self.cell_forward = _feed_forward(width), _feed_forward(width)

    def forward(
        self, points: Float[Tensor, "I K D"], cells: Float[Tensor, "I C D"], valid: Bool[Tensor, "I K"]
    ) -> tuple[Float[Tensor, "I K D"], Float[Tensor, "I C D"]]:
        """Both sides after one round; point tokens that are not valid are padding that nothing attends to."""
        points = points + self.point_self(points, points, valid)
        cells = cells + self.cell_self(cells, cells)
        points, cells = points + self.point_cross(points, cells), cells + self.cell_cross(cells, points, valid)
        return points + self.point_forward(points), cells + self.cell_forward(cells)


class Fusion(nn.Module):
    """Several rounds of `FusionLayer`. Source: NCLR (Zhang et al.), the fusion layers between its two branches."""

    def __init__(self, width: int, *, heads: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(FusionLayer(width, heads) for _ in range(layers))

    def forward(
        self, points: Float[Tensor, "I K D"], cells: Float[Tensor, "I C D"], valid: Bool[Tensor, "I K"]
    ) -> tuple[Float[Tensor, "I K D"], Float[Tensor, "I C D"]]:
        """Both sides, each having seen the other."""
        for layer in self.layers:
            points, cells = layer(points, cells, valid)
        return points, cells


def _feed_forward(width: int) -> nn.Sequential:
    hidden = FEED_FORWARD_FACTOR * width
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
