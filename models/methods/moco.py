"""MoCo v2: an image network learns to know an image again among the images of the past.

Paper: Chen, Fan, Girshick, He, "Improved baselines with momentum contrastive learning", 2020, on He et al., "Momentum
contrast for unsupervised visual representation learning", CVPR 2020. Learnt: the image network with its MLP head. In:
images, each augmented twice. No points, no labels. The key encoder is a momentum copy (`models.contrast.momentum`), the
negatives are a queue of past keys (`models.contrast.memory`). Here it is the image-only baseline of SimIPU, and the
way to make a teacher where no weights are at hand.

Deviations:
- Samples are not shuffled between ranks before the key encoder: BatchNorm has the statistics of all ranks. What leaks
  through them, and `momentum.norms: running` against it: `models.contrast.momentum`.
- The queue begins empty instead of with random vectors (`models.contrast.memory`).
- The key encoder follows after each update, not before each forward pass: the same copies, and also right when an
  update has several micro-batches.
- Every camera of a sweep is an image of its own. Cameras of one sweep overlap little, the same camera a moment later
  much: the queue holds near copies of an image where a batch's samples come from few drives.

Letters: I images of this rank, R filled rows of the queue, C channels, D embedding, H W pixels, h w cells.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from jaxtyping import UInt8
from torch import Tensor

from common.ranges import at_least, positive
from data.batch_spec import BatchSpec
from data.sample import Batch
from models.contrast.memory import KeyQueue, contrast_with_queue, queue_watch
from models.contrast.momentum import MomentumConfig, MomentumCopy, check_whole_weights
from models.heads import PlainMLPHead, unit
from models.image.base import ImageEncoderConfig
from models.image.resnet_encoder import ResNetEncoderConfig
from models.methods.base import LossTerms, MethodConfig, Objective
from models.pairing import upsample_to_pixels
from models.visuals import PixelSketch, Sketch


@dataclass(frozen=True, kw_only=True)
class MocoConfig(MethodConfig):
    """Settings of MoCo v2; defaults are the paper's.

    Attributes:
        image_backbone: image network; `image_backbone.name` chooses.
        momentum: how the key encoder follows.
        queue_size: keys that are kept as negatives.
        embedding_dim: D, dimensions that are compared.
        hidden_dim: width of the head; None: as wide as the network's features.
        temperature: of the softmax (MoCo v1: 0.07).
        watch_rows: rows that the collapse watch looks at.
    """

    image_backbone: ImageEncoderConfig = field(default_factory=ResNetEncoderConfig)
    momentum: MomentumConfig = field(default_factory=MomentumConfig)
    queue_size: int = 65_536
    embedding_dim: int = 128
    hidden_dim: int | None = None
    temperature: float = 0.2
    watch_rows: int = 512

    def __post_init__(self) -> None:
        at_least(self, queue_size=1, embedding_dim=1, hidden_dim=1, watch_rows=2)
        positive(self, "temperature")

    def batch_spec(self) -> BatchSpec:
        """Images, augmented twice."""
        return BatchSpec(second_images=True)

    def build(self) -> Moco:
        """Assemble network, head, their copies and the queue."""
        return Moco(self)


class Moco(Objective):
    """Network, momentum copy, queue and loss of MoCo."""

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
        negatives = self.queue.negatives()
        loss = contrast_with_queue(queries, keys, negatives, temperature=self.config.temperature)
        watch = queue_watch(queries, keys, negatives, max_rows=self.config.watch_rows)
        if self.training:
            self.queue.enter(keys)
        return LossTerms(total=loss, parts={"contrast": loss.detach()}, watch=watch)

    def after_update(self, progress: float) -> None:
        """The copies follow."""
        self.key_backbone.follow(self.image_backbone, progress)
        self.key_head.follow(self.head, progress)

    def check_engine(self, *, zero_stage: int, precision: str) -> None:
        """Refuse ZeRO 3 and weights in bfloat16.

        Raises:
            ValueError: see `models.contrast.momentum.check_whole_weights`.
        """
        check_whole_weights("moco", zero_stage=zero_stage, precision=precision)

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
