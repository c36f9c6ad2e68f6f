"""Tables and pictures as text for a terminal and as one self-contained HTML page (nothing is fetched from anywhere)."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from common.printable import printable
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
        lines = [[printable(cell) for cell in line] for line in (*([self.header] if self.header else []), *self.rows)]
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


EXPLAINED = {
    "sweep": "The scan from above, the sensor in the middle and its x axis up, coloured by what stands over each view.",
    "cameras": "Superpixels of each image, and the points that it sees, in colours of their depth and class.",
    "depth": "True depth of the pixels; dark where it is unknown.",
    "classes": "True class of the pixels.",
    "calibration": "Where depth jumps in the scan (coloured) and where the image has edges (bright): they should meet.",
    "superpixels": "Borders of the superpixels over the images as the network sees them.",
    "lidar_depth": "The points that each image sees, coloured by distance.",
    "similarity_points": "How alike the network finds each point and the one at the cross: blue unlike, red alike.",
    "similarity_pixels": "How alike the network finds each pixel and the point at the cross: blue unlike, red alike.",
    "point_features": "Features of the points as colours: what has one colour is alike to the network.",
    "detections_above": "The scan from above, x axis up; the line in a box points to its front.",
    "detections_over_images": "The edges of the same boxes as the cameras see them.",
    "segments_above": "The scan from above, x axis up: classes, and below them a colour for each object of things.",
    "segments_over_images": "The points that each camera sees, by whether their class is right; grey: unlabelled.",
    "pixel_features": "Images, and below them the features of their pixels in the colours of the points.",
}
"""Last word of a picture's title -> what it shows."""


def explanation(title: str) -> str:
    """What a picture shows, by the last word of its title; "" for one that explains itself."""
    return EXPLAINED.get(title.replace(".", " ").split(" ")[-1], "")


def embedded(title: str, image: RgbImage, width: int) -> dict[str, str | int]:
    """A picture as templates take it: shrunk to at most `width` pixels, compressed, in base64, and what it shows."""
    small = fit_width(image, width)
    jpeg = base64.b64encode(jpeg_bytes(small)).decode()
    size = {"width": small.shape[1], "height": small.shape[0]}
    return {"title": title, "shows": explanation(title), **size, "jpeg": jpeg}


_TEMPLATE = template(Path(__file__).with_name("inspect.html.j2"))


def page(title: str, subtitle: str, tables: Sequence[TextTable], pictures: Mapping[str, RgbImage]) -> str:
    """The page of `tandem inspect`: tables, and below them pictures under their titles."""
    figures = [embedded(name, image, _PAGE_WIDTH_PX) for name, image in pictures.items()]
    return _TEMPLATE.render(title=title, subtitle=subtitle, tables=tables, pictures=figures)
