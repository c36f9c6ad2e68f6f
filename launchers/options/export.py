"""`tandem export`: a trained network as a file for other code, proven by reading it back.

    tandem export RUN_OR_CHECKPOINT OUT.safetensors
    tandem export RUN_OR_CHECKPOINT OUT.pt --format slidr
    tandem export RUN_OR_CHECKPOINT OUT.pth --format torchvision

Formats:
    tandem       the 3D network; safetensors, metadata says how to build it and how its input was made.
    slidr        the 3D network in the layout of SLidR's published checkpoints (MinkowskiEngine names, with the linear
                 point head as `final`), written by torch.save; loads with weights_only=True. Its first layer is
                 scaled for intensities of 0 to 255, which SLidR's code feeds on nuScenes.
    torchvision  the ResNet of the image network with torchvision's names, without classifier or a decoder of ours,
                 likewise. `torchvision.models.resnet50(weights=None).load_state_dict(..., strict=False)` loads it (its
                 `fc` stays as it was), and so does our own `weights: torchvision:<path>`. Images are RGB from 0 to 1,
                 normalised as torchvision's weights expect.
    mmdet3d      voxelnet, pillars, res16unet (minkunet34, minkunet18) and spvcnn, for `load_from` and `init_cfg` of
                 mmdetection3d 1.4.
    openpcdet    voxelnet, pillars, pointnet2 (pointrcnn) and whole detectors (second, pointpillars, centerpoint), for
                 `--pretrained_model` of OpenPCDet.
    pointcept    res16unet (spunet34 for SpUNet-v1m1; res16unet34c, res16unet18 for MinkUNet) and spvcnn, for
                 Pointcept's `weight`.
    spconv       res16unet of any preset, voxelnet: kernels as spconv 2 has them, for networks built by hand.
    torchsparse  res16unet (minkunet34, minkunet18) and spvcnn, as torchsparse's own examples, SegContrast's family,
                 BEVLab and PCSeg have them.
    onnx         a dense network: the 2D part of voxelnet and pillars (beside it, as JSON and safetensors, the sparse
                 operations before it), or one of images (--part image_backbone or teacher). Any batch; any size for 2D
                 parts and ResNets. Needs the extra [onnx]; proven in onnxruntime.

mmdet3d to torchsparse are layouts of other projects: kernels turned to their order of axes, names and wrapping as their
loaders take them. Beside OUT lies OUT.md, with the lines for the config there and what to feed. Each such file is
proven: the network is rebuilt from it on spconv (pip install spconv==2.3.8; no GPU) and plain torch, and has to give
the run's features.

Examples:
    tandem export runs/slidr_nuscenes slidr_nuscenes.pt --format slidr
    tandem export runs/slidr_voxelnet_nuscenes second.pth --format openpcdet
"""

from __future__ import annotations

import argparse

from launchers.cli import verb_parser
from launchers.options.common import completed, offer_runs, positive_number

SUFFIXES = {
    "tandem": ".safetensors",
    "slidr": ".pt",
    "torchvision": ".pth",
    "mmdet3d": ".pth",
    "openpcdet": ".pth",
    "pointcept": ".pth",
    "spconv": ".pt",
    "torchsparse": ".pt",
    "onnx": ".onnx",
}
"""Format -> how the name of its file ends."""
ONNX = "onnx"
NO_POINTS = ("torchvision", ONNX)
"""Those that hold no whole 3D network."""


def parser() -> argparse.ArgumentParser:
    """Options of the verb."""
    p = verb_parser("tandem export", __doc__)
    source = p.add_argument(
        "source",
        metavar="RUN_OR_CHECKPOINT",
        help="folder of a run (its newest intact checkpoint) or of one checkpoint",
    )
    completed(source, offer_runs)
    p.add_argument("out", metavar="OUT", help="file to write")
    p.add_argument("--format", choices=sorted(SUFFIXES), default="tandem", help="see above (default: %(default)s)")
    p.add_argument(
        "--intensity-scale",
        type=positive_number,
        metavar="MAX",
        help="of layouts of 3D networks: the largest intensity that the other code feeds, where it is 1 here, e.g. 255 "
        "on nuScenes; goes into the first layer (default: 1; slidr: 255)",
    )
    p.add_argument(
        "--part",
        choices=("backbone", "image_backbone", "teacher"),
        help="of onnx: which network of the run (default: the first of these that it has)",
    )
    p.add_argument(
        "--image-size",
        type=int,
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="of onnx: pixels that a network of images is fed where its file cannot leave them open (default: 224 224)",
    )
    p.add_argument("--force", action="store_true", help="replace OUT if it exists")
    return p
