import dataclasses
from collections.abc import Mapping

from tests.helpers.detection_scenes import Frames


def renamed(frames: Frames, names: Mapping[str, str]) -> Frames:
    """The same scene with some classes called otherwise."""
    return [
        (
            dataclasses.replace(true, categories=tuple(names.get(name, name) for name in true.categories)),
            dataclasses.replace(found, classes=tuple(names.get(name, name) for name in found.classes)),
        )
        for true, found in frames
    ]
