"""Tables and pictures as text for a terminal and as one self-contained HTML page (nothing is fetched from anywhere)."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from launchers.drawing.canvas import RgbImage, fit_width, jpeg_bytes

_PAGE_WIDTH_PX = 1500


@dataclass(frozen=True, kw_only=True)
class TextTable:
    """Rows of text under a heading.

    Attributes:
        title: heading.
        header: names of the columns, () for none.
        rows: as many cells each as the header has.
        numeric: columns that are aligned to the right.
    """

    title: str
    header: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    numeric: tuple[int, ...] = ()

    def text(self) -> str:
        """The table for a terminal."""
        lines = [*([self.header] if self.header else []), *self.rows]
        columns = max((len(line) for line in lines), default=0)
        widths = [max(len(line[c]) for line in lines if c < len(line)) for c in range(columns)]
        shown = [self.title]
        for line in lines:
            cells = [
                cell.rjust(width) if c in self.numeric else cell.ljust(width)
                for c, (cell, width) in enumerate(zip(line, widths, strict=False))
            ]
            shown.append(("  " + "  ".join(cells)).rstrip())  # the last column is padded too
        return "\n".join(shown)


def template(path: Path) -> Template:
    """A page's Jinja2 file. What it inserts is escaped; a name that it misspells is an error."""
    environment = Environment(
        loader=FileSystemLoader(path.parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    return environment.get_template(path.name)


def embedded(title: str, image: RgbImage, width: int) -> dict[str, str | int]:
    """A picture as templates take it: shrunk to at most `width` pixels, compressed, and in base64."""
    small = fit_width(image, width)
    jpeg = base64.b64encode(jpeg_bytes(small)).decode()
    return {"title": title, "width": small.shape[1], "height": small.shape[0], "jpeg": jpeg}


_TEMPLATE = template(Path(__file__).with_name("inspect.html.j2"))


def page(title: str, subtitle: str, tables: Sequence[TextTable], pictures: Mapping[str, RgbImage]) -> str:
    """The page of `tandem inspect`: tables, and below them pictures under their titles."""
    figures = [embedded(name, image, _PAGE_WIDTH_PX) for name, image in pictures.items()]
    return _TEMPLATE.render(title=title, subtitle=subtitle, tables=tables, pictures=figures)
