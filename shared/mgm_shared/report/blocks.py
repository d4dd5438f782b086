"""The parts of a report, as plain values. `page.html.jinja` draws each `kind`.

Text is text: the template escapes it, so names of files and labels may hold anything.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Union

Cell = Union[str, int, float, "Share", None]


@dataclass(frozen=True, kw_only=True)
class Tile:
    """A number in large letters, with its name and a remark."""

    value: str
    name: str
    remark: str = ""


@dataclass(frozen=True, kw_only=True)
class Tiles:
    """The numbers at the top of a report."""

    kind: ClassVar[str] = "tiles"
    tiles: Sequence[Tile]


@dataclass(frozen=True, kw_only=True)
class Notes:
    """Sentences that the reader must not miss. `is_warning` marks what may be wrong."""

    kind: ClassVar[str] = "notes"
    lines: Sequence[str]
    is_warning: bool = False


@dataclass(frozen=True, kw_only=True)
class Share:
    """A cell of a table with a bar behind it: `share` from 0 to 1."""

    share: float
    text: str


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table. Numbers are aligned to the right; a row whose index is in `marked` is emphasized."""

    kind: ClassVar[str] = "table"
    title: str = ""
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""
    marked: frozenset[int] = frozenset()

    def is_number(self, column: int) -> bool:
        """Whether a column holds numbers, so that its name is aligned to the right too."""
        cells = [row[column] for row in self.rows if row[column] is not None]
        return bool(cells) and not any(isinstance(cell, str) for cell in cells)


@dataclass(frozen=True, kw_only=True)
class Bars:
    """A horizontal bar for each name, as wide as its value."""

    kind: ClassVar[str] = "bars"
    title: str
    items: Sequence[tuple[str, float, str]]
    """Name, value, and the value in words."""
    caption: str = ""

    @property
    def largest(self) -> float:
        return max((value for _, value, _ in self.items), default=0) or 1


@dataclass(frozen=True, kw_only=True)
class Axis:
    """The ticks of an axis: their places in percent of its length, and their texts."""

    label: str
    ticks: Sequence[tuple[float, str]]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A line of a chart; places in percent from the lower left corner. `path` is SVG."""

    name: str
    path: str
    colour: int
    """Index into the palette of the page."""
    remark: str = ""
    """Tooltip."""
    is_dashed: bool = False


@dataclass(frozen=True, kw_only=True)
class Bin:
    """A bar of a histogram; places in percent."""

    x: float
    width: float
    height: float
    remark: str


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A horizontal line across a chart, with a name."""

    y: float
    name: str


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Curves or a histogram between two axes."""

    kind: ClassVar[str] = "chart"
    title: str
    x: Axis
    y: Axis
    curves: Sequence[Curve] = ()
    bins: Sequence[Bin] = ()
    rules: Sequence[Rule] = ()
    caption: str = ""
    is_tall: bool = False


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """A matrix of counts as a heat map: rows are true classes, columns predicted ones."""

    kind: ClassVar[str] = "matrix"
    title: str
    names: Sequence[str]
    counts: Sequence[Sequence[int]]
    caption: str = ""


@dataclass(frozen=True, kw_only=True)
class Reel:
    """A clip that plays: its frames side by side in one picture, and drawings over them, as SVG paths.

    Width and height are those of a frame in the picture, in pixels; the coordinates of the paths are pixels too.
    """

    title: str
    remark: str = ""
    picture: str
    """A `data:` URL."""
    num_frames: int
    width: int
    height: int
    frames_per_s: float
    arrows: str = ""
    missing: str = ""
    mask: str = ""
    legend: str = ""

    @property
    def duration_s(self) -> float:
        return round(self.num_frames / self.frames_per_s, 3)


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """Clips side by side, with boxes to tick for what is drawn over them."""

    kind: ClassVar[str] = "gallery"
    reels: Sequence[Reel]
    title: str = ""
    caption: str = ""

    @property
    def is_square(self) -> bool:
        return all(reel.width == reel.height for reel in self.reels)

    @property
    def layers(self) -> list[str]:
        """What can be switched on and off."""
        present = {"vectors": any(reel.arrows or reel.missing for reel in self.reels)}
        present["mask"] = any(reel.mask for reel in self.reels)
        return [name for name, is_there in present.items() if is_there]


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Blocks side by side, as many as there is room for."""

    kind: ClassVar[str] = "grid"
    blocks: Sequence["Block"]


@dataclass(frozen=True, kw_only=True)
class Details:
    """Blocks that the reader opens."""

    kind: ClassVar[str] = "details"
    summary: str
    blocks: Sequence["Block"]


Block = Tiles | Notes | Table | Bars | Chart | Matrix | Gallery | Grid | Details


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading and what is below it."""

    title: str
    blocks: Sequence[Block]
    about: str = ""

    @property
    def anchor(self) -> str:
        return "".join(letter if letter.isalnum() and letter.isascii() else "-" for letter in self.title.lower())


@dataclass(frozen=True, kw_only=True)
class Page:
    """A report."""

    title: str
    subtitle: str
    sections: Sequence[Section]
    opening: Sequence[Block] = field(default_factory=tuple)
    """What stands before the first section."""
