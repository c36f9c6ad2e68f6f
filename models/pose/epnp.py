"""Pose of a camera from points and their pixels, for a batch, with gradients: EPnP.

Source: Lepetit, Moreno-Noguer, Fua, "EPnP: An accurate O(n) solution to the PnP problem" (IJCV 2009).

    control points c_j: centroid and principal axes of the points, so that every point is sum_j a_ij c_j   (eq. 1-2)
    each pixel gives two linear equations in the 12 camera coordinates of the control points               (eq. 5-7)
    the answer is a mix of the d eigenvectors of least eigenvalue, d = 1 to 4; its coefficients make the distances
    between control points right (eq. 8-14, Gauss-Newton of section 3.4, then Newton to full convergence)
    rotation and translation align the control points' two positions; of the four answers the one of least
    reprojection error counts

Gradients. Chaining through eigenvectors and singular vectors gives infinities where eigenvalues meet. Here every solved
quantity is computed without gradient and then corrected by one linear step of the equation that defines it (implicit
differentiation): `x = x* - A (g(x*, input) - g(x*, input).detach())`, A constant. Turning the d eigenvectors within
their space leaves the answer as it is, so only differences between their and the other eigenvalues occur, and the
rotation needs sums of singular values, never differences. What remains is bounded by `RELATIVE_GAP`. So gradients
are finite for every input, and exact wherever the problem is well-posed; second derivatives are not to be had.
The control points are constants: exact for pixels and weights, and for points where the correspondences fit exactly.

Everything is solved in float64, whatever comes in and also under autocast: the 12 x 12 matrix squares the condition of
the problem, which float32 does not survive.

Letters: B samples, N points (each sample the same number; weight 0 for padding), P pairs of control points, I answers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

MIN_POINTS = 6
"""Fewer leave more than one null vector in general: several poses fit."""
MIN_FLATNESS = 1e-3
"""Least ratio of the smallest to the largest standard deviation of the points (a sweep has some 0.05)."""
MIN_RANK = 1e-12
"""Least ratio of the second smallest to the largest of the 12 eigenvalues: below, the pose is not unique."""
RELATIVE_GAP = 1e-9
"""Gaps between eigenvalues below this share of the largest are not divided by."""
LARGEST = 1e9
"""Coordinates and weights beyond are taken for absent, like NaN."""
GAUSS_NEWTON_STEPS = 10
NEWTON_STEPS = 10

_PAIRS = ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3))
_STARTS = (
    ((0, 0),),
    ((0, 0), (0, 1), (1, 1)),
    ((0, 0), (0, 1), (1, 1), (0, 2), (1, 2), (2, 2)),
    ((0, 0), (0, 1), (0, 2), (0, 3)),
)
"""Products of coefficients that the start for d = 1, 2, 3, 4 eigenvectors solves for."""


@dataclass(frozen=True, kw_only=True)
class Pose:
    """Estimated poses: x_cam = rotation x + translation_m.

    Attributes:
        rotation: a rotation; the identity where not valid.
        translation_m: zero where not valid.
        valid: whether the correspondences determine a pose (enough of them, not in a plane, not the same few points
            again). It does not say that the pose is right: that is for the caller, e.g. from `error_px`.
        error_px: root of the weighted mean square reprojection error, without gradient; infinite where not valid.
    """

    rotation: Float[Tensor, "B 3 3"]
    translation_m: Float[Tensor, "B 3"]
    valid: Bool[Tensor, " B"]
    error_px: Float[Tensor, " B"]


def epnp(
    points: Float[Tensor, "B N 3"],
    pixels_uv: Float[Tensor, "B N 2"],
    K: Float[Tensor, "B 3 3"],
    weights: Float[Tensor, "B N"] | None = None,
) -> Pose:
    """Poses from points and their pixels. Samples without a defined pose are marked, with zero gradient.

    Args:
        points: in the frame whose pose is sought (LiDAR), metres.
        pixels_uv: where each is seen.
        K: pinhole intrinsics, last row (0, 0, 1).
        weights: of each correspondence's squared error, 0 or more; None for equal ones. Weight 0, NaN and infinite
            coordinates take a correspondence out.

    Returns:
        Poses in the dtype of `points`.

    Raises:
        ValueError: a weight is negative.
    """
    weights = torch.ones_like(points[..., 0]) if weights is None else weights
    if bool((weights < 0).any()):
        raise ValueError(f"weights go down to {float(weights.detach().min()):.3g}: expected 0 or more")
    with torch.autocast(points.device.type, enabled=False):
        X, uv, w, used = _clean(points.double(), pixels_uv.double(), weights.double())
        rays, focal = _rays(uv, K.double())
        origin, axes, spread, valid = _control_frame(X.detach(), used)
        control = torch.cat([torch.zeros_like(axes[:, :1]), axes * spread[:, :, None]], dim=1)
        share = ((X - origin[:, None]) @ axes.mT) / spread[:, None]
        alpha = torch.cat([1 - share.sum(dim=2, keepdim=True), share], dim=2)
        system = _normal_matrix(alpha, rays, focal, w)
        problem = _Problem(alpha=alpha, X=X - origin[:, None], rays=rays, focal=focal, weights=w)
        camera_control, unique = _camera_control(system, control, problem)
        R, t, error = problem.pose(camera_control[:, None])
        valid = valid & unique & torch.isfinite(error[:, 0])
        t = t[:, 0] - (R[:, 0] @ origin[:, :, None]).squeeze(2)
        eye = torch.eye(3, dtype=R.dtype, device=R.device)
        return Pose(
            rotation=torch.where(valid[:, None, None], R[:, 0], eye).to(points.dtype),
            translation_m=torch.where(valid[:, None], t, 0).to(points.dtype),
            valid=valid,
            error_px=torch.where(valid, error[:, 0], torch.inf).to(points.dtype),
        )


@dataclass(frozen=True, kw_only=True)
class _Problem:
    """What turns camera positions of the control points into a pose and its error. Points are centred."""

    alpha: Float64[Tensor, "B N 4"]
    X: Float64[Tensor, "B N 3"]
    rays: Float64[Tensor, "B N 2"]
    focal: Float64[Tensor, "B 2"]
    weights: Float64[Tensor, "B N"]

    def pose(
        self, camera_control: Float64[Tensor, "B I 4 3"]
    ) -> tuple[Float64[Tensor, "B I 3 3"], Float64[Tensor, "B I 3"], Float64[Tensor, "B I"]]:
        """Rotation, translation and reprojection error (px, no gradient) of each candidate."""
        camera = self.alpha[:, None] @ camera_control
        w = self.weights[:, None, :, None]
        depth = (w[..., 0] * camera[..., 2]).sum(dim=2).detach()
        camera = camera * torch.where(depth < 0, -1.0, 1.0)[..., None, None]  # before the camera, not behind
        X = self.X[:, None].expand_as(camera)
        camera_mean, X_mean = (w * camera).sum(dim=2), (w * X).sum(dim=2)
        R = _nearest_rotation((w * (camera - camera_mean[:, :, None])).mT @ (X - X_mean[:, :, None]))
        t = camera_mean - (R @ X_mean[..., None]).squeeze(-1)
        with torch.no_grad():
            seen = X @ R.mT + t[:, :, None]
            # A point in the camera's plane has no pixel; a small depth makes its error large, not infinite.
            z = seen[..., 2:].clamp(min=1e-6)
            gap = (seen[..., :2] / z - self.rays[:, None]) * self.focal[:, None, None]
            error = (self.weights[:, None] * gap.square().sum(dim=3)).sum(dim=2).sqrt()
        return R, t, error


def _clean(
    points: Float64[Tensor, "B N 3"], pixels_uv: Float64[Tensor, "B N 2"], weights: Float64[Tensor, "B N"]
) -> tuple[Float64[Tensor, "B N 3"], Float64[Tensor, "B N 2"], Float64[Tensor, "B N"], Bool[Tensor, "B N"]]:
    """Zeros where a correspondence does not count; weights that add up to 1; which correspondences count."""
    values = torch.cat([points, pixels_uv, weights[..., None]], dim=2)
    used = (values.abs() < LARGEST).all(dim=2) & (weights > 0)
    points, pixels_uv = (torch.where(used[..., None], x, 0) for x in (points, pixels_uv))
    weights = torch.where(used, weights, 0)
    return points, pixels_uv, weights / weights.sum(dim=1, keepdim=True).clamp(min=1e-30), used


def _rays(
    uv: Float64[Tensor, "B N 2"], K: Float64[Tensor, "B 3 3"]
) -> tuple[Float64[Tensor, "B N 2"], Float64[Tensor, "B 2"]]:
    """x/z and y/z of each pixel, and the focal lengths that turn them into pixels."""
    y = (uv[..., 1] - K[:, None, 1, 2]) / K[:, None, 1, 1]
    x = (uv[..., 0] - K[:, None, 0, 2] - K[:, None, 0, 1] * y) / K[:, None, 0, 0]
    return torch.stack([x, y], dim=2), torch.stack([K[:, 0, 0], K[:, 1, 1]], dim=1)


def _control_frame(
    points: Float64[Tensor, "B N 3"], used: Bool[Tensor, "B N"]
) -> tuple[Float64[Tensor, "B 3"], Float64[Tensor, "B 3 3"], Float64[Tensor, "B 3"], Bool[Tensor, " B"]]:
    """Centroid, principal axes (rows), standard deviation along them, and whether they span space.

    With noise the answer depends a little on which side of the centroid a control point lies. Axes point to the side
    of the longer tail, so that another frame or another library's eigenvectors give the same answer.
    """
    count = used.sum(dim=1).clamp(min=1)
    origin = points.sum(dim=1) / count[:, None]
    centred = torch.where(used[..., None], points - origin[:, None], 0)
    variance, vectors = torch.linalg.eigh(centred.mT @ centred / count[:, None, None])
    tail = (centred @ vectors).pow(3).sum(dim=1)
    vectors = vectors * torch.where(tail < 0, -1.0, 1.0)[:, None]
    spread = variance.clamp(min=0).sqrt()
    spans = (spread[:, 0] > MIN_FLATNESS * spread[:, 2]) & (used.sum(dim=1) >= MIN_POINTS)
    return origin, vectors.mT, torch.where(spans[:, None], spread, 1.0), spans


def _normal_matrix(
    alpha: Float64[Tensor, "B N 4"],
    rays: Float64[Tensor, "B N 2"],
    focal: Float64[Tensor, "B 2"],
    weights: Float64[Tensor, "B N"],
) -> Float64[Tensor, "B 12 12"]:
    """Sum of w m m^T over the two equations m of each point; unknowns ordered control point by control point."""
    relative = focal / focal.mean(dim=1, keepdim=True)
    parts = []
    for axis in range(2):
        row = torch.zeros(*rays.shape[:2], 3, dtype=rays.dtype, device=rays.device)
        row[..., axis] = 1
        direction = row - rays[..., axis : axis + 1] * row.new_tensor([0, 0, 1])
        equation = (alpha[..., :, None] * direction[..., None, :]).flatten(2) * relative[:, None, axis, None]
        parts.append(equation.mT @ (weights[..., None] * equation))
    return parts[0] + parts[1]


def _camera_control(
    system: Float64[Tensor, "B 12 12"], control: Float64[Tensor, "B 4 3"], problem: _Problem
) -> tuple[Float64[Tensor, "B 4 3"], Bool[Tensor, " B"]]:
    """Camera positions of the control points, with gradient, and whether the least eigenvalue stands alone."""
    values, vectors = torch.linalg.eigh(system.detach())
    first, second = (torch.tensor(side, device=system.device) for side in zip(*_PAIRS, strict=True))
    squared_distances = (control[:, first] - control[:, second]).square().sum(dim=2)

    def products(kernel: Float64[Tensor, "B 12 4"]) -> Float64[Tensor, "B P 4 4"]:
        shaped = kernel.unflatten(1, (4, 3))
        difference = shaped[:, first] - shaped[:, second]
        inner: Tensor = difference.mT @ difference
        return inner

    dims, mix = _best_mix(vectors[..., :4], products(vectors[..., :4]), squared_distances, problem)
    kernel = _attached(system, values, vectors, dims)
    inside = (torch.arange(4, device=dims.device) < dims[:, None]).to(mix.dtype)
    _, slope, _, hessian = _distance_terms(products(kernel), squared_distances, mix)
    inverse = _guarded_inverse(hessian.detach() * inside[:, :, None] * inside[:, None, :])
    mix = mix - (inverse @ (slope - slope.detach())[..., None]).squeeze(-1) * inside
    return (kernel @ mix[..., None]).unflatten(1, (4, 3)).squeeze(-1), values[:, 1] > MIN_RANK * values[:, -1]


def _attached(
    system: Float64[Tensor, "B 12 12"],
    values: Float64[Tensor, "B 12"],
    vectors: Float64[Tensor, "B 12 12"],
    dims: Int64[Tensor, " B"],
) -> Float64[Tensor, "B 12 4"]:
    """The eigenvectors of the four least eigenvalues; the first `dims` of them with gradient, as a space.

    A change dS moves v inside of the space by -u (u^T dS v) / (lambda_u - lambda_v), summed over u outside of it.
    """
    kernel = vectors[..., :4]
    rank = torch.arange(12, device=dims.device)
    crossing = (rank[:, None] >= dims[:, None, None]) & (rank[:4] < dims[:, None, None])
    gap = values[:, :, None] - values[:, None, :4]
    floor = RELATIVE_GAP * values[:, -1, None, None].clamp(min=1e-30)
    share = torch.where(crossing, gap / (gap.square() + floor.square()), 0)
    attached: Tensor = kernel - vectors @ (share * (vectors.mT @ (system - system.detach()) @ kernel))
    return attached


@torch.no_grad()
def _best_mix(
    kernel: Float64[Tensor, "B 12 4"],
    products: Float64[Tensor, "B P 4 4"],
    squared_distances: Float64[Tensor, "B P"],
    problem: _Problem,
) -> tuple[Int64[Tensor, " B"], Float64[Tensor, "B 4"]]:
    """How many eigenvectors to mix, and how, for the least reprojection error."""
    rank = torch.arange(4, device=kernel.device)
    inside = (rank[None, :] <= rank[:, None]).to(kernel.dtype)  # answers x coefficients
    starts = torch.stack([_start(products, squared_distances, terms) for terms in _STARTS], dim=1) * inside
    limited = products[:, None] * (inside[:, :, None] * inside[:, None, :])[:, None]
    mixes = _fit_distances(limited, squared_distances[:, None].expand(-1, 4, -1), starts)
    error = problem.pose((kernel[:, None] @ mixes[..., None]).unflatten(2, (4, 3)).squeeze(-1))[2]
    best = torch.nan_to_num(error, nan=torch.inf).argmin(dim=1)
    return best + 1, mixes[torch.arange(len(best), device=best.device), best]


def _start(
    products: Float64[Tensor, "B P 4 4"], squared_distances: Float64[Tensor, "B P"], terms: tuple[tuple[int, int], ...]
) -> Float64[Tensor, "B 4"]:
    """Coefficients from the products b_k b_l in `terms`, for which the distances are linear equations."""
    columns = torch.stack([products[..., k, m] * (1 if k == m else 2) for k, m in terms], dim=2)
    normal = columns.mT @ columns
    size = normal.diagonal(dim1=1, dim2=2).sum(dim=1).clamp(min=1e-30)
    ridge = 1e-12 * size[:, None, None] * torch.eye(len(terms), dtype=normal.dtype, device=normal.device)
    solved = torch.linalg.solve(normal + ridge, columns.mT @ squared_distances[..., None]).squeeze(2)
    first = solved[:, 0].abs().sqrt().clamp(min=1e-9 * squared_distances.amax(dim=1).sqrt())
    start = torch.zeros_like(products[:, 0, 0])
    start[:, 0] = first
    for i, (k, m) in enumerate(terms):
        if k == 0 and m > 0:
            start[:, m] = solved[:, i] * solved[:, 0].sign() / first
    return torch.nan_to_num(start, nan=0.0, posinf=0.0, neginf=0.0)


def _distance_terms(
    products: Float64[Tensor, "... P 4 4"], squared_distances: Float64[Tensor, "... P"], mix: Float64[Tensor, "... 4"]
) -> tuple[Float64[Tensor, "..."], Float64[Tensor, "... 4"], Float64[Tensor, "... 4 4"], Float64[Tensor, "... 4 4"]]:
    """Cost sum_p (b^T G_p b - d_p)^2 / 4, its gradient, Gauss-Newton's Hessian and the true one."""
    along = (products @ mix[..., None, :, None]).squeeze(-1)  # half the gradient of each distance
    residual = (along * mix[..., None, :]).sum(dim=-1) - squared_distances
    gauss_newton = 2 * along.mT @ along
    curvature = (residual[..., None, None] * products).sum(dim=-3)
    slope = (residual[..., None] * along).sum(dim=-2)
    return residual.square().sum(dim=-1) / 4, slope, gauss_newton, gauss_newton + curvature


def _fit_distances(
    products: Float64[Tensor, "B I P 4 4"], squared_distances: Float64[Tensor, "B I P"], mix: Float64[Tensor, "B I 4"]
) -> Float64[Tensor, "B I 4"]:
    """Damped Gauss-Newton, then damped Newton: the gradient's implicit form needs a point of zero slope."""
    damping = torch.full_like(mix[..., 0], 1e-3)
    cost, slope, hessian, true_hessian = _distance_terms(products, squared_distances, mix)
    eye = torch.eye(4, dtype=mix.dtype, device=mix.device)
    for i in range(GAUSS_NEWTON_STEPS + NEWTON_STEPS):
        model = hessian if i < GAUSS_NEWTON_STEPS else true_hessian
        size = hessian.diagonal(dim1=-2, dim2=-1).sum(dim=-1).clamp(min=1e-30)
        step = torch.linalg.solve_ex(model + (damping * size)[..., None, None] * eye, slope[..., None])[0].squeeze(-1)
        tried = mix - torch.nan_to_num(step, nan=0.0, posinf=0.0, neginf=0.0)
        new = _distance_terms(products, squared_distances, tried)
        # Near the minimum the cost is flat to rounding: there the slope decides, for the last digits of the answer.
        flat = (new[0] - cost).abs() <= 1e-9 * cost
        better = torch.where(flat, new[1].square().sum(dim=-1) < slope.square().sum(dim=-1), new[0] < cost)
        mix = torch.where(better[..., None], tried, mix)
        cost, slope = torch.where(better, new[0], cost), torch.where(better[..., None], new[1], slope)
        hessian, true_hessian = (
            torch.where(better[..., None, None], x, y) for x, y in ((new[2], hessian), (new[3], true_hessian))
        )
        damping = torch.where(better, damping * 0.1, damping * 10).clamp(1e-15, 1e6)
    return mix


def _guarded_inverse(matrix: Float64[Tensor, "*batch n n"]) -> Float64[Tensor, "*batch n n"]:
    """Inverse of symmetric matrices, with eigenvalues near 0 not divided by."""
    values, vectors = torch.linalg.eigh(matrix)
    floor = RELATIVE_GAP * values.abs().amax(dim=-1, keepdim=True).clamp(min=1e-30)
    inverse: Tensor = vectors * (values / (values.square() + floor.square()))[..., None, :] @ vectors.mT
    return inverse


def _nearest_rotation(matrix: Float64[Tensor, "*batch 3 3"]) -> Float64[Tensor, "*batch 3 3"]:
    """Rotation R of greatest trace(R^T H), with gradient.

    R^T H is symmetric there, say B. A change dH turns R by omega: (trace(B) E - B) omega = vee(A - A^T), A = R^T dH.

    Source: Kabsch (1978) with the sign of Umeyama (1991).
    """
    with torch.no_grad():
        U, _, Vh = torch.linalg.svd(matrix)
        sign = torch.where(torch.linalg.det(U @ Vh) < 0, -1.0, 1.0)
        last = torch.stack([torch.ones_like(sign), torch.ones_like(sign), sign], dim=-1)
        R = (U * last[..., None, :]) @ Vh
        B = R.mT @ matrix
        B = (B + B.mT) / 2
        eye = torch.eye(3, dtype=R.dtype, device=R.device)
        inverse = _guarded_inverse(B.diagonal(dim1=-2, dim2=-1).sum(dim=-1)[..., None, None] * eye - B)
    A = R.mT @ (matrix - matrix.detach())
    twist = torch.stack([A[..., 2, 1] - A[..., 1, 2], A[..., 0, 2] - A[..., 2, 0], A[..., 1, 0] - A[..., 0, 1]], dim=-1)
    omega = (inverse @ twist[..., None]).squeeze(-1)
    zero = torch.zeros_like(omega[..., 0])
    x, y, z = omega.unbind(dim=-1)
    turn = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).unflatten(-1, (3, 3))
    rotation: Tensor = R + R @ turn
    return rotation
