"""The report of a store: its numbers against the store's own, a made index of 240,000 videos, a real browser.

Axes: T frames · Y,X cells of 8×8 px · 2 = (dx, dy) px a frame.
"""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from browser import Outline, launched, opened
from click.testing import CliRunner
from recording import Recording

import mgm_prep
from mgm_prep.cli import main
from mgm_prep.store_report.clips import masked_boxes
from mgm_prep.store_report.motion_sample import sample_motion
from mgm_prep.store_report.rejected import rejected_by_reason
from mgm_shared.errors import UserError
from mgm_shared.index import INDEX_SCHEMA
from mgm_shared.progress import SILENT
from mgm_shared.schema import FAILURES_FILE, INDEX_FILE, PICTURE_TYPES
from mgm_shared.store import Store, open_store
from mgm_train.masking.strategies import MaskOptions, make_mask

NUM_MANY = 240_000
# Seconds of the processor and megabytes; a report of a small store takes the same.
MAX_S, MAX_MORE_MB = 20, 200


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    yield from launched()


@pytest.fixture(scope="module")
def report(pan_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of `pan_store`, with two videos that were rejected."""
    store = tmp_path_factory.mktemp("report") / "pans.store"
    shutil.copytree(str(pan_store.path), store)
    rows = [
        {"video_id": f"train/<b>{k}</b>.mp4", "path": "", "reason": f"frame {k} of 'a{k}.mp4' is bad", "exception": "E"}
        for k in range(2)
    ]
    (store / FAILURES_FILE).write_text("".join(json.dumps(row) + "\n" for row in rows))
    mgm_prep.report(store, store.parent / "report.html")
    return store.parent / "report.html"


def test_its_numbers_are_those_of_the_store(report: Path, pan_store: Store) -> None:
    outline = Outline.of(report.read_text())
    videos = pan_store.videos
    assert f"{len(videos)} videos" in outline.text
    assert f"{videos['num_frames'].sum():,} frames" in outline.text
    assert f"{(videos['num_frames'] / videos['fps']).sum() / 60:.1f} minutes of video" in outline.text
    assert "4 test · 4 train" in outline.text
    for label, count in videos["label"].value_counts().items():
        assert [label, "1", "1", str(count)] in outline.rows
    assert ["frame … of … is bad (E)", "2", "train/<b>0</b>.mp4, train/<b>1</b>.mp4"] in outline.rows
    assert "Measured on all 8 videos" in outline.text


def test_it_is_one_file_without_a_script(report: Path) -> None:
    outline = Outline.of(report.read_text())
    assert outline.outside == []
    assert not {"script", "link", "iframe", "object"} & outline.tags
    assert len([url for url in outline.fetched if url.startswith("data:image/webp")]) == 8


def test_motion_is_counted_as_a_loop_counts_it(pan_store: Store) -> None:
    sample = sample_motion(pan_store, range(len(pan_store)), SILENT)
    missing: dict[str, list[float]] = {}
    num_moving = num_known = 0
    for video_id in pan_store.videos.index:
        video = pan_store[video_id]
        for motion_YX2, kind in zip(video.motion[:], video.picture_type, strict=True):
            cells = motion_YX2.reshape(-1, 2).tolist()
            missing.setdefault(PICTURE_TYPES[kind], []).append(sum(np.isnan(cell[0]) for cell in cells) / len(cells))
            num_known += sum(not np.isnan(cell[0]) for cell in cells)
            num_moving += sum(max(map(abs, cell)) >= 1 / 16 for cell in cells)
    assert sample.num_frames == sum(map(len, missing.values()))
    assert {PICTURE_TYPES[kind]: int(count_K.sum()) for kind, count_K in sample.missing_of_type.items()} == {
        name: len(shares) for name, shares in missing.items()
    }
    for kind, total in sample.missing_sum.items():
        assert total == pytest.approx(sum(missing[PICTURE_TYPES[kind]]))
    assert (sample.num_known, sample.num_known - sample.num_still) == (num_known, num_moving)
    assert sample.speed_K.sum() == num_moving
    fastest = int(sample.speed_K.argmax())
    assert 10 <= fastest <= 12, "the pans move by three pixels a frame"


def test_the_rectangle_is_the_one_that_training_would_draw() -> None:
    """Against `make_mask` without jitter: the masked patches are those that the rectangle covers, but for its rim."""
    rng = np.random.default_rng(5)
    motion_TYX2 = rng.normal(0, 0.1, (8, 28, 28, 2)).astype(np.float32)
    for t in range(8):
        motion_TYX2[t, 20 - t, 3 * t + 2] = 9
    motion_TYX2[2:4] = np.nan
    motion_TYX2[5, :4] = np.nan
    filled = motion_TYX2.copy()
    filled[2], filled[3], filled[5, :4] = motion_TYX2[1], motion_TYX2[4], motion_TYX2[4, :4]
    options = MaskOptions(jitter=0.0, is_first_guided=True)
    strength_TYX = np.hypot(filled[..., 0], filled[..., 1])
    mask_thw = make_mask("mgm", strength_TYX, ratio=0.75, rng=rng, options=options).reshape(4, 14, 14)
    middle = (np.arange(14) + 0.5) * 16
    for t, box in enumerate(masked_boxes(motion_TYX2)):
        is_in_x = (middle > box.x) & (middle < box.x + box.width)
        is_in_y = (middle > box.y) & (middle < box.y + box.height)
        differing = (mask_thw[t // 2] != is_in_y[:, None] & is_in_x).sum()
        assert differing <= 14, "at most a row of the patches"
    (box, _) = masked_boxes(np.full((2, 4, 8, 2), np.nan, np.float32), ratio=0.25)
    assert (box.x, box.y, box.width, box.height) == (16, 8, 32, 16)


def test_what_may_be_wrong_is_said(pan_store: Store, tmp_path: Path) -> None:
    store = tmp_path / "odd.store"
    shutil.copytree(str(pan_store.path), store)
    table = open_store(store).table
    rows = table.to_pylist()
    rows[0] |= {"label": "only here", "motion_source": "none"}
    rows[1] |= {"label": None, "num_corrupt": 3, "num_frames": 1}
    pq.write_table(pa.Table.from_pylist(rows, schema=INDEX_SCHEMA), store / INDEX_FILE)
    mgm_prep.report(store, tmp_path / "new" / "report.html", num_clips=0)
    text = Outline.of((tmp_path / "new" / "report.html").read_text()).text
    for words in (
        "1 labels have no training video, so no model can learn them: only here.",
        "1 videos have no label",
        "1 videos have no motion at all",
        "1 videos have damaged or missing frames",
        "1 videos have a single frame",
    ):
        assert words in text


def test_a_damaged_video_is_named_and_the_rest_is_reported(pan_store: Store, tmp_path: Path) -> None:
    store = tmp_path / "damaged.store"
    shutil.copytree(str(pan_store.path), store)
    for shard in store.glob("parts/*/motion/c*"):
        if shard.is_file():
            content = bytearray(shard.read_bytes())
            content[20] ^= 255
            shard.write_bytes(content)
    result = CliRunner().invoke(main, ["report", str(store), "-o", str(tmp_path / "report.html"), "--json"])
    assert result.exit_code == 3, result.output
    assert "cannot be read" in result.stderr
    unreadable = json.loads(result.stdout)["unreadable"]
    assert 1 <= unreadable <= 8
    assert f"{unreadable} of 8 sampled videos cannot be read" in Outline.of((tmp_path / "report.html").read_text()).text


def test_the_same_store_gives_the_same_file_and_the_sample_is_said(pan_store: Store, tmp_path: Path) -> None:
    heard = Recording()
    for name in ("a.html", "b.html"):
        summary = mgm_prep.report(pan_store.path, tmp_path / name, num_sampled=3, num_clips=2, progress=heard)
        assert (summary.videos, summary.sampled) == (8, 3)
    first, second = ((tmp_path / name).read_text() for name in ("a.html", "b.html"))
    assert first == second
    text = Outline.of(first).text
    assert "Measured on a sample: 3 of 8 videos" in text
    assert "2 of 8 videos, drawn at random" in text


def test_bad_input_is_one_line(pan_store: Store, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not an mgm store"):
        mgm_prep.report(tmp_path, tmp_path / "report.html")
    with pytest.raises(UserError, match="is a folder; give the HTML file"):
        mgm_prep.report(pan_store.path, tmp_path)


def test_reasons_are_grouped(tmp_path: Path) -> None:
    reasons = ["stopped at 3.2 s of '/a/b c.mp4'", "stopped at 11 s of '/x.mp4'", "/d/e.mp4: gone", "/f/g-h.mp4: gone"]
    rows = [{"video_id": str(k), "path": "", "reason": text, "exception": "X"} for k, text in enumerate(reasons)]
    (tmp_path / FAILURES_FILE).write_text("".join(json.dumps(row) + "\n" for row in rows))
    counts, examples = rejected_by_reason(tmp_path)
    assert counts == {"stopped at … s of … (X)": 2, "…: gone (X)": 2}
    assert examples["…: gone (X)"] == ["2", "3"]


MEASURE = """
import sys, time
import mgm_prep
start = time.process_time()
mgm_prep.report(sys.argv[1], sys.argv[2])
seconds = time.process_time() - start
with open("/proc/self/status") as status:
    peak_mb = next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024
print(seconds, peak_mb)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_store_of_240_000_videos_takes_seconds_and_little_memory(pan_store: Store, tmp_path: Path) -> None:
    small, many = tmp_path / "small.store", tmp_path / "many.store"
    for store in (small, many):
        shutil.copytree(str(pan_store.path), store)
    table, rng = pan_store.table, np.random.default_rng(0)
    columns = {name: table[name].take(pa.array(np.arange(NUM_MANY) % len(table))) for name in table.column_names}
    columns["video_id"] = pa.array([f"train/class/video_{k:07d}.mp4" for k in range(NUM_MANY)])
    columns["label"] = pa.array([f"class {k}" for k in rng.integers(0, 400, NUM_MANY)])
    pq.write_table(pa.table(columns, schema=INDEX_SCHEMA), many / INDEX_FILE)
    with (many / FAILURES_FILE).open("w") as file:
        for k in range(5000):
            row = {"video_id": str(k), "path": "", "reason": f"frame {k} is bad", "exception": "E"}
            file.write(json.dumps(row) + "\n")
    measured = []
    for store in (small, many):
        command = [sys.executable, "-c", MEASURE, str(store), str(tmp_path / f"{store.stem}.html")]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        measured.append([float(number) for number in done.stdout.split()])
    (_, small_mb), (many_s, many_mb) = measured
    assert many_s < MAX_S
    assert many_mb - small_mb < MAX_MORE_MB
    text = Outline.of((tmp_path / "many.html").read_text()).text
    assert "240,000 videos" in text
    assert "Measured on a sample: 200 of 240,000 videos" in text
    assert "370 more labels" in text
    assert (tmp_path / "many.html").stat().st_size < 8e6


@pytest.mark.parametrize("width", [1280, 400])
def test_a_browser_shows_it(browser: Any, report: Path, width: int) -> None:
    shown = opened(browser, report, width, java_script_enabled=width == 1280)
    assert (shown.requests, shown.complaints) == ([], [])
    assert not shown.is_wider_than_the_window()
    for selector in ("h1", ".tile b", ".chart svg", ".bars i", "table"):
        assert shown.shows(selector), selector
    assert shown.page.locator(".reel").count() == 8


def test_clips_play_and_their_layers_can_be_switched_off(browser: Any, report: Path) -> None:
    shown = opened(browser, report, 1280)
    loaded = "[...document.images].every(image => image.complete && image.naturalWidth > 0)"
    assert shown.page.evaluate(loaded)
    state = "getComputedStyle(document.querySelector('.film'))"
    assert shown.page.evaluate(f"{state}.animationPlayState") == "running"
    place = f"{state}.transform"
    before = shown.page.evaluate(place)
    # Not `wait_for_function`: where it has to wait, it needs `eval`, which the page forbids.
    deadline_s = time.monotonic() + 5
    while shown.page.evaluate(place) == before:
        assert time.monotonic() < deadline_s, "the clip does not play"
        time.sleep(0.05)
    for layer in ("vectors", "mask"):
        assert shown.page.evaluate(f"getComputedStyle(document.querySelector('path.{layer}')).display") != "none"
        shown.page.locator(f".on-{layer}").uncheck()
        assert shown.page.evaluate(f"getComputedStyle(document.querySelector('path.{layer}')).display") == "none"
    shown.page.locator(".on-play").uncheck()
    assert shown.page.evaluate(f"{state}.animationPlayState") == "paused"
