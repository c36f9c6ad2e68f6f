"""What the name of a topic says: which camera it is of, and whether something was made of a sensor's data."""

from __future__ import annotations

import re

_IMAGE_WORDS = re.compile(r"/(image(_(raw|rect|color|mono|compressed))*|compressed|video)(?=/|\Z)")
"""Parts of a topic's name that say how the camera's images are stored, not which camera it is."""
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+|[0-9]+")
_NO_PICTURES = frozenset(("depth", "theora", "disparity", "thermal"))
"""Words in names of topics whose images are not taken for a camera's."""
_DERIVED = frozenset(
    (
        *("superpixel", "segment", "segmented", "segmentation", "semantic", "panoptic", "instance", "mask", "label"),
        *("class", "cluster", "feature", "detection", "annotated", "annotation", "overlay", "heatmap", "debug"),
    )
)
"""Words, without a plural's ending, in names of topics that show what somebody made of a sensor's data."""


def camera_name(topic: str) -> str:
    """A camera's name by a topic of its images or its calibration: "/front/image_raw/compressed" is "front"."""
    name = _IMAGE_WORDS.sub("", re.sub(r"/(camera_info|calibration)\Z", "", topic))
    return re.sub(r"[^A-Za-z0-9_]", "_", name.strip("/")) or "camera"


def no_picture(topic: str) -> str:
    """The word by which a topic's images are not pictures that a camera took; "" without one."""
    return _first(topic, _NO_PICTURES | _DERIVED)


def derived(topic: str) -> str:
    """The word by which a topic holds what somebody made of a sensor's data; "" without one."""
    return _first(topic, _DERIVED)


def _first(topic: str, known: frozenset[str]) -> str:
    """The first of a topic's words, or its singular, that is known; "compressedDepth" is two words, "depthai" one."""
    for word in _WORD.findall(topic):
        if {word.lower(), word.lower().removesuffix("s"), word.lower().removesuffix("es")} & known:
            return str(word.lower())
    return ""
