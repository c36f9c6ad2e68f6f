"""Vision transformers: published names and sizes, attention against slow forms, positions, padding, loading."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.image.vit import VIT_NAMES, SelfAttention, VisionTransformer, ViTLayout, load_vit_weights, vit_layout
from tests.helpers.image_networks import teacher_config

SMALL = ViTLayout(width=32, depth=2, heads=4, patch=8, grid=6)
SMALL_V2 = ViTLayout(width=32, depth=2, heads=4, patch=14, grid=5, layer_scale=True, registers=3)


def _network(layout: ViTLayout = SMALL, seed: int = 0, **settings: bool) -> VisionTransformer:
    torch.manual_seed(seed)
    network = VisionTransformer(layout, **settings).eval()
    for parameter in network.parameters():  # no factor of one, no bias of zero
        parameter.data.normal_(0, 0.3) if parameter.dim() == 1 else parameter.data.mul_(10)
    return network


def published(layout: ViTLayout, extra: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Tensors by the names and shapes of the public files, written down from those."""
    width = layout.width
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 1 + layout.grid**2, width),
        "patch_embed.proj.weight": (width, 3, layout.patch, layout.patch),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    for block in range(layout.depth):
        for name, shape in {
            "norm1.weight": (width,),
            "norm1.bias": (width,),
            "attn.qkv.weight": (3 * width, width),
            "attn.qkv.bias": (3 * width,),
            "attn.proj.weight": (width, width),
            "attn.proj.bias": (width,),
            "norm2.weight": (width,),
            "norm2.bias": (width,),
            "mlp.fc1.weight": (4 * width, width),
            "mlp.fc1.bias": (4 * width,),
            "mlp.fc2.weight": (width, 4 * width),
            "mlp.fc2.bias": (width,),
        }.items():
            shapes[f"blocks.{block}.{name}"] = shape
        if layout.layer_scale:
            shapes |= {f"blocks.{block}.ls{n}.gamma": (width,) for n in (1, 2)}
    generator = torch.Generator().manual_seed(3)
    return {name: torch.randn(shape, generator=generator) for name, shape in (shapes | extra).items()}


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        # Sizes that the papers and model cards give.
        ("vit_small_16", 21.7),
        ("vit_small_8", 21.7),
        ("vit_base_16", 85.8),
        ("vit_base_8", 85.8),
        ("vit_small_14", 22.1),
        ("vit_base_14", 86.6),
        ("vit_large_14", 304.4),
        ("vit_large_14_reg", 304.4),
    ],
)
def test_published_sizes(name: str, millions: float):
    with torch.device("meta"):
        network = VisionTransformer(vit_layout(name))
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.1)


def test_every_name_has_a_layout_and_can_be_a_teacher():
    for name in VIT_NAMES:
        layout = vit_layout(name)
        assert layout.width % layout.heads == 0
        assert teacher_config(name=name).name == name
    assert (vit_layout("vit_small_8").grid, vit_layout("vit_base_14").grid) == (28, 37)
    assert vit_layout("vit_base_14_reg").registers == 4


def test_attention_equals_torchs_own_and_a_loop():
    torch.manual_seed(0)
    ours = SelfAttention(24, 3).double()
    torchs = torch.nn.MultiheadAttention(24, 3, batch_first=True).double()
    torchs.in_proj_weight.data, torchs.in_proj_bias.data = ours.qkv.weight.data, ours.qkv.bias.data
    torchs.out_proj.load_state_dict(ours.proj.state_dict())
    x = torch.randn(2, 7, 24, dtype=torch.float64)
    with torch.no_grad():
        got = ours(x)
        torch.testing.assert_close(got, torchs(x, x, x, need_weights=False)[0])

        rows = []
        for image in x:
            query, key, value = (image @ ours.qkv.weight.T + ours.qkv.bias).split(24, dim=1)
            heads = []
            for head in range(3):
                part = slice(8 * head, 8 * head + 8)
                weights = [[torch.dot(q, k) / math.sqrt(8) for k in key[:, part]] for q in query[:, part]]
                shares = torch.tensor(weights, dtype=torch.float64).softmax(dim=1)
                heads.append(shares @ value[:, part])
            rows.append(torch.cat(heads, dim=1) @ ours.proj.weight.T + ours.proj.bias)
        torch.testing.assert_close(got, torch.stack(rows))


@pytest.mark.parametrize("layout", [SMALL, SMALL_V2], ids=["dino", "dinov2"])
def test_the_network_is_what_the_papers_describe(layout: ViTLayout):
    network = _network(layout).double()
    p, images = network.state_dict(), torch.randn(1, 3, layout.patch * layout.grid, layout.patch * layout.grid).double()
    patches = F.unfold(images, layout.patch, stride=layout.patch)[0].T
    tokens = patches @ p["patch_embed.proj.weight"].flatten(1).T + p["patch_embed.proj.bias"]
    x = torch.cat((p["cls_token"][0], tokens)) + p["pos_embed"][0]
    if layout.registers:
        x = torch.cat((x[:1], p["register_tokens"][0], x[1:]))
    for block in network.blocks:
        for branch, norm, scale in (("attn", block.norm1, block.ls1), ("mlp", block.norm2, block.ls2)):
            inside = F.layer_norm(x, (layout.width,), norm.weight, norm.bias, 1e-6)
            if branch == "attn":
                inside = block.attn(inside[None])[0]
            else:
                inside = inside @ block.mlp.fc1.weight.T + block.mlp.fc1.bias
                inside = inside * 0.5 * (1 + torch.erf(inside / math.sqrt(2)))
                inside = inside @ block.mlp.fc2.weight.T + block.mlp.fc2.bias
            x = x + (inside * scale.gamma if layout.layer_scale else inside)
    last = x[1 + layout.registers :]
    wanted = F.layer_norm(last, (layout.width,), network.norm.weight, network.norm.bias, 1e-6)
    with torch.no_grad():
        torch.testing.assert_close(network(images)[0].flatten(1).T, wanted)
        network.last_norm = False
        torch.testing.assert_close(network(images)[0].flatten(1).T, last)


def test_where_the_cells_lie():
    """The first layer alone reads pixels patch by patch: an impulse shows up in the cell whose patch it lies in."""
    network = _network()
    assert (network.stride, network.origin_px, network.num_features) == (8, 3.5, 32)
    image = torch.zeros(1, 3, 48, 64)
    with torch.no_grad():
        flat = network.patch_embed(image)
        for row, column in ((0, 0), (7, 8), (31, 40), (47, 63)):
            image.zero_()[0, :, row, column] = 1.0
            changed = (network.patch_embed(image) - flat).abs().sum(dim=1)[0] > 1e-6
            assert changed.nonzero().tolist() == [[row // 8, column // 8]]
            centre = network.origin_px + 8 * (column // 8)
            assert abs(column - centre) <= 3.5


def test_positions_of_the_pretraining_grid_are_taken_as_they_are():
    network = _network()
    assert torch.equal(network.patch_positions(6, 6), network.pos_embed[:, 1:])


def _cubic(values: Tensor, at: float) -> Tensor:
    """torch's bicubic kernel (a = -0.75) along the first axis, the border repeated."""
    base = math.floor(at)
    total = torch.zeros_like(values[0])
    for index in range(base - 1, base + 3):
        d = abs(at - index)
        weight = 1.25 * d**3 - 2.25 * d**2 + 1 if d <= 1 else -0.75 * (d**3 - 5 * d**2 + 8 * d - 4)
        total = total + weight * values[min(max(index, 0), len(values) - 1)]
    return total


def test_positions_of_other_grids():
    """Bicubic about half-cell centres; the published offset of 0.1 scales positions by (n + 0.1) / grid."""
    network = _network()
    columns = torch.randn(6, 32, generator=torch.Generator().manual_seed(0))
    network.pos_embed.data[:, 1:] = columns.repeat_interleave(6, dim=0)  # the same along each row
    rows = network.patch_positions(12, 20).reshape(12, 20, 32)
    wanted = torch.stack([_cubic(columns, (i + 0.5) * 6 / 12.1 - 0.5) for i in range(12)])
    torch.testing.assert_close(rows, wanted[:, None].expand(-1, 20, -1), rtol=1e-4, atol=1e-4)
    plain = _network(SMALL_V2)
    assert plain.layout.grid_offset == 0.1
    grid = plain.pos_embed[:, 1:].transpose(1, 2).unflatten(2, (5, 5))
    wanted = F.interpolate(grid, scale_factor=((7 + 0.1) / 5, (3 + 0.1) / 5), mode="bicubic")
    torch.testing.assert_close(plain.patch_positions(7, 3), wanted.flatten(2).transpose(1, 2))


def test_networks_with_registers_were_published_with_exact_grids():
    layout = vit_layout("vit_small_14_reg")
    assert (layout.grid_offset, layout.antialias) == (0.0, True)
    assert (vit_layout("vit_small_14").grid_offset, vit_layout("vit_small_14").antialias) == (0.1, False)
    network = _network(ViTLayout(width=32, depth=1, heads=4, patch=14, grid=5, grid_offset=0.0, antialias=True))
    grid = network.pos_embed[:, 1:].transpose(1, 2).unflatten(2, (5, 5))
    wanted = F.interpolate(grid, size=(3, 4), mode="bicubic", antialias=True)
    torch.testing.assert_close(network.patch_positions(3, 4), wanted.flatten(2).transpose(1, 2))


def test_odd_sizes_are_padded_below_and_on_the_right():
    network = _network()
    images = torch.randn(2, 3, 41, 60)
    padded = torch.zeros(2, 3, 48, 64)
    padded[..., :41, :60] = images
    with torch.no_grad():
        assert torch.equal(network(images), network(padded))
        assert network(images).shape == (2, 32, 6, 8)


@pytest.mark.parametrize("form", ["backbone file", "full checkpoint"])
@pytest.mark.parametrize("family", ["dino", "dinov2"])
def test_published_files_fill_every_tensor(tmp_path: Path, family: str, form: str):
    layout = SMALL if family == "dino" else SMALL_V2
    extra = {} if family == "dino" else {"register_tokens": (1, 3, 32), "mask_token": (1, 32)}
    state = published(layout, extra)
    content: dict[str, object] = dict(state)
    if form == "full checkpoint":
        head = "head.mlp.0.weight" if family == "dino" else "dino_head.mlp.0.weight"
        prefix = "module.backbone." if family == "dino" else "backbone."
        content = {
            "teacher": {prefix + name: value for name, value in state.items()} | {head: torch.zeros(2)},
            "student": {prefix + name: torch.zeros_like(value) for name, value in state.items()},
        }
    torch.save(content, tmp_path / "weights.pth")
    network = _network(layout)
    report = load_vit_weights(network, family, str(tmp_path / "weights.pth"), min_match=1.0)
    assert (report.share, report.unused) == (1, ())
    for name, value in network.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_a_file_of_another_grid_brings_its_positions(tmp_path: Path):
    other = ViTLayout(width=32, depth=2, heads=4, patch=8, grid=9)
    state = published(other, {})
    torch.save(state, tmp_path / "weights.pth")
    network = _network()
    assert load_vit_weights(network, "dino", str(tmp_path / "weights.pth"), min_match=1.0).share == 1
    assert torch.equal(network.patch_positions(9, 9), state["pos_embed"][:, 1:])


def test_what_does_not_fit_is_refused(tmp_path: Path):
    torch.save(published(SMALL_V2, {"register_tokens": (1, 3, 32)}), tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"only .*% of the network's tensors match"):
        load_vit_weights(_network(), "dino", str(tmp_path / "weights.pth"), min_match=1.0)
    with pytest.raises(ValueError, match="unknown format 'moco_v2': expected one of dino, slidr_images, dinov2"):
        load_vit_weights(_network(), "moco_v2", str(tmp_path / "weights.pth"), min_match=0.9)


def test_a_transformer_as_teacher():
    teacher = teacher_config(name="vit_small_16", upscale=2).build()
    assert (teacher.num_features, teacher.stride, teacher.origin_px) == (384, 8, 3.5)
    images = torch.randint(0, 256, (1, 3, 24, 40), dtype=torch.uint8)
    assert teacher(images).shape == (1, 384, 3, 5)
    assert not teacher(images).requires_grad
    assert not any(module.training for module in teacher.modules())
