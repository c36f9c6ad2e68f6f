"""README and docs name files, anchors, modules, names and settings; each of them must exist. Nothing is fetched.

What is checked: links and anchors; paths of the repository anywhere in the text (`data/order.py`, braces expanded); in
backticks also names in files (`engine/distributed.py: slurm_port`), modules and what is in them (`data.order`), and
settings whose section is named like a package (`data.voxel.kind=...`). Placeholders (`<name>`, `*`) are left alone.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.readme_picture import architecture
from configs.schema import EvaluateConfig, PretrainConfig

ROOT = Path(__file__).parents[1]
PACKAGES = ("common", "data", "models", "engine", "configs", "launchers", "benchmarks")
FOLDERS = (*PACKAGES, "docs", "slurm", "tests", "examples", ".github", ".ci")
PAGES = sorted(
    path.relative_to(ROOT)
    for path in (
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "slurm/README.md")),
        *(ROOT / "docs").rglob("*.md"),
    )
    if path.is_file()
)
PAST = {Path("CHANGELOG.md")}
"""Speaks of files as they were at the time."""
WRITTEN = {"report.md"}
"""Written by a command, so no page of ours."""

_FENCE = re.compile(r"^```.*?^```", re.M | re.S)
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")
_IMAGE = re.compile(r"!\[([^\]]*)\]\(")
_CODE = re.compile(r"`([^`\n]+(?:\n[^`\n]+)?)`")
_PATH = re.compile(
    rf"(?<![\w./-])(?:{'|'.join(map(re.escape, FOLDERS))})/[\w./{{}},-]*(?:\.(?:py|md|ya?ml|txt|sh|jpg|png|svg)\b|/)"
)
_IN_FILE = re.compile(r"^([\w./-]+\.(?:py|sh)): ([\w, .]+)$")
_MODULE_RUN = re.compile(r"(?:python3? -m|-m) ((?:launchers|benchmarks)\.[\w.]+)")
_IMPORT = re.compile(rf"^from ((?:{'|'.join(PACKAGES)})(?:\.\w+)*) import ([\w, ]+)", re.M)
_DOTTED = re.compile(rf"^(?:{'|'.join(PACKAGES)})(?:\.[a-zA-Z_]\w*)+$")


def text_of(page: Path) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def expanded(path: str) -> list[str]:
    """Braces as a shell expands them."""
    parts = re.split(r"\{([^}]*)\}", path)
    choices = [part.split(",") if i % 2 else [part] for i, part in enumerate(parts)]
    return ["".join(pick) for pick in itertools.product(*choices)]


@functools.cache
def anchors(page: Path) -> frozenset[str]:
    """Ids of those of a page's headings for which GitHub and MkDocs agree."""
    titles = re.findall(r"^#+ (.+?)\s*$", _FENCE.sub("", page.read_text(encoding="utf-8")), re.M)
    plain = [
        re.sub(r"[^\w\s-]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title)).strip().lower() for title in titles
    ]
    return frozenset({name.replace(" ", "-") for name in plain} & {re.sub(r"[-\s]+", "-", name) for name in plain})


def broken_links(page: Path) -> Iterator[str]:
    for words in _IMAGE.findall(text_of(page)):
        if len(words.split()) < 4:
            yield f"image {words!r}: expected what it shows, in words"
    for groups in _LINK.findall(_FENCE.sub("", text_of(page))):
        target = next(filter(None, groups))
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        if not file.exists():
            yield f"link to {target}: no such file"
        elif anchor and anchor not in anchors(file):
            yield f"link to {target}: no such heading; there are {sorted(anchors(file))}"


def broken_paths(page: Path) -> Iterator[str]:
    text = text_of(page)
    for found in _PATH.finditer(text):
        after = text[found.end() : found.end() + 1]
        if after and after in "<*$[":  # a placeholder follows
            continue
        for path in expanded(found.group()):
            if not (ROOT / path).exists() and "..." not in path:
                yield f"{path}: no such file or folder"
    for code in _CODE.findall(text):
        token = " ".join(code.split())
        in_file = _IN_FILE.match(token)
        if in_file and (ROOT / in_file[1]).is_file():
            source = (ROOT / in_file[1]).read_text(encoding="utf-8")
            for name in re.split(r", ", in_file[2]):
                if not re.search(rf"\b{re.escape(name.split('.')[-1])}\b", source):
                    yield f"{in_file[1]}: has no {name}"
        elif re.fullmatch(r"[\w/-]+\.md", token) and token not in WRITTEN:
            bases = (ROOT, ROOT / "docs", (ROOT / page).parent)
            if not any((base / token).exists() for base in bases):
                yield f"{token}: no such page"


def broken_names(page: Path) -> Iterator[str]:
    text = text_of(page)
    for module in _MODULE_RUN.findall(text):
        if not exists(module.rstrip(".")):
            yield f"python -m {module}: no such module"
    for module, names in _IMPORT.findall(text):
        for name in names.split(","):
            if not exists(f"{module}.{name.split()[0]}"):
                yield f"from {module} import {name.strip()}: no such name"
    for code in _CODE.findall(text):
        for token in " ".join(code.split()).split():
            name = token.partition("=")[0].rstrip(",:()")
            if _DOTTED.match(name) and not (exists(name) or is_setting(name)):
                yield f"{name}: neither a module, nor a name in one, nor a setting"


def exists(name: str) -> bool:
    """Whether a dotted name is a module, or a name that stands in one."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        file = ROOT.joinpath(*parts[:cut])
        source = file.with_suffix(".py")
        if source.is_file():
            code = source.read_text(encoding="utf-8")
            return all(re.search(rf"\b{re.escape(part)}\b", code) for part in parts[cut:])
        if file.is_dir():
            return cut == len(parts)
    return False


def is_setting(name: str) -> bool:
    """Whether a dotted name is a setting of `pretrain` or `evaluate`."""
    return any(_is_field(config, name.split(".")) for config in (PretrainConfig, EvaluateConfig))


def _is_field(config: type, parts: list[str]) -> bool:
    hints = typing.get_type_hints(config)
    names = {field.name for field in dataclasses.fields(config)}
    if parts[0] not in names:
        return False
    inner = [t for t in (hints[parts[0]], *typing.get_args(hints[parts[0]])) if dataclasses.is_dataclass(t)]
    if len(parts) == 1 or not inner:
        return True
    return any(_is_field(typing.cast(type, t), parts[1:]) for t in inner)


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_what_a_page_names_is_there(page):
    found = list(broken_links(page))
    if page not in PAST:
        found += [*broken_paths(page), *broken_names(page)]
    assert not found, f"{page}:\n" + "\n".join(dict.fromkeys(found))


def test_every_page_of_docs_is_reached_from_another():
    linked = {
        ((ROOT / page).parent / next(filter(None, groups)).partition("#")[0]).resolve()
        for page in PAGES
        for groups in _LINK.findall(text_of(page))
    }
    named = {
        ROOT / "docs" / token for page in PAGES for token in re.findall(r"`(?:docs/)?([\w/-]+\.md)`", text_of(page))
    }
    lost = [str(page) for page in PAGES if page.parts[0] == "docs" and ROOT / page not in linked | named]
    assert not lost


def test_the_tour_of_contributing_leads_from_file_to_file():
    tour = text_of(Path("CONTRIBUTING.md")).partition("## The tour")[2].partition("\n## ")[0]
    walks = [
        re.findall(r"`([\w./]+)(?:: ([\w.]+))?`", row) for row in re.findall(r"^\| \w.*`README\.md`.*$", tour, re.M)
    ]
    assert len(walks) == 3
    for walk in walks:
        assert 2 < len(walk) <= 4, walk
        for (page, _), (path, name) in itertools.pairwise(walk):
            text = text_of(Path(page))
            assert any(said in text for said in (path, f"{Path(path).parent}/", _module(path), _module(path, 1))), (
                f"{page} does not lead to {path}"
            )
            for part in name.split(".") if name else ():
                assert re.search(rf"^ *(?:class|def) {part}\b", text_of(Path(path)), re.M), f"{path} has no {name}"


def _module(path: str, cut: int = 0) -> str:
    """How an import statement names a file: `from a.b.c import` or, cut, `from a.b import c`."""
    parts = path.removesuffix(".py").split("/")
    return ".".join(parts) if not cut else f"from {'.'.join(parts[:-cut])} import {parts[-1]}"


def test_the_drawing_of_readme_is_what_its_script_draws():
    drawn = (ROOT / "docs/images/architecture.svg").read_text(encoding="utf-8")
    assert drawn == architecture(), "python -m benchmarks.readme_picture docs/images/architecture.svg"
    assert all((ROOT / name).is_dir() for name in re.findall(r">(\w+)/</text>", drawn))


def test_the_checker_sees_what_is_broken(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.test_docs_links.ROOT", tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "geometry.py").write_text("def batch(): ...\n")
    page = Path("page.md")
    (tmp_path / page).write_text(
        "# A title: of two parts\n[a](#a-title-of-two-parts) [b](#nowhere) [c](gone.md) ![d](gone.png)\n"
        "`data/geometry.py` `data/gone.py` `data/geometry.py: batch` `data/geometry.py: gone`\n"
        "`data/{geometry,lost}.py` `lost.md` `report.md`\n"
        "`data.geometry` `data.geometry.batch` `data.geometry.gone` `data.gone` `data.voxel.kind=ball`\n"
        "`data.voxel.gone`\n"
        "```\npython -m benchmarks.gone configs/gone.yaml data/<name>.py\n"
        "from data.geometry import batch, gone\n```\n"
    )
    assert [line.split(":")[0] for line in broken_links(page)] == [
        "image 'd'",
        "link to #nowhere",
        "link to gone.md",
        "link to gone.png",
    ]
    assert [line.split(":")[0] for line in broken_paths(page)] == [
        *("data/gone.py", "data/lost.py", "configs/gone.yaml", "data/geometry.py", "lost.md")
    ]
    assert [line.split(":")[0] for line in broken_names(page)] == [
        *(
            "python -m benchmarks.gone",
            "from data.geometry import gone",
            "data.geometry.gone",
            "data.gone",
            "data.voxel.gone",
        )
    ]


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_a_page_can_be_read(page: Path) -> None:
    """A replacement of an empty text once made a page of 11 MB: every link in it was right."""
    assert (ROOT / page).stat().st_size < 250_000
