"""Pictures of a pose between camera and sweep, for a batch's first image: matches, projections, overlap.

Letters: I images, K tokens, H W pixels.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from data.sample import Batch
from models.pose.alignment import PoseEstimate
from models.pose.calibration import Tokens, project_all
from models.visuals import MatchSketch, PixelSketch, PointSketch, ProjectionSketch, Sketch

_BY = "a picture of a pose"
_SHOWN_MATCHES = 120
"""Lines in a picture of matches: more hide each other."""


def pose_sketches(batch: Batch, tokens: Tokens, found: PoseEstimate) -> dict[str, Sketch]:
    """Hard and soft matches of seen points; the sweep by the calibration before it was moved, the pose, the truth.

    The batch has at least one image. The matches of `found` are the valid tokens in order.
    """
    images, cameras = batch.need("images", by=_BY), batch.need("cameras", by=_BY)
    valid = tokens.valid[0]
    shown = tokens.seen[0][valid].nonzero()[:_SHOWN_MATCHES, 0]
    true = tokens.uv[0][valid][shown].float()
    mine = found.match_image == 0
    sketches: dict[str, Sketch] = {
        name: MatchSketch(image=images[0], found=uv[mine][shown].float(), true=true, caption=caption)
        for name, uv, caption in (
            ("matches_hard", found.match_hard_uv, "best cell of each point, and its true pixel"),
            ("matches_soft", found.match_soft_uv, "soft match of each point, and its true pixel"),
        )
    }
    truth = cameras.T_cam_points
    before = truth @ batch.T_aug_lidar.to(truth.dtype)[cameras.sample]
    after = "points by the estimated pose" if bool(found.valid[0]) else "no pose was found: points by the identity"
    sketches["projection_before"] = _projected(batch, before, "points by the calibration before they were moved")
    sketches["projection_estimated"] = _projected(batch, found.T_cam_points.to(truth.dtype), after)
    sketches["projection_true"] = _projected(batch, truth, "points by the true pose")
    return sketches


def overlap_sketches(
    batch: Batch, tokens: Tokens, point_score: Float[Tensor, "I K"], pixel_score: Float[Tensor, "I H W"]
) -> dict[str, Sketch]:
    """Scores of the overlap, 0 to 1, on the sweep (points that truly overlap are marked) and over the image."""
    valid = tokens.valid[0]
    return {
        "overlap_points": PointSketch(
            points=tokens.points[0][valid].float(),
            values=point_score[0][valid],
            scale="share",
            caption="score of lying in the image; rings: do",
            marked=tokens.seen[0][valid],
        ),
        "overlap_pixels": PixelSketch(
            image=batch.need("images", by=_BY)[0],
            values=pixel_score[0],
            scale="share",
            caption="score of being hit by the sweep",
        ),
    }


def _projected(batch: Batch, T_cam_points: Float[Tensor, "I 4 4"], caption: str) -> ProjectionSketch:
    """The first image with its sweep drawn in, coloured by depth."""
    images, cameras = batch.need("images", by=_BY), batch.need("cameras", by=_BY)
    points = batch.points[batch.point_sample == cameras.sample[0]].float()
    uv, seen = (x[0] for x in project_all(batch, points.expand(len(images), -1, -1), T_cam_points))
    depth = points @ T_cam_points[0, 2, :3].float() + T_cam_points[0, 2, 3].float()
    return ProjectionSketch(image=images[0], uv=uv[seen], values=depth[seen], scale="metres", caption=caption)
