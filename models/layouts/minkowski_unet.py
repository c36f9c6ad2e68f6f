"""The names that a U-Net of MinkowskiEngine has in SLidR and in Pointcept, for the reader that proves such files.

Kernels are [K, C_in, C_out], those of one cell [C_in, C_out], offsets with the first axis fastest. The table that
writes them is `models.lidar.minkowski`.

Source: MinkowskiEngine 0.5 (layout); valeoai/SLidR `model/minkunet.py`, Pointcept `sparse_unet/mink_unet.py` (names).
"""

from __future__ import annotations

from collections.abc import Mapping

from models.layouts.base import AnyTensor, Place
from models.layouts.dictionary_reader import first_axis_fastest
from models.layouts.unet_places import Unit, offsets_kernel, sizes, unet_places
from models.layouts.unet_reader import ByDictionary, Layer, Stage, UNetNames, UNetReader
from models.lidar.minkowski import minkowski_key
from models.lidar.res16unet import Res16UNet

EPS = 1e-5
"""Of MinkowskiBatchNorm, which holds torch's."""

NAMES = UNetNames(
    stem=[Layer(kernel="conv0p1s1.kernel", norm="bn0.bn")],
    encoder=[
        Stage(resample=Layer(kernel="conv1p1s2.kernel", norm="bn1.bn"), blocks="block1."),
        Stage(resample=Layer(kernel="conv2p2s2.kernel", norm="bn2.bn"), blocks="block2."),
        Stage(resample=Layer(kernel="conv3p4s2.kernel", norm="bn3.bn"), blocks="block3."),
        Stage(resample=Layer(kernel="conv4p8s2.kernel", norm="bn4.bn"), blocks="block4."),
    ],
    decoder=[
        Stage(resample=Layer(kernel="convtr4p16s2.kernel", norm="bntr4.bn"), blocks="block5."),
        Stage(resample=Layer(kernel="convtr5p8s2.kernel", norm="bntr5.bn"), blocks="block6."),
        Stage(resample=Layer(kernel="convtr6p4s2.kernel", norm="bntr6.bn"), blocks="block7."),
        Stage(resample=Layer(kernel="convtr7p2s2.kernel", norm="bntr7.bn"), blocks="block8."),
    ],
    conv1=Layer(kernel="conv1.kernel", norm="norm1.bn"),
    conv2=Layer(kernel="conv2.kernel", norm="norm2.bn"),
    shortcut=Layer(kernel="downsample.0.kernel", norm="downsample.1.bn"),
)


def minkowski_places(network: Res16UNet) -> dict[str, Place]:
    """Places of a network with one convolution as stem.

    Raises:
        ValueError: it has two, or is a SpUNet.
    """
    if sizes(network).down_widens:
        raise ValueError(
            "MinkUNet's strided convolutions keep the channels, this network's change them, as those of SpUNet do; "
            "the nearest preset is res16unet34c"
        )

    def name(unit: Unit) -> tuple[str, str]:
        return minkowski_key(unit.kernel), minkowski_key(f"{unit.norm}.weight").removesuffix(".weight")

    return unet_places(network, name, offsets_kernel)


def minkowski_features(state: Mapping[str, AnyTensor], inputs: tuple[AnyTensor, AnyTensor, int]) -> AnyTensor:
    """Features of each voxel before `final`, computed from a file's tensors."""
    return UNetReader(NAMES, ByDictionary(state, first_axis_fastest), EPS).whole(inputs)
