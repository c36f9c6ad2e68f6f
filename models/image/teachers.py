"""The registry of frozen teachers: the family of each network. `<section>.teacher.name` in a config chooses from it."""

from models.image.efficientnet import EfficientNetTeacherConfig
from models.image.resnet import ResNetTeacherConfig
from models.image.resnet_levels import ResNetLevelsTeacherConfig
from models.image.teacher import TeacherConfig
from models.image.unet import ResNetUnetTeacherConfig
from models.image.vit import VitTeacherConfig

FAMILIES: tuple[type[TeacherConfig], ...] = (
    EfficientNetTeacherConfig,
    ResNetTeacherConfig,
    ResNetLevelsTeacherConfig,
    ResNetUnetTeacherConfig,
    VitTeacherConfig,
)
TEACHERS = {name: family for family in FAMILIES for name in family.NAMES}
