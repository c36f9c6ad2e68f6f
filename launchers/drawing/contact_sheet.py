"""Tables and pictures as text for a terminal and as one self-contained HTML page (nothing is fetched from anywhere)."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass

from launchers.drawing.canvas import RgbImage, fit_width, jpeg_bytes

_PAGE_WIDTH_PX = 1500


@dataclass(frozen=True, kw_only=True)
class Table:
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
            shown.append(("  " + "  ".join(cells)).rstrip())
        return "\n".join(shown)

    def markup(self) -> str:
        """The table for a page."""

        def cells(line: tuple[str, ...], tag: str) -> str:
            kinds = [' class="n"' if c in self.numeric else "" for c in range(len(line))]
            return "".join(f"<{tag}{k}>{html.escape(cell)}</{tag}>" for k, cell in zip(kinds, line, strict=True))

        head = f"<thead><tr>{cells(self.header, 'th')}</tr></thead>" if self.header else ""
        body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in self.rows)
        return (
            f'<section><h2>{html.escape(self.title)}</h2><div class="scroll"><table>{head}<tbody>{body}</tbody></table>'
            "</div></section>"
        )


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One picture of the sheet.

    Attributes:
        title: what it shows.
        image: RGB.
    """

    title: str
    image: RgbImage


_STYLE = """
:root { color-scheme: light dark; --ink: #1d2026; --paper: #fbfbfa; --line: #d5d7dc; --soft: #5d6470; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e5e3; --paper: #16181d; --line: #3a3e48; --soft: #9aa1ad; }
}
body { margin: 0 auto; padding: 1.2rem; max-width: 96rem; font: 15px/1.45 system-ui, sans-serif; color: var(--ink);
  background: var(--paper); overflow-wrap: anywhere; }
h1 { font-size: 1.4rem; margin: 0 0 .3rem; } h2 { font-size: 1.05rem; margin: 1.4rem 0 .4rem; }
p { color: var(--soft); margin: 0; }
.tables { display: flex; flex-wrap: wrap; gap: 0 2.5rem; } section { min-width: 0; max-width: 100%; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .15rem .8rem .15rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
.n { text-align: right; }
figure { margin: 1.2rem 0; } figcaption { margin-bottom: .3rem; font-weight: 600; }
figure img { max-width: 100%; height: auto; display: block; border-radius: 4px; }
"""

# Nothing but what the file itself holds may load, whatever a name in a data set tries.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def page(title: str, subtitle: str, tables: Sequence[Table], pictures: Sequence[Picture]) -> str:
    """The whole page; every name in it is escaped.

    Args:
        title: heading of the page.
        subtitle: one line below it.
        tables: shown first.
        pictures: shown below, shrunk to a page's width and compressed.
    """
    figures = "".join(_figure(picture) for picture in pictures)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>\n"
        f"<h1>{html.escape(title)}</h1><p>{html.escape(subtitle)}</p>\n"
        f'<div class="tables">{"".join(table.markup() for table in tables)}</div>\n{figures}\n</body></html>\n'
    )


def _figure(picture: Picture) -> str:
    image = fit_width(picture.image, _PAGE_WIDTH_PX)
    content = base64.b64encode(jpeg_bytes(image)).decode()
    name = html.escape(picture.title)
    return (
        f'<figure><figcaption>{name}</figcaption><img alt="{name}" width="{image.shape[1]}" height="{image.shape[0]}" '
        f'loading="lazy" src="data:image/jpeg;base64,{content}"></figure>\n'
    )
