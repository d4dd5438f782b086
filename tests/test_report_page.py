"""Pages of a report: places in percent, text that stays text, and clips whose drawings lie on their frames.

Axes: T frames · H,W pixels · C = RGB · Y,X cells · 2 = (dx, dy).
"""

import math
import re
from base64 import b64decode
from io import BytesIO

import numpy as np
import pytest
from browser import Outline
from PIL import Image

from mgm_shared.geometry import Box
from mgm_shared.report.blocks import (
    Bars,
    Block,
    Details,
    Gallery,
    Grid,
    Matrix,
    Notes,
    Page,
    Reel,
    Section,
    Share,
    Table,
    Tile,
    Tiles,
)
from mgm_shared.report.charts import MAX_POINTS, Scale, Series, edges_between, histogram, lines, short
from mgm_shared.report.page import to_html
from mgm_shared.report.reels import arrows_path, boxes_path, data_url, missing_path, shrunk

EVIL = "<script>alert('x')</script>\"&\n\udc80"


def _page(*blocks: Block, title: str = "title") -> str:
    return to_html(Page(title=title, subtitle="about", sections=[Section(title="All of it", blocks=blocks)]))


def test_every_block_is_drawn_and_the_page_is_whole() -> None:
    inner: Block = Table(columns=["name", "count"], rows=[["a", 1200], ["b", None]], caption="below")
    chart = lines("curve", [Series(name="one", x_P=[0, 1], y_P=[2, 3])], x_label="step", y_label="loss")
    blocks: list[Block] = [
        Tiles(tiles=[Tile(value="12", name="things", remark="of all")]),
        Notes(lines=["Careful."], is_warning=True),
        Grid(blocks=[inner, chart]),
        Bars(title="bars", items=[("x", 3.0, "3 of 4"), ("y", 0.0, "0")]),
        Matrix(title="confusion", names=["p", "q"], counts=[[3, 1], [0, 0]]),
        Details(summary="more", blocks=[Table(columns=["s"], rows=[[Share(share=0.25, text="25%")]])]),
    ]
    outline = Outline.of(_page(*blocks))
    assert outline.outside == []
    assert "script" not in outline.tags
    assert ["a", "1,200"] in outline.rows
    assert ["p", "3", "1"] in outline.rows
    for words in ("12 things of all", "Careful.", "below", "3 of 4", "more", "25%", "All of it"):
        assert words in outline.text


def test_text_stays_text_whatever_it_holds() -> None:
    reel = Reel(title=EVIL, picture="data:,", num_frames=1, width=2, height=2, frames_per_s=1, remark=EVIL)
    curve = Series(name=EVIL, x_P=[0], y_P=[0])
    blocks: list[Block] = [
        Tiles(tiles=[Tile(value=EVIL, name=EVIL, remark=EVIL)]),
        Notes(lines=[EVIL]),
        Table(title=EVIL, columns=[EVIL], rows=[[EVIL], [Share(share=0, text=EVIL)]], caption=EVIL),
        Bars(title=EVIL, items=[(EVIL, 1.0, EVIL)], caption=EVIL),
        lines(EVIL, [curve, curve], x_label=EVIL, y_label=EVIL, rules=[(1, EVIL)], caption=EVIL),
        Matrix(title=EVIL, names=[EVIL], counts=[[1]], caption=EVIL),
        Gallery(reels=[reel], caption=EVIL),
        Details(summary=EVIL, blocks=[Notes(lines=[EVIL])]),
    ]
    html = _page(*blocks, title=EVIL)
    outline = Outline.of(html)
    assert "script" not in outline.tags
    assert outline.text.count("<script>alert('x')</script>\"&\\n\\x80") > 15
    html.encode("utf-8")


@pytest.mark.parametrize(
    ("low", "high", "is_log", "texts"),
    [
        (0, 10, False, ["0", "2", "4", "6", "8", "10"]),
        (0.94, 1.12, False, ["0.95", "1", "1.05", "1.1"]),
        (-3, 3, False, ["-2", "0", "2"]),
        (0.1, 1000, True, ["0.1", "1", "10", "100", "1000"]),
        (1, 10, True, ["1", "2", "5", "10"]),
        (0, 250_000, False, ["0", "50k", "100k", "150k", "200k", "250k"]),
    ],
)
def test_ticks_are_round_numbers_at_their_place(low: float, high: float, is_log: bool, texts: list[str]) -> None:
    scale = Scale(low=low, high=high, is_log=is_log)
    ticks = scale.axis("").ticks
    assert [text for _, text in ticks] == texts
    for place, text in ticks:
        value = float(text.replace("k", "e3"))
        share = math.log(value / low) / math.log(high / low) if is_log else (value - low) / (high - low)
        assert place == pytest.approx(100 * share, abs=0.01)


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (1234.5, "1234"), (12_345, "12.3k"), (3.2e6, "3.2M"), (5e-6, "5e-06")]
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert short(value) == text


def test_a_histogram_counts_all_values() -> None:
    chart = histogram("h", np.array([-5, 0.5, 1.5, 1.6, 99]), [0, 1, 2, 4], x_label="", y_label="")
    assert [bin_.remark.split(": ")[1] for bin_ in chart.bins] == ["2 (40.0%)", "2 (40.0%)", "1 (20.0%)"]
    assert [(bin_.x, bin_.width) for bin_ in chart.bins] == [(0, 25), (25, 25), (50, 50)]
    heights = [bin_.height for bin_ in chart.bins]
    assert heights[0] == heights[1] == pytest.approx(2 * heights[2], rel=1e-3)
    assert edges_between(1, 16, 4, is_log=True) == pytest.approx([1, 2, 4, 8, 16])


def test_a_curve_goes_through_its_points_and_has_gaps() -> None:
    y_P = [1.0, math.nan, 0.5, 0.0]
    chart = lines("loss", [Series(name="a", x_P=[0, 1, 2, 4], y_P=y_P)], x_label="", y_label="", rules=[(1, "guess")])
    (curve,), (rule,) = chart.curves, chart.rules
    points = re.findall(r"([ML])([\d.]+) ([\d.]+)", curve.path)
    assert [(kind, float(x)) for kind, x, _ in points] == [("M", 0), ("M", 50), ("L", 100)]
    first, middle, last = (100 - float(y) for _, _, y in points)
    assert first == pytest.approx(rule.y)
    assert middle - last == pytest.approx((first - last) / 2, abs=0.01)
    assert curve.remark == "a: 1 → 0"


def test_a_long_curve_is_averaged() -> None:
    x_P = np.arange(100_000)
    chart = lines("loss", [Series(name="a", x_P=x_P.tolist(), y_P=(x_P % 2).tolist())], x_label="", y_label="")
    assert len(re.findall("[ML]", chart.curves[0].path)) == MAX_POINTS
    empty = lines("none", [Series(name="a", x_P=[], y_P=[])], x_label="", y_label="")
    assert empty.curves[0].path == ""


def test_a_film_has_its_frames_side_by_side() -> None:
    frames_THWC = np.stack([np.full((40, 60, 3), level, np.uint8) for level in (20, 120, 220)])
    small_THWC = shrunk(frames_THWC, 30)
    assert small_THWC.shape == (3, 20, 30, 3)
    url = data_url(list(small_THWC))
    with Image.open(BytesIO(b64decode(url.removeprefix("data:image/webp;base64,")))) as film:
        assert film.size == (90, 20)
        levels = np.asarray(film.convert("RGB"))[10, 15::30, 0]
    np.testing.assert_allclose(levels, (20, 120, 220), atol=3)
    with pytest.raises(ValueError, match="wider"):
        data_url([np.zeros((2, 9000, 3), np.uint8)] * 2)


def test_drawings_lie_on_their_frames() -> None:
    """Two frames of 4×4 cells in a film at half size: 16 px a frame. The second moves right by 4 px."""
    motion_TYX2 = np.zeros((2, 4, 4, 2), np.float32)
    motion_TYX2[1, ..., 0] = 4
    motion_TYX2[0, 1, 1:3] = np.nan
    darts = re.findall(r"M([-\d.]+) ([-\d.]+)l([-\d.]+) ([-\d.]+)", arrows_path(motion_TYX2, 4.0, 0.5, 16))
    assert len(darts) == 16, "what stands still has no dart"
    tips = {(float(x) + float(dx), float(y) + float(dy)) for x, y, dx, dy in darts}
    middles = {(16 + 4 * column + 2 + 6, 4 * row + 2) for column in range(4) for row in range(4)}
    assert all(min(math.dist(tip, middle) for middle in middles) < 0.2 for tip in tips)
    assert missing_path(motion_TYX2, 0.5, 16) == "M4.0 4.0h8.0v4.0h-8.0z"
    motion_TYX2[:] = np.nan
    assert missing_path(motion_TYX2, 0.5, 16) == "M0.0 0.0h16.0v16.0h-16.0zM16.0 0.0h16.0v16.0h-16.0z"
    boxes = [Box(x=2, y=4, width=10, height=8)] * 2
    assert boxes_path(boxes, 0.5, 16) == "M1.0 2.0h5.0v4.0h-5.0zM17.0 2.0h5.0v4.0h-5.0z"
