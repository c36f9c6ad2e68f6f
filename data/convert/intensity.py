"""Raw intensities as 0 to 1, and whether they are of the scale that the set, or its user, says.

A wrong scale is seen in each frame where most values are clipped to 1, or all are 0; where all are next to 0, only in
whole logs (`data.preparing.early`), since a single sweep may be dark. Nothing later would notice: networks train on
constant input without a word.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, Shaped

from data.storage.damage import DamagedError

MOST_CLIPPED = 0.5
"""Share of the points; where the scale is right, only reflectors are clipped."""
DARK = 0.02
"""The largest value of a log over the one that becomes 1; any log has a sign, a number plate or a lane marking."""
_ABSURD = 1e4
"""A value over the one that becomes 1 that no sensor gives: one flipped bit, which clipping would hide."""
FEW_POINTS = 100
"""Of fewer the scale is not judged."""
_SCALES = (1, 100, 255, 4095, 65535)
"""Largest values of the scales in use: shares, percent, 8, 12 and 16 bits."""


def scaled_intensity(
    raw: Shaped[np.ndarray, " N"], maximum: float, where: str, remedy: str = ""
) -> Float32[np.ndarray, " N"]:
    """Values over `maximum`, clipped to 0 to 1; arguments and errors as of `check_intensity`."""
    check_intensity(raw, maximum, where, remedy)
    values = raw if np.issubdtype(raw.dtype, np.floating) else raw.astype(np.float64)
    return np.asarray(np.clip(values / values.dtype.type(maximum), 0, 1), dtype=np.float32)


def check_intensity(
    raw: Shaped[np.ndarray, " N"], maximum: float, where: str, remedy: str = "", *, absurd: float = _ABSURD
) -> None:
    """Refuse a sweep whose intensities are of another scale than stated.

    Args:
        raw: as the sensor's files have them.
        maximum: the raw value that becomes 1.
        where: file, for the message.
        remedy: what the user may set; "" where there is no setting.
        absurd: values above this many `maximum` are refused.

    Raises:
        DamagedError: not finite; absurd; or the scale is another one. Says how the values are distributed, and which
            scale they look like.
    """
    if raw.size == 0:
        return
    if not np.isfinite(raw).all():
        raise DamagedError("points-not-finite", f"{where}: an intensity is not finite")
    remedy = remedy or f"the files that the set publishes hold 0 to {maximum:g}; prepare converted ones as `custom`"
    low, high = float(raw.min()), float(raw.max())
    if raw.size >= FEW_POINTS and low == high == 0:
        raise DamagedError("intensity-range", f"{where}: every intensity is 0; {remedy}")
    clipped = float(((raw < 0) | (raw > maximum)).mean())
    if raw.size >= FEW_POINTS and clipped > MOST_CLIPPED:  # first: of another scale, values may be absurd as well
        quantiles = ", ".join(f"{value:g}" for value in np.quantile(raw, (0, 0.25, 0.5, 0.75, 0.99, 1)))
        detail = f"{where}: {maximum:g} becomes 1, but {clipped:.0%} are out of 0 to {maximum:g}"
        detail += f" (least, quartiles, 99 %, largest: {quantiles}){_guess(raw)}"
        raise DamagedError("intensity-range", f"{detail}; {remedy}")
    if high > absurd * maximum or low < -absurd * maximum:
        detail = f"{where}: an intensity of {high if high > -low else low:g}, expected 0 to {maximum:g}"
        raise DamagedError("intensity-range", detail)


def _guess(raw: Shaped[np.ndarray, " N"]) -> str:
    """The scale that a distribution looks like, as the end of a sentence; "" where it looks like none."""
    high = float(np.quantile(raw, 0.999))
    scale = next((scale for scale in _SCALES if 0.1 * scale < high <= scale), None)
    return "" if scale is None else f"; they look like values of 0 to {scale}"
