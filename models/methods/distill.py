"""Plain distillation: each point's feature shall be the frozen image network's feature of its pixel.

Paper: Puy et al., "Three Pillars improving Vision Foundation Model Distillation for Lidar" (ScaLR), CVPR 2024.
Learnt: the 3D network and a head to the width of the image network's features. The image network stays as it is. In:
voxels, images, point-pixel pairs; one random camera a sweep and step is `data.cameras_per_sample: 1`. There are no
negatives, no temperature and no superpixels.

Deviations from the paper and its released code: `docs/methods/distill.md`.

Letters: I images, M voxels, P pairs, C channels of the image network, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from common.ranges import RangeError, at_least
from data.batch_spec import BatchSpec
from data.sample import Batch, PointPixelPairs
from models.contrast.collapse_monitor import collapse_watch
from models.heads import unit
from models.image.teacher import TeacherConfig
from models.image.vit import VitTeacherConfig
from models.lidar.base import BackboneConfig
from models.lidar.res16unet import Res16UNetConfig
from models.methods.base import LossTerms, MethodConfig
from models.methods.pixel_pairs import PixelPairs, features_at_pairs


@dataclass(frozen=True, kw_only=True)
class DistillConfig(MethodConfig):
    """Settings of plain distillation; defaults are ScaLR's.

    Attributes:
        backbone: 3D network; `backbone.name` chooses.
        teacher: frozen image network. The paper's is `name: vit_large_14, weights: dinov2:<path>`, the last block's
            output without the last norm.
        only_seen: the 3D network gets the points that an image shows alone, as in the paper; else whole sweeps.
        hidden_features: of a head of two layers with GELU between them; None: a linear head.
        watch_rows: pairs that the collapse watch looks at; few, because features are wide.
    """

    backbone: BackboneConfig = field(default_factory=Res16UNetConfig)
    teacher: TeacherConfig = field(
        default_factory=lambda: VitTeacherConfig(name="vit_large_14", normalise_levels=False)
    )
    only_seen: bool = False
    hidden_features: int | None = None
    watch_rows: int = 256

    def __post_init__(self) -> None:
        at_least(self, hidden_features=1, watch_rows=2)
        if self.teacher.cache:
            why = "distill reads single pixels, the cache holds means over superpixels"
            raise RangeError(f"teacher.cache: got True, expected false: {why}")

    def batch_spec(self) -> BatchSpec:
        """Images with pairs."""
        return BatchSpec(only_seen=self.only_seen)

    def build(self) -> Distill:
        """Assemble towers and head."""
        return Distill(self)


class Distill(PixelPairs):
    """Towers, head and loss."""

    def __init__(self, config: DistillConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = config.backbone.build()
        self.teacher = config.teacher.build()
        self.point_head = _head(self.backbone.num_features, config.hidden_features, self.teacher.num_features)

    def forward(self, batch: Batch) -> LossTerms:
        """Bring points to their pixels.

            s_i = unit(head(3D feature of pair i's point)),  t_i = unit(image feature at pair i's pixel)
            loss = mean over pairs i of |s_i - t_i|

        Without pairs the loss and its gradient are 0. Under several ranks each takes the mean over its own pairs.

        Raises:
            ValueError: the batch lacks images or pairs.

        Source: ScaLR, section 3.1.
        """
        students, teachers = self.rows(batch, "distill")
        loss = torch.linalg.vector_norm(students - teachers, dim=1).sum() / max(len(students), 1)
        watch = collapse_watch(students, teachers, max_rows=self.config.watch_rows)
        return LossTerms(
            total=loss,
            parts={"distance": loss.detach()},
            watch={name: watch[name] for name in ("alignment", "effective_rank")},
        )

    def point_embeddings(self, batch: Batch) -> Float[Tensor, "M C"]:
        """Unit feature of each voxel, in the image network's space."""
        return unit(self.point_head(self.backbone(batch.voxel_coords, batch.voxel_features, batch.num_samples)))

    def pixels_at(self, images: UInt8[Tensor, "I 3 H W"], pairs: PointPixelPairs) -> Float[Tensor, "K C"]:
        """Unit feature of each pair's pixel."""
        return unit(features_at_pairs(self.teacher, images, pairs))


def _head(in_features: int, hidden_features: int | None, out_features: int) -> nn.Module:
    if hidden_features is None:
        return nn.Linear(in_features, out_features)
    return nn.Sequential(nn.Linear(in_features, hidden_features), nn.GELU(), nn.Linear(hidden_features, out_features))
