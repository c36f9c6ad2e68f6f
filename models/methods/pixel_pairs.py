"""What methods share that compare points with the pixels they are seen at, pair by pair.

Letters: I images, M voxels, P pairs, K chosen pairs, D embedding.
"""

from __future__ import annotations

from abc import abstractmethod

from jaxtyping import Float, UInt8
from torch import Tensor

from data.sample import Batch, PointPixelPairs
from models.image.base import DenseNetwork
from models.methods.base import EmbedsPoints
from models.pairing import draw_rows, read_pixels
from models.visuals import ProjectionSketch, Sketch


class PixelPairs(EmbedsPoints):
    """An objective on rows of points and rows of their pixels."""

    @abstractmethod
    def pixels_at(self, images: UInt8[Tensor, "I 3 H W"], pairs: PointPixelPairs) -> Float[Tensor, "K D"]:
        """Unit embedding of each pair's pixel."""

    def rows(
        self, batch: Batch, method: str, num_pairs: int | None = None
    ) -> tuple[Float[Tensor, "K D"], Float[Tensor, "K D"]]:
        """Unit embeddings of points and of their pixels, row by row.

        `num_pairs` are drawn from the batch (None: all are taken); `method` is the name for the message.

        Raises:
            ValueError: the batch lacks images or pairs.
        """
        images, pairs = batch.need("images", by=method), batch.need("pairs", by=method)
        pairs = pairs.select(draw_rows(len(pairs.point), num_pairs, batch.points.device))
        points = self.point_embeddings(batch)[batch.point_voxel[pairs.point]]
        return points, self.pixels_at(images, pairs)

    def sketches(self, batch: Batch) -> dict[str, Sketch]:
        """How well each point of the first image agrees with its own pixel."""
        if batch.images is None or batch.pairs is None:
            return {}
        pairs = batch.pairs.select(batch.pairs.image == 0)
        points = self.point_embeddings(batch)[batch.point_voxel[pairs.point]]
        return {
            "agreement": ProjectionSketch(
                image=batch.images[0],
                uv=pairs.uv,
                values=(points * self.pixels_at(batch.images, pairs)).sum(dim=1),
                scale="similarity",
                caption="cosine between a point's embedding and its pixel's",
            )
        }


def features_at_pairs(
    network: DenseNetwork, images: UInt8[Tensor, "I 3 H W"], pairs: PointPixelPairs
) -> Float[Tensor, "K C"]:
    """A network's features of the images at the pairs' pixels."""
    return read_pixels(network.feature_map(images), pairs.image, pairs.uv)
