"""What methods share that compare points with the pixels they are seen at, pair by pair.

Letters: I images, M voxels, P pairs, K chosen pairs, D embedding.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from jaxtyping import Float, Int
from torch import Tensor

from data.sample import Batch
from models.image.base import DenseNetwork
from models.methods.base import Objective
from models.pairing import draw_rows, read_pixels
from models.visuals import ProjectionSketch, Sketch


class PixelPairs(Objective):
    """An objective on rows of points and rows of their pixels."""

    @abstractmethod
    def point_embeddings(self, batch: Batch) -> Float[Tensor, "M D"]:
        """Unit embedding of each voxel."""

    @abstractmethod
    def pixels_at(self, batch: Batch, pairs: Int[Tensor, " K"]) -> Float[Tensor, "K D"]:
        """Unit embeddings of the pixels of some pairs."""

    def rows(
        self, batch: Batch, method: str, num_pairs: int | None = None
    ) -> tuple[Float[Tensor, "K D"], Float[Tensor, "K D"]]:
        """Unit embeddings of points and of their pixels, row by row.

        Args:
            batch: with images and pairs.
            method: its name, for the message.
            num_pairs: drawn from the batch; None: all.

        Raises:
            ValueError: the batch lacks images or pairs.
        """
        if batch.images is None or batch.pair_point is None:
            raise ValueError(f"{method} needs images with point-pixel pairs; this batch has none")
        drawn = draw_rows(batch.pair_point.shape[0], num_pairs, batch.points.device)
        points = self.point_embeddings(batch)[batch.point_voxel[batch.pair_point[drawn]]]
        return points, self.pixels_at(batch, drawn)

    def sketches(self, batch: Batch) -> dict[str, Sketch]:
        """How well each point of the first image agrees with its own pixel."""
        if batch.images is None or batch.pair_point is None or batch.pair_image is None or batch.pair_uv is None:
            return {}
        in_first = torch.nonzero(batch.pair_image == 0).flatten()
        points = self.point_embeddings(batch)[batch.point_voxel[batch.pair_point[in_first]]]
        return {
            "agreement": ProjectionSketch(
                image=batch.images[0],
                uv=batch.pair_uv[in_first],
                values=(points * self.pixels_at(batch, in_first)).sum(dim=1),
                scale="similarity",
                caption="cosine between a point's embedding and its pixel's",
            )
        }


def features_at_pairs(network: DenseNetwork, batch: Batch, pairs: Int[Tensor, " K"]) -> Float[Tensor, "K C"]:
    """A network's features of the images at the pixels of some pairs."""
    assert batch.images is not None
    assert batch.pair_image is not None
    assert batch.pair_uv is not None
    return read_pixels(network.feature_map(batch.images), batch.pair_image[pairs], batch.pair_uv[pairs])
