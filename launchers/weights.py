"""`tandem weights`: which published image networks load here, and what a weight file is."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from common.printable import say
from launchers.cli import FAILURE, guarded
from launchers.options.weights import parser
from models.image.published import HEADER, PUBLISHED, PublishedWeights, markdown, rows

if TYPE_CHECKING:  # which needs torch
    from models.layouts.back_in import Fit

_CHUNK = 1 << 20


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb; 1 if a file fills no network or is not what was published under its name."""
    options = parser().parse_args(argv)
    if options.what == "check":
        return _check(Path(options.file))
    if options.markdown:
        print(markdown(), end="")
    else:
        _print_list()
    return 0


def _print_list() -> None:
    from rich.table import Table

    from launchers.runs.terminal import terminal

    table = Table(*(title.strip("`") for title in HEADER))
    for row in rows():
        table.add_row(*row)
    # Where the output is no terminal nothing is folded: names can be searched and copied.
    terminal(width=260).print(table)
    print("where to get them:")
    for one in PUBLISHED:
        print(f"  {one.file:<34} {one.address}")


def _check(path: Path) -> int:
    from common.nearby import nearest
    from configs.load import ArgumentError, ConfigError
    from models.image.recognise import fits
    from models.weight_files import read_weight_content
    from models.weights import own_weights_file

    if not path.exists():
        beside = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
        raise ArgumentError(f"{path}: no such file{nearest(path.name, beside)}")
    try:
        file = own_weights_file(path) if path.is_dir() else path
        read = read_weight_content(file)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    content = read.content
    say(f"{file}: {file.stat().st_size / 1e6:,.0f} MB, {_summary(content)}")
    if read.ignored:
        say(f"  {read.not_used()}")
    published, agrees, verdict = _published(file)
    if published is not None:
        print(f"  {verdict}")
        print(f"  {published.file}: {published.project}, {published.learnt}; licence {published.licence}")
    found = fits(content, prefer=published.file_format if published is not None else "")
    if not found and (layout := _layout_of_points(file, content)) is not None:
        say(f"  a 3D network in layout {layout}; to measure it:")
        say(f"  tandem evaluate --weights {path} --layout {layout} --out OUT CONFIG data.shards=SET")
        return 0
    if not found and (points := _fitting_points(content)):
        return _say_points(path, content, points)
    if not found:
        print(
            "  fills no image network that Tandem has (`tandem weights list` names those it has), and is no 3D network"
        )
        return FAILURE
    for fit in (fit for fit in found if fit.merit == found[0].merit):
        matched, total = len(fit.report.matched), len(fit.report.matched) + len(fit.report.missing)
        say(
            f"  method.teacher.name={fit.network} method.teacher.weights={fit.file_format}"
            f"{'' if fit.file_format == 'imagenet' else f':{path}'}"
            f"    {matched} of {total} tensors; of the file {len(fit.report.unused)} unused, "
            f"{len(fit.report.dropped)} left out by rule"
        )
    if any(fit.file_format.startswith("openmmlab") for fit in found if fit.merit == found[0].merit):
        print(
            "  openmmlab_bgr was fed BGR from 0 to 255 less the mean, openmmlab_rgb what torchvision's networks are; "
            "which of them, its config says (to_rgb), not the file"
        )
    broken = found[0].broken()
    if broken:
        say(f"  not finite: {', '.join(broken[:5])}: the file is damaged or diverged")
    return 0 if agrees and not broken else FAILURE


def _layout_of_points(file: Path, content: Mapping[str, object]) -> str | None:
    """How a file of a 3D network names its tensors; None where it holds none that is known here."""
    from models.weights import read_backbone_metadata, slidr_points

    if "conv0p1s1.kernel" in slidr_points(content):
        return "slidr"
    try:
        read_backbone_metadata(file)
    except ValueError:
        return None
    return "tandem"


def _fitting_points(content: Mapping[str, object]) -> list[Fit]:
    """The 3D networks that a file in another project's layout fills."""
    from models.layouts.back_in import fits

    return fits(content)


def _say_points(path: Path, content: Mapping[str, object], points: list[Fit]) -> int:
    """What a file of a 3D network is, and how it is used."""
    from models.layouts.back_in import stated
    from models.layouts.known import LAYOUTS

    said = stated(content)
    for fit in points:
        say(f"  a 3D network in the layout of {LAYOUTS[fit.layout].title}:")
        say(
            f"  {fit.family}, preset {fit.preset}, {fit.in_channels} features of a voxel; {len(fit.report.matched)} "
            f"tensors{f'; {fit.taken}' if str(fit.taken) else ''}"
        )
    if said:
        say(f"  fed: {said.get('input', 'not stated')}")
    else:
        say("  what it is fed is not stated; --like CONFIG says it by a config with the same network and voxels:")
    layout = points[0].layout
    like = "" if said else " --like CONFIG"
    say(f"  tandem evaluate --weights {path} --layout {layout}{like} --out OUT PROTOCOLS data.shards=SET")
    say(f"  tandem finetune CONFIG init={layout}:{path}")
    return 0


def _summary(content: Mapping[str, object]) -> str:
    """What lies in a file: tensors by the first part of their names, and other keys."""
    from torch import Tensor

    tensors: dict[str, int] = {}
    for key, value in content.items():
        inner = value if isinstance(value, Mapping) else {key: value}
        outer = f"{key}: " if isinstance(value, Mapping) else ""
        for name, one in inner.items():
            if isinstance(one, Tensor):
                part = outer + ".".join(str(name).split(".")[: 2 if str(name).startswith("module.") else 1])
                tensors[part] = tensors.get(part, 0) + 1
    if not tensors:
        return "no tensors"
    parts = [f"{part} ({count})" for part, count in tensors.items()]
    more = f", ... {len(parts) - 8} more" if len(parts) > 8 else ""
    return f"{sum(tensors.values())} tensors in {', '.join(parts[:8])}{more}"


def _published(file: Path) -> tuple[PublishedWeights | None, bool, str]:
    """The table's entry for a file, by its checksum or else by its name; whether it may be that; what speaks for it."""
    digests = {"md5": hashlib.md5(usedforsecurity=False), "sha256": hashlib.sha256()}
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            for digest in digests.values():
                digest.update(chunk)
    named = None
    for one in PUBLISHED:
        kind, _, digits = one.checksum.partition(" ")
        if digits and digests[kind].hexdigest().startswith(digits):
            return one, True, f"the published file: its {kind} begins with {digits}, as the publisher states"
        if one.file == file.name:
            named = one
    if named is None:
        return None, True, ""
    if not named.checksum:
        return named, True, "has the name of a published file; the publisher states no checksum to compare with"
    kind, _, digits = named.checksum.partition(" ")
    got = digests[kind].hexdigest()[: len(digits)]
    differs = f"{kind} begins with {got}, published: {digits}. The file is damaged or another one: download it again"
    return named, False, f"has the name of a published file and is not it: {differs}"


if __name__ == "__main__":
    sys.exit(guarded(main, sys.argv[1:]))
