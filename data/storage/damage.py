"""What may go wrong with a sample, when it is made or when it is read: each kind of damage has a name."""

from __future__ import annotations

import os
import traceback
from pathlib import Path

REASONS = (
    "shard-missing",  # the tar cannot be opened or read
    "tar-broken",  # truncated, or not a tar at the stated offset
    "checksum",  # readable, but not the bytes that were written
    "member-missing",  # a file of the sample is not there
    "meta-broken",  # meta.json is no JSON, or a field has another type than documented
    "calibration-missing",  # intrinsics, extrinsics or a pose are absent
    "calibration-singular",  # not finite, not invertible, or not a rotation
    "array-broken",  # an .npy of another type, shape or length than documented
    "points-not-finite",  # NaN or infinity in a coordinate, an intensity, a time or an elongation
    "points-range",  # a coordinate, a time or an elongation that no LiDAR measures
    "intensity-range",  # below 0 or above 1, or raw values of another scale than the set's
    "empty-sweep",  # no points
    "too-large",  # more points or voxels than any memory is made for
    "image-broken",  # an image that cannot be decoded whole
    "image-size",  # an image, superpixels, depth or labels of another size than stated
    "depth-range",  # a depth that is negative or not finite
    "labels-range",  # a class, or a category of a box, that the set does not have
    "superpixel-ids",  # more superpixels than the set states
    "cameras-unknown",  # a camera that the set does not list, or in another order
    "boxes-broken",  # a box or a rectangle that is not finite, or has a negative size, or is out of any reach
    "error",  # anything else that went wrong with it: an exception, named in the detail
)
"""Every reason for which a sample can be refused."""

_CODE = f"{Path(__file__).parents[2]}{os.sep}"
_MAX_ERROR_CHARS = 300


class DamagedError(Exception):
    """A sample cannot be used; `reason` is one of `REASONS`."""

    def __init__(self, reason: str, detail: str) -> None:
        assert reason in REASONS, reason
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    @classmethod
    def of(cls, error: Exception) -> DamagedError:
        """Any exception that a sample caused, with the place in this code where it came up."""
        text = " ".join(str(error).split())[:_MAX_ERROR_CHARS]
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(_CODE)]
        place = f" ({frames[-1].filename.removeprefix(_CODE)}:{frames[-1].lineno})" if frames else ""
        return cls("error", f"{type(error).__name__}{f': {text}' if text else ''}{place}")
