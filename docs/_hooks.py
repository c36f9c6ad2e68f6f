"""MkDocs hooks: add the pages that lie outside docs/, the lists of pages, and the API reference."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("launchers", "configs", "engine", "models", "data", "common")
"""In the order of the import rule."""
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "slurm/README.md": "slurm.md",
}
"""Pages that lie outside docs/, and where the site has them."""


def modules() -> list[str]:
    """Dotted names of all modules that have a docstring, in the order of the import rule."""
    paths = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    documented = [path for path in paths if ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))]
    parts = [path.relative_to(ROOT).with_suffix("").parts for path in documented]
    return [".".join(part[:-1] if part[-1] == "__init__" else part) for part in parts]


def page_of(module: str) -> str:
    """Source path of a module's page."""
    return f"reference/{module}.md"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Fill the lists of the navigation."""
    docs = Path(config.docs_dir)
    for entry in config.nav or []:
        (title,) = entry
        if title == "Methods":
            entry[title] += [f"methods/{path.name}" for path in sorted((docs / "methods").glob("*.md"))]
        elif title == "Data sets":
            entry[title] += [f"datasets/{path.name}" for path in sorted((docs / "datasets").glob("*.md"))]
        elif title == "Contributing":
            (decisions,) = (
                item["Decisions"] for item in entry[title] if isinstance(item, dict) and "Decisions" in item
            )
            decisions += [f"decisions/{path.name}" for path in sorted((docs / "decisions").glob("[0-9]*.md"))]
        elif title == "Reference":
            entry[title] += _tree(modules())
    return config


def _tree(names: list[str], depth: int = 0) -> list[Any]:
    """Modules as nested lists by package."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(name.split(".")[depth], []).append(name)
    nav: list[Any] = []
    for part, inner in groups.items():
        here = [name for name in inner if name.count(".") == depth]
        below = [name for name in inner if name.count(".") > depth]
        pages = [{name.split(".")[-1]: page_of(name)} for name in here]
        nav += [{part: [*pages, *_tree(below, depth + 1)]}] if below else pages
    return nav


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    for source, page in PAGES.items():
        text = _moved((ROOT / source).read_text(encoding="utf-8"), Path(source).parent)
        files.append(File.generated(config, page, content=text))
    listed = []
    for module in modules():
        files.append(File.generated(config, page_of(module), content=f"::: {module}\n"))
        listed.append(f"- [`{module}`]({module}.md): {_first_line(module)}")
    index = "# API reference\n\nEvery module, by the import rule: each package imports only those below it.\n\n"
    files.append(File.generated(config, "reference/index.md", content=index + "\n".join(listed) + "\n"))
    return files


def _first_line(module: str) -> str:
    path = ROOT.joinpath(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").split("\n\n")[0].replace("\n", " ")


def _moved(text: str, folder: Path) -> str:
    """A page of the root with its links as the site has them."""

    def link(found: re.Match[str]) -> str:
        opening, target = found.groups()
        if re.match(r"[a-z]+:|#", target):
            return found.group()
        path, mark, anchor = target.partition("#")
        source = (ROOT / folder / path).resolve().relative_to(ROOT).as_posix()
        return f"{opening}({PAGES.get(source, source.removeprefix('docs/'))}{mark}{anchor})"

    return re.sub(r"(\[[^\]]*\])\(([^)\s]+)\)", link, text)


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Links that leave docs/ become links to the site's page, or, where the site has none, plain text."""
    folder = (ROOT / "docs" / page.file.src_uri).parent

    def link(found: re.Match[str]) -> str:
        label, target = found.groups()
        path, mark, anchor = target.partition("#")
        outside = (folder / path).resolve()
        if not path.startswith("..") or outside.is_relative_to(ROOT / "docs") or not outside.is_relative_to(ROOT):
            return found.group()
        at = PAGES.get(outside.relative_to(ROOT).as_posix())
        up = "../" * page.file.src_uri.count("/")
        return label[1:-1] if at is None else f"{label}({up}{at}{mark}{anchor})"

    return re.sub(r"(?<!!)(\[[^\]]*\])\(([^)\s]+)\)", link, markdown)
