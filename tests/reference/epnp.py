"""EPnP of one sample, step by step as the paper tells it, without gradient: loops and scipy's least squares."""

import numpy as np
from scipy.optimize import least_squares

PAIRS = [(i, j) for i in range(4) for j in range(i + 1, 4)]


def epnp_loop(
    points: np.ndarray, pixels_uv: np.ndarray, K: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float]:
    """Rotation, translation, reprojection error in pixels: the best of 1 to 4 eigenvectors."""
    weights = weights / weights.sum()
    origin = points.mean(axis=0)
    variances, axes = np.linalg.eigh(np.cov(points.T, bias=True))
    axes = axes * np.where((((points - origin) @ axes) ** 3).sum(axis=0) < 0, -1, 1)
    control = np.stack([origin, *(origin + np.sqrt(v) * axis for v, axis in zip(variances, axes.T, strict=True))])
    shares = [np.linalg.solve(np.vstack([control.T, np.ones(4)]), np.append(p, 1.0)) for p in points]
    rows = []
    for share, (u, v), weight in zip(shares, pixels_uv, weights, strict=True):
        row_u, row_v = np.zeros(12), np.zeros(12)
        for j in range(4):
            row_u[3 * j : 3 * j + 3] = share[j] * np.array([K[0, 0], 0, K[0, 2] - u])
            row_v[3 * j : 3 * j + 3] = share[j] * np.array([0, K[1, 1], K[1, 2] - v])
        rows += [np.sqrt(weight) * row_u, np.sqrt(weight) * row_v]
    M = np.stack(rows)
    answers = []
    for dims in range(1, 5):
        kernel = np.linalg.eigh(M.T @ M)[1][:, :dims]
        mix = _best_mix(kernel, control)
        camera = np.stack([share @ (kernel @ mix).reshape(4, 3) for share in shares])
        camera = camera if weights @ camera[:, 2] > 0 else -camera
        camera_mean, mean = weights @ camera, weights @ points
        U, _, Vt = np.linalg.svd((camera - camera_mean).T @ np.diag(weights) @ (points - mean))
        R = U @ np.diag([1, 1, np.linalg.det(U @ Vt)]) @ Vt
        t = camera_mean - R @ mean
        seen = (points @ R.T + t) @ K.T
        gap = seen[:, :2] / np.maximum(seen[:, 2:], 1e-6) - pixels_uv
        answers.append((R, t, float(np.sqrt(weights @ (gap**2).sum(axis=1)))))
    return min(answers, key=lambda answer: answer[2])


def _best_mix(kernel: np.ndarray, control: np.ndarray) -> np.ndarray:
    """Coefficients for which the distances between control points fit best, of many starts."""

    def distances(mix: np.ndarray) -> np.ndarray:
        camera = (kernel @ mix).reshape(4, 3)
        return np.array(
            [np.sum((camera[i] - camera[j]) ** 2) - np.sum((control[i] - control[j]) ** 2) for i, j in PAIRS]
        )

    size = np.sqrt(sum(np.sum((control[i] - control[j]) ** 2) for i, j in PAIRS))
    rng = np.random.default_rng(0)
    starts = [*(size * np.eye(kernel.shape[1])), *(size * rng.standard_normal((4, kernel.shape[1])))]
    fits = [least_squares(distances, start, method="lm", xtol=1e-15, ftol=1e-15, gtol=1e-15) for start in starts]
    return min(fits, key=lambda fit: fit.cost).x
