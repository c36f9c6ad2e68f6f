"""MoCo v2: an image network learns to know an image again among the images of the past.

Paper: Chen, Fan, Girshick, He, "Improved baselines with momentum contrastive learning", 2020, on He et al., "Momentum
contrast for unsupervised visual representation learning", CVPR 2020. Learnt: the image network with its MLP head. In:
images, each augmented twice. No points, no labels. The key encoder is a momentum copy (`models.contrast.momentum`), the
negatives are a queue of past keys (`models.contrast.memory`). Here it is the image-only baseline of SimIPU, and the
way to make a teacher where no weights are at hand.

Deviations from the paper: `docs/methods/moco.md`.

Letters: I images of this rank, R filled rows of the queue, C channels, D embedding, H W pixels, h w cells.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from jaxtyping import UInt8
from torch import Tensor, nn

from common.ranges import at_least
from data.batch_spec import BatchSpec
from data.sample import Batch
from models.contrast.memory import KeyQueue
from models.contrast.momentum import MomentumCopy
from models.heads import PlainMLPHead, unit
from models.image.base import ImageEncoderConfig
from models.image.resnet_encoder import ResNetEncoderConfig
from models.methods.base import LossTerms
from models.methods.queue_contrast import QueueContrast, QueueContrastConfig
from models.pairing import upsample_to_pixels
from models.visuals import PixelSketch, Sketch


@dataclass(frozen=True, kw_only=True)
class MocoConfig(QueueContrastConfig):
    """Settings of MoCo v2; defaults are the paper's. See `QueueContrastConfig` for the rest.

    Attributes:
        image_backbone: image network; `image_backbone.name` chooses.
        hidden_dim: width of the head; None: as wide as the network's features.
        temperature: of the softmax (MoCo v1: 0.07).
    """

    image_backbone: ImageEncoderConfig = field(default_factory=ResNetEncoderConfig)
    hidden_dim: int | None = None
    temperature: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, hidden_dim=1)

    def batch_spec(self) -> BatchSpec:
        """Images, augmented twice."""
        return BatchSpec(second_images=True)

    def build(self) -> Moco:
        """Assemble network, head, their copies and the queue."""
        return Moco(self)


class Moco(QueueContrast):
    """Network, momentum copy, queue and loss of MoCo."""

    NAME = "moco"

    def __init__(self, config: MocoConfig) -> None:
        super().__init__()
        self.config = config
        self.image_backbone = config.image_backbone.build()
        width = self.image_backbone.num_features
        self.head = PlainMLPHead(width, config.hidden_dim or width, config.embedding_dim)
        self.key_backbone = MomentumCopy(self.image_backbone, config.momentum)
        self.key_head = MomentumCopy(self.head, config.momentum)
        self.queue = KeyQueue(config.queue_size, config.embedding_dim)

    def forward(self, batch: Batch) -> LossTerms:
        """Find each image's second view among the keys of the past.

            q_i = unit(head(mean over cells of network(first view of image i)))
            k_i = the same of the second view, by the momentum copy
            loss = mean over i of -log exp(q_i . k_i / t) / (exp(q_i . k_i / t) + sum_r exp(q_i . queue_r / t))

        Then the keys of all ranks enter the queue. While the queue is empty the loss is 0.

        Raises:
            ValueError: the batch has no images or no second view of them.

        Source: MoCo, eq. 1 and algorithm 1; MoCo v2, section 3.
        """
        first, second = self._images(batch)
        queries = self.head(self.image_backbone(first).mean(dim=(2, 3)))
        keys = self.key_head(self.key_backbone(second).mean(dim=(2, 3)))
        return self.queue_terms(self.queue, queries, keys, self.config)

    def copies(self) -> Iterable[tuple[MomentumCopy, nn.Module]]:
        """Of network and head."""
        return (self.key_backbone, self.image_backbone), (self.key_head, self.head)

    def sketches(self, batch: Batch) -> dict[str, Sketch]:
        """Where the first image looks like its own second view: what the embedding is made of."""
        first, second = self._images(batch)
        cells = self.image_backbone.feature_map(first[:1])
        key = self.key_head(self.key_backbone(second[:1]).mean(dim=(2, 3)))
        embeddings = unit(self.head(cells.values[0].flatten(1).T))
        similarity = (embeddings @ key[0].to(embeddings.dtype)).view(1, 1, *cells.values.shape[-2:])
        size = (first.shape[-2], first.shape[-1])
        pixels = upsample_to_pixels(replace(cells, values=similarity), size)
        caption = "similarity of each cell to the image's second view"
        return {"similarity": PixelSketch(image=first[0], values=pixels[0, 0], scale="similarity", caption=caption)}

    @staticmethod
    def _images(batch: Batch) -> tuple[UInt8[Tensor, "I 3 H W"], UInt8[Tensor, "I 3 H W"]]:
        return batch.need("images", by="MoCo"), batch.need("second", by="MoCo").need("images", by="MoCo")
