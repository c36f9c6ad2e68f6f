"""ResNet-18/50: names, sizes, and that dilation reads the same network more densely."""

import copy

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from models.image.resnet import ResNet, checkpointed


def _in_use(network: ResNet) -> ResNet:
    """Random BatchNorm statistics, so that nothing is the identity by accident."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
            module.weight.data.uniform_(0.3, 0.7, generator=generator)
            module.bias.data.normal_(0, 0.1, generator=generator)
    return network.eval()


@pytest.mark.parametrize(("name", "millions"), [("resnet18", 11_176_512), ("resnet50", 23_508_032)])
@pytest.mark.parametrize("dilated", [False, True])
def test_parameter_counts(name: str, millions: int, dilated: bool):
    # torchvision's counts less the classifier (513,000 and 2,049,000).
    with torch.device("meta"):
        assert sum(p.numel() for p in ResNet(name, dilated=dilated).parameters()) == millions


def test_names_are_torchvisions():
    with torch.device("meta"):
        names = list(ResNet("resnet50").state_dict())
    assert len(names) == 318  # 53 convolutions, 53 BatchNorms of five tensors
    for name in (
        "conv1.weight",
        "bn1.running_var",
        "layer1.0.conv3.weight",
        "layer1.0.downsample.0.weight",
        "layer1.0.downsample.1.running_mean",
        "layer2.3.bn2.num_batches_tracked",
        "layer4.2.bn3.bias",
    ):
        assert name in names
    with torch.device("meta"):
        names = list(ResNet("resnet18").state_dict())
    assert "layer1.0.downsample.0.weight" not in names
    assert "layer2.0.downsample.0.weight" in names
    assert len(names) == 120


@pytest.mark.parametrize(("name", "giga"), [("resnet18", 1.814), ("resnet50", 4.087)])
def test_multiply_adds_at_224(name: str, giga: float):
    # torchvision's figures less the classifier's 0.5 and 2 million.
    with torch.device("meta"):
        network, image = ResNet(name).eval(), torch.empty(1, 3, 224, 224)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(image)
    assert counter.get_total_flops() / 2e9 == pytest.approx(giga, abs=0.002)


def test_multiply_adds_in_the_module_text():
    counts = []
    for dilated in (False, True):
        with torch.device("meta"):
            network, image = ResNet("resnet50", dilated=dilated).eval(), torch.empty(1, 3, 224, 416)
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                network(image)
        counts.append(counter.get_total_flops() / 2e9)
    assert counts == pytest.approx([7.6, 137], rel=0.02)


@pytest.mark.parametrize("size", [(64, 96), (70, 90)])
def test_shapes(size: tuple[int, int]):
    images = torch.zeros(2, 3, *size)
    for dilated, stride in ((True, 4), (False, 32)):
        network = ResNet("resnet18", dilated=dilated).eval()
        assert network.stride == stride
        wanted = (2, 512, -(-size[0] // stride), -(-size[1] // stride))
        assert network(images).shape == wanted


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_dilated_network_is_the_strided_one_read_more_densely(name: str):
    torch.manual_seed(0)
    dilated, strided = ResNet(name, dilated=True), ResNet(name)
    _in_use(dilated)
    strided.load_state_dict(dilated.state_dict())
    strided.eval()
    images = torch.randn(1, 3, 128, 96)
    with torch.no_grad():
        dense, sparse = dilated(images), strided(images)
    assert sparse.std() > 0.01
    torch.testing.assert_close(dense[:, :, ::8, ::8], sparse, rtol=1e-3, atol=1e-4 * float(sparse.abs().max()))


def test_cell_0_is_centred_on_pixel_0():
    # With mirrored kernels, a map centred on pixels 4i of an image symmetric about pixel 80 is symmetric about cell 20.
    network = ResNet("resnet18", dilated=True).eval()
    for parameter in network.parameters():
        if parameter.dim() == 4:
            parameter.data = (parameter.data + parameter.data.flip(-1)) / 2
    image = torch.randn(1, 3, 32, 161)
    image[..., :80] = image[..., 81:].flip(-1)
    with torch.no_grad():
        cells = network(image)
    assert network.origin_px == 0
    torch.testing.assert_close(cells, cells.flip(-1), rtol=1e-3, atol=1e-3 * float(cells.abs().max()))


def test_activation_checkpointing_changes_neither_gradient_nor_statistics():
    torch.manual_seed(0)
    plain = ResNet("resnet18").train()
    saving = copy.deepcopy(plain)
    saving.checkpoint_activations = True
    images = torch.randn(2, 3, 64, 64)
    for network in (plain, saving):
        network(images).square().mean().backward()
    for (name, a), b in zip(plain.named_parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name)
    for (name, a), b in zip(plain.named_buffers(), saving.buffers(), strict=True):
        assert torch.equal(a, b), name


def test_checkpointing_keeps_less():
    block = ResNet("resnet50").layer1[1].train()
    x = torch.randn(1, 256, 16, 16, requires_grad=True)

    def saved(function) -> int:
        total = 0

        def note(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal total
            total += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
            function(x)
        return total

    assert saved(lambda t: checkpointed(block, t)) <= x.numel() < saved(block)
