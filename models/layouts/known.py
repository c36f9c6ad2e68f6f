"""The layouts of other projects: one line a layout. `tandem export --format` chooses from it."""

from models.layouts.base import Layout
from models.layouts.mmdet3d import Mmdet3d
from models.layouts.openpcdet import OpenPcdet
from models.layouts.pointcept import PointceptLayout
from models.layouts.slidr import SlidrLayout
from models.layouts.spconv_plain import SpconvPlain
from models.layouts.torchsparse import TorchsparseLayout

LAYOUTS: dict[str, Layout] = {
    "mmdet3d": Mmdet3d(),
    "openpcdet": OpenPcdet(),
    "pointcept": PointceptLayout(),
    "slidr": SlidrLayout(),
    "spconv": SpconvPlain(),
    "torchsparse": TorchsparseLayout(),
}
