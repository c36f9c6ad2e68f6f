"""Which packages Tandem asks for, which of them are here, and the line that installs the others. No torch."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launchers.machine.findings import Finding
from launchers.machine.limits import has_gpu

DISTRIBUTION = "tandem-pretrain"

_FOR_GPUS = frozenset({"cu120", "cu126", "triton"})
_FOR_DEVELOPERS = frozenset({"dev", "docs", "test"})
_USES = {
    "cu120": "sparse convolution by spconv, NVIDIA GPUs, CUDA 12.0",
    "cu126": "sparse convolution by spconv, NVIDIA GPUs, CUDA 12.6",
    "triton": "sparse convolution by spconv-triton, NVIDIA GPUs from Ampere on and AMD's",
    "s3": "sets behind s3:// URLs",
    "gs": "sets behind gs:// URLs",
    "logs": "recordings: ROS bags, MCAP, PCD, LAS",
    "rerun": "tandem inspect --rerun",
    "foxglove": "tandem inspect --foxglove",
    "video": "recordings with videos (H.264, H.265, VP9, AV1)",
    "onnx": "tandem export to ONNX",
}
"""What an extra is for; one that is not named here is listed without."""


@dataclass(frozen=True)
class Wanted:
    """A package that is asked for.

    Attributes:
        name: of the package.
        versions: that will do, "" for any.
        found: the version that is here; None: it is missing.
        fits: whether it is here in such a version.
    """

    name: str
    versions: str
    found: str | None
    fits: bool


def wanted(extra: str = "", requirements: list[str] | None = None) -> list[Wanted]:
    """What Tandem needs on this machine, or what an extra adds to it.

    Args:
        extra: name of one; "": what Tandem needs in any case.
        requirements: as a package's metadata states them; None: Tandem's.

    Raises:
        PackageNotFoundError: Tandem is not installed, so that nothing states them.
    """
    from packaging.requirements import Requirement

    stated = importlib.metadata.requires(DISTRIBUTION) or [] if requirements is None else requirements
    result = []
    for requirement in map(Requirement, stated):
        marker = requirement.marker
        always = marker is None or marker.evaluate({"extra": ""})
        if always if not extra else not always and marker is not None and marker.evaluate({"extra": extra}):
            found = _version(requirement.name)
            fits = found is not None and requirement.specifier.contains(found, prereleases=True)
            result.append(Wanted(requirement.name, str(requirement.specifier), found, fits))
    return result


def extras() -> list[str]:
    """The extras that change what Tandem can do."""
    stated = importlib.metadata.metadata(DISTRIBUTION).get_all("Provides-Extra") or []
    return [str(name) for name in stated if name not in _FOR_DEVELOPERS]


def install_line(extra: str = "") -> str:
    """The command that installs Tandem with an extra: from the checkout if the code that runs is one."""
    suffix = f"[{extra}]" if extra else ""
    root = Path(__file__).resolve().parents[2]
    return (
        f"pip install -e '.{suffix}'"
        if (root / "pyproject.toml").is_file()
        else f"pip install '{DISTRIBUTION}{suffix}'"
    )


def package_findings() -> Iterator[Finding]:
    """Versions, what is missing, and the optional extras."""
    section = "software"
    yield Finding(section=section, name="tandem", value=_own_version())
    yield Finding(
        section=section, name="python", value=f"{platform.python_version()} ({platform.python_implementation()})"
    )
    try:
        needed = wanted()
    except ModuleNotFoundError as error:
        value = f"{error.name} is not installed, without which versions cannot be compared"
        yield Finding(section=section, name="packages", value=value, state="broken", remedy=install_line())
        return
    except importlib.metadata.PackageNotFoundError:
        value = f"{DISTRIBUTION} is not installed, so nothing states what it needs"
        yield Finding(section=section, name="packages", value=value, state="note", remedy=install_line())
        return
    wrong = [one for one in needed if not one.fits]
    value = f"{len(needed)} needed, all here" if not wrong else "; ".join(map(_told, wrong))
    yield Finding(
        section=section,
        name="packages",
        value=value,
        state="broken" if wrong else "fine",
        remedy=install_line() if wrong else "",
    )
    for extra in extras():
        yield _extra_finding(extra, wanted(extra))


def _extra_finding(extra: str, parts: list[Wanted]) -> Finding:
    use = _USES.get(extra, "")
    lacking = [one for one in parts if not one.fits]
    here = ", ".join(f"{one.name} {one.found}" for one in parts if one.fits)
    value = here if not lacking else f"not installed ({'; '.join(map(_told, lacking))})"
    return Finding(
        section="extras",
        name=f"[{extra}]",
        value=f"{use}: {value}" if use else value,
        state="fine" if not lacking else "note",
        remedy=install_line(extra) if lacking and (extra not in _FOR_GPUS or has_gpu()) else "",
    )


def _own_version() -> str:
    try:
        from launchers.runs.provenance import version_text
    except ModuleNotFoundError as error:  # the packages' own finding says what is missing
        return f"not known without {error.name}"
    return version_text().partition("\n")[0].removeprefix("tandem ")


def _told(one: Wanted) -> str:
    if one.found is None:
        return f"{one.name} is missing"
    return f"{one.name} {one.found}, expected {one.versions}"


def _version(name: str) -> str | None:
    try:
        found: Any = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
    return None if found is None else str(found)
