"""The registry of pre-training methods: one line a method."""

from models.methods.base import MethodConfig
from models.methods.slidr import SlidrConfig

METHODS: dict[str, type[MethodConfig]] = {
    "slidr": SlidrConfig,
}
