"""Figures have a panel for each row and frame; a movie is a GIF that plays as fast as the clip."""

import errno
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from matplotlib.quiver import Quiver
from PIL import Image
from PIL.GifImagePlugin import GifImageFile

from mgm_prep.config import FlowSettings
from mgm_prep.store_tools.add_flow import add_flow
from mgm_prep.store_tools.describe import draw_video
from mgm_shared import figures
from mgm_shared.errors import UserError
from mgm_shared.figures import Row, film_strip, motion_figure, movie, panels, save, save_gif
from mgm_shared.store import Store, open_store

GREY = np.linspace(0, 250, 5).astype(np.uint8)
FRAMES_THWC = np.broadcast_to(GREY[:, None, None, None], (5, 16, 24, 3))


def _row(name: str, legend: Any = None) -> Row:
    return Row(name=name, draw=lambda axis, t: axis.imshow(FRAMES_THWC[t]), legend=legend)


def test_after_the_last_column_the_rows_begin_anew() -> None:
    rows = [_row("first"), _row("second", legend=lambda axis: axis.text(0, 0, "explained"))]
    titles = {0: "a", 1: "b", 3: "c"}
    figure = film_strip(rows, titles, (16, 24), caption="clip", max_columns=2)
    panels = np.array(figure.axes).reshape(4, 3)
    shown = [[axis.images[0].get_array()[0, 0, 0] if axis.images else None for axis in row] for row in panels]
    assert shown == [[0, 62, None], [0, 62, None], [187, None, None], [187, None, None]]
    assert [axis.get_title() for axis in panels[:, 0]] == ["a", "", "c", ""]
    assert [axis.get_ylabel() for axis in panels[:, 0]] == ["first", "second", "first", "second"]
    assert [[text.get_text() for text in axis.texts] for axis in panels[:, 2]] == [[], ["explained"], [], []]
    assert figure.get_suptitle() == "clip"


def test_a_movie_shows_every_frame_once(tmp_path: Path) -> None:
    titles = {t: f"frame {t}" for t in range(5)}
    pictures = movie([_row("first"), _row("second")], titles, (16, 24))
    assert len(pictures) == 5
    height, width, _ = pictures[0].shape
    middles = [[int(picture[height // 2, x, 0]) for x in (width // 4, 3 * width // 4)] for picture in pictures]
    np.testing.assert_array_equal(middles, np.stack([GREY, GREY], 1))
    save_gif(pictures, tmp_path / "new/clip.gif", frames_per_s=12.5)
    with Image.open(tmp_path / "new/clip.gif") as gif:
        assert isinstance(gif, GifImageFile)
        assert (gif.n_frames, gif.size, gif.info["duration"], gif.info["loop"]) == (5, (width, height), 80, 0)
        gif.seek(3)
        colour = gif.convert("RGB").getpixel((width // 4, height // 2))
        assert isinstance(colour, tuple)
        assert abs(colour[0] - 187) <= 4


@pytest.mark.parametrize(
    ("num_rows", "lines"), [(1, [1]), (3, [3]), (4, [4]), (5, [3, 2]), (6, [3, 3]), (7, [4, 3]), (9, [3, 3, 3])]
)
def test_the_panels_of_a_movie_fill_a_block_and_its_last_line_is_in_the_middle(num_rows: int, lines: list[int]) -> None:
    row = Row(name="", draw=lambda axis, t: axis.imshow(np.zeros((16, 24, 3), np.uint8)))
    first, second = movie([row] * num_rows, {0: "", 1: ""}, (16, 24))
    np.testing.assert_array_equal(first, second)
    # Panels are black: a line of them is a stretch of dark lines, and a panel a stretch of dark columns in it.
    is_dark_HW = first.max(-1) < 100
    spans = _stretches(is_dark_HW.sum(1) > is_dark_HW.shape[1] / 8)
    across = [_stretches(is_dark_HW[(start + stop) // 2]) for start, stop in spans]
    assert [len(panels) for panels in across] == lines
    middles = [(panels[0][0] + panels[-1][1]) / 2 for panels in across]
    assert max(middles) - min(middles) <= 2


@pytest.mark.parametrize("num_rows", [2, 6, 8])
def test_a_title_stays_over_its_own_panel(num_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []

    def noted(*sizes: Any) -> Any:
        drawn.append(panels(*sizes))
        return drawn[0]

    monkeypatch.setattr(figures, "panels", noted)
    name = "prediction, mean\nand contrast from\nGROUND TRUTH\n(19.5 dB)"
    movie([Row(name=name, draw=_row("").draw)] * num_rows, {0: ""}, (224, 224))
    axes = drawn[0][1]
    for axis in axes.flat:
        title, panel = axis.title.get_window_extent(), axis.get_window_extent()
        assert panel.x0 <= title.x0 < title.x1 <= panel.x1
        assert "GROUND TRUTH" in " ".join(axis.get_title().split())
    for upper, lower in pairwise(axes):
        assert lower[0].title.get_window_extent().y1 < upper[0].get_window_extent().y0


def _stretches(is_set_K: Any) -> list[tuple[int, int]]:
    """Where a row of booleans is set: from, and up to."""
    edges = np.flatnonzero(np.diff(np.pad(is_set_K.astype(int), 1)))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def test_motion_is_drawn_from_a_store(pan_store: Store, tmp_path: Path) -> None:
    video = pan_store["train/left/0.mp4"]
    figure = motion_figure(video, np.array([0, 5]))
    first, second = figure.axes[0], figure.axes[1]
    assert first.get_title().split(", ")[:2] == ["frame 0", "I"]
    still, moving = first.collections[0], second.collections[0]
    assert isinstance(still, Quiver)
    assert isinstance(moving, Quiver)
    assert not np.size(still.U)
    assert (np.asarray(moving.U) < 0).all()
    assert np.size(moving.U) > 50
    save(figure, tmp_path / "new/strip.png")
    with Image.open(tmp_path / "new/strip.png") as picture:
        assert 1350 < picture.width < 1500
    with pytest.raises(UserError, match="cannot draw into"):
        save(figure, Path(tmp_path / "strip.txt"))


def test_a_figure_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figure, _ = panels(1, 1, (16, 24))
    for suffix in ("png", "pdf", "svg"):
        save(figure, tmp_path / f"figure.{suffix}")
    assert (tmp_path / "figure.pdf").read_bytes().startswith(b"%PDF")
    assert "<svg" in (tmp_path / "figure.svg").read_text()
    before = (tmp_path / "figure.png").read_bytes()
    assert before.startswith(b"\x89PNG")

    def fail(file: Path, **options: Any) -> None:
        file.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(figure, "savefig", fail)
    with pytest.raises(OSError, match="No space left") as caught:
        save(figure, tmp_path / "figure.png")
    assert caught.value.filename == str(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 3
    with pytest.raises(UserError, match="cannot draw into"):
        save(panels(1, 1, (16, 24))[0], tmp_path / "figure.xyz")


def test_a_marked_row_stands_out_and_a_movie_has_the_scale_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    own = Row(name="own", draw=_row("").draw, is_marked=True, scale="full colour: 2")
    figure = film_strip([_row("other"), own], {0: "a"}, (16, 24))
    other_axis, own_axis = figure.axes
    assert [axis.yaxis.label.get_fontweight() for axis in (other_axis, own_axis)] == ["normal", "bold"]
    assert [axis.spines["top"].get_visible() for axis in (other_axis, own_axis)] == [False, True]
    drawn = []

    def noted(*sizes: Any) -> Any:
        drawn.append(panels(*sizes))
        return drawn[0]

    monkeypatch.setattr(figures, "panels", noted)
    movie([own], {0: "a"}, (16, 24))
    assert drawn[0][1][0, 0].get_title() == "own\nfull colour: 2"


def test_flow_is_drawn_where_there_is_some(pan_store: Store, tmp_path: Path) -> None:
    indices_T = np.array([2, 5])
    assert len(motion_figure(pan_store["train/left/0.mp4"], indices_T).axes) == 2 * 3
    store = shutil.copytree(str(pan_store.path), tmp_path / "flow.store")
    add_flow(store, FlowSettings(method="farneback"))
    video = open_store(store)["train/left/0.mp4"]
    figure = motion_figure(video, indices_T)
    assert [axis.get_ylabel() for axis in figure.axes[::3]] == [
        "vectors\n(hatched: none)", "vectors\n(grey: none)", "flow\n(hatched: none)", "flow\n(grey: none)",
    ]  # fmt: skip
    (arrows,) = [found for found in figure.axes[7].collections if isinstance(found, Quiver)]
    assert np.median(np.asarray(arrows.U)) < 0, "the pan goes to the left"
    draw_video(video, tmp_path / "pan.mp4", num_frames=6)
    with av.open(str(tmp_path / "pan.mp4")) as film:
        assert len(list(film.decode(video=0))) == 6
