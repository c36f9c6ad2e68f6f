"""SECOND's networks for spconv's layers by hand: what the text says, built as it says, gives the run's map."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from launchers.exporting.formats import save
from launchers.exporting.layouts import prove, random_inputs
from launchers.exporting.proof import TOLERANCE
from models.layouts.back_in import fits
from models.layouts.base import to_theirs
from models.layouts.result import result
from models.layouts.spconv_plain import SpconvPlain
from models.layouts.spconv_reader import dense
from models.lidar.pillars import PillarsConfig
from models.lidar.voxelnet import VoxelNetConfig
from tests.helpers.weight_layouts import fed, small_voxelnet, stirred

spconv = pytest.importorskip("spconv.pytorch")
LAYOUT = SpconvPlain()


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["voxelbackbone8x", "second_tiny", "centerpoint"])
def test_a_network_rebuilt_from_its_file_gives_its_features(preset: str, tmp_path: Path) -> None:
    network = stirred(small_voxelnet(preset).build())
    content = LAYOUT.wrap(to_theirs(LAYOUT, network), {})
    save(tmp_path / "x.pt", content)
    assert prove(tmp_path / "x.pt", LAYOUT, network, random_inputs(network, fed())) < TOLERANCE
    assert preset in {fit.preset for fit in fits(content) if fit.layout == "spconv"}


def convolution(c_in: int, c_out: int, key: str, **settings: object) -> spconv.SparseSequential:
    kind = spconv.SparseConv3d if "stride" in settings else spconv.SubMConv3d
    conv = kind(c_in, c_out, settings.pop("cells", 3), bias=False, indice_key=key, **settings)
    return spconv.SparseSequential(conv, nn.BatchNorm1d(c_out, eps=1e-3), nn.ReLU())


def test_spconvs_own_modules_take_the_file_as_the_text_lists_them() -> None:
    """Names, shapes and order by hand, loaded with strict=True."""
    network = stirred(small_voxelnet("second_tiny").build())
    text = LAYOUT.instructions(network, fed())
    assert '1. SubMConv3d, 3x3x3, 4 to 16, indice_key="subm1": `encoder.0`' in text
    assert "3. SparseConv3d, 3x3x3, stride (2, 2, 2), padding (1, 1, 1), 16 to 16" in text
    assert "`spatial_shape` is (41, 64, 48)" in text
    assert "less the lowest cell (-20, -32, 0)" in text
    layers = [convolution(4, 16, "subm1"), convolution(16, 16, "subm1")]
    for stage, (c_in, c_out, padding) in enumerate(((16, 16, 1), (16, 32, 1), (32, 32, (0, 1, 1))), start=2):
        layers.append(convolution(c_in, c_out, f"spconv{stage}", stride=2, padding=padding))
        layers += [convolution(c_out, c_out, f"subm{stage}") for _ in range(2)]
    layers.append(convolution(32, 32, "spconv_down2", cells=(3, 1, 1), stride=(2, 1, 1)))
    encoder = spconv.SparseSequential(*layers).eval()
    state = to_theirs(LAYOUT, network)
    encoder.load_state_dict({k.removeprefix("encoder."): v for k, v in state.items() if k.startswith("encoder.")})
    coords, features, num_samples = random_inputs(network, fed())
    cells = (coords[:, 1:] - torch.tensor([0, -32, -20])).flip(1)
    indices = torch.cat([coords[:, :1], cells], dim=1).int().contiguous()
    with torch.no_grad():
        folded = dense(encoder(spconv.SparseConvTensor(features, indices, [41, 64, 48], num_samples))).flatten(1, 2)
        assert network.bev_backbone is not None
        torch.testing.assert_close(
            network.bev_backbone(folded), result(network, (coords, features, num_samples)), rtol=0, atol=1e-4
        )


def test_networks_without_such_a_sequence_are_refused() -> None:
    with pytest.raises(ValueError, match="there is one for res16unet, any preset, and for voxelnet"):
        LAYOUT.places(PillarsConfig(preset="pillars_tiny").build())
    network = VoxelNetConfig(preset="second_tiny", in_channels=4, grid_min=(0, 0, 0), grid_max=(32, 32, 24)).build()
    next(part for part in network.modules() if isinstance(part, nn.BatchNorm1d)).eps = 1e-5
    with pytest.raises(ValueError, match="has eps 1e-05"):
        LAYOUT.places(network)
