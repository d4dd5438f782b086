"""Data sets that grow, change and shrink after they were extracted."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from synthetic import pan, write_video

from mgm_prep.cli import main
from mgm_prep.config import ExtractSettings
from mgm_prep.extraction import changes, plan
from mgm_prep.extraction import extract as stage
from mgm_prep.extraction.changes import find_changes
from mgm_prep.extraction.extract import extract
from mgm_prep.extraction.plan import read_plan
from mgm_prep.sources.discover import find_sources
from mgm_prep.store_tools.verify import verify
from mgm_shared.index import committed_parts, read_index
from mgm_shared.schema import PLAN_FILE
from mgm_shared.store import open_store


def _clip(
    path: Path, velocity: tuple[int, int] = (2, 1), num_frames: int = 10, size: tuple[int, int] = (64, 96)
) -> None:
    path.unlink(missing_ok=True)
    write_video(path, pan(velocity, num_frames=num_frames, height=size[0], width=size[1]))


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Four videos, and the store that holds them in one part."""
    root = tmp_path_factory.mktemp("four")
    (root / "in").mkdir()
    for k in range(4):
        _clip(root / f"in/{k}.mp4", num_frames=7 + 5 * k)
    extract(root / "in", root / "out.store", ExtractSettings())
    return root / "in", root / "out.store"


@pytest.fixture
def grown(four: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """A copy of `four`, in which 1.mp4 has since been replaced."""
    videos, store = (shutil.copytree(path, tmp_path / path.name) for path in four)
    _clip(videos / "1.mp4", velocity=(-3, 0), num_frames=9)
    return videos, store


def _run(videos: Path, store: Path, *flags: str) -> tuple[Any, Any, Any]:
    result = CliRunner().invoke(main, ["extract", str(videos), str(store), "--workers", "0", "--json", *flags])
    return result.exit_code, json.loads(result.stdout or "{}"), result.stderr


def _bytes(store: Path) -> dict[str, bytes]:
    return {str(file.relative_to(store)): file.read_bytes() for file in store.rglob("*") if file.is_file()}


def _assert_same_videos(store: Path, videos: Path, tmp_path: Path) -> None:
    """All that a fresh extraction of `videos` holds, the store holds likewise."""
    extract(videos, tmp_path / "fresh.store", ExtractSettings())
    fresh, grown = open_store(tmp_path / "fresh.store"), open_store(store)
    assert list(fresh.videos.index) == list(grown.videos.index)
    for video_id in fresh.videos.index:
        for name in ("frames", "motion"):
            ours, theirs = getattr(grown[video_id], name)[:], getattr(fresh[video_id], name)[:]
            np.testing.assert_array_equal(ours, theirs, err_msg=f"{video_id} {name}")
        np.testing.assert_array_equal(grown[video_id].time_s, fresh[video_id].time_s)
        np.testing.assert_array_equal(grown[video_id].picture_type, fresh[video_id].picture_type)
        for field in ("num_frames", "size", "mtime", "label", "codec", "fps"):
            assert grown[video_id].record[field] == fresh[video_id].record[field]


def test_a_changed_file_is_reported_and_kept(grown: tuple[Path, Path]) -> None:
    videos, store = grown
    before = _bytes(store)
    code, summary, said = _run(videos, store)
    assert (code, summary["changed"], summary["done"], summary["extracted_now"]) == (0, 1, 4, 0)
    assert "1 files changed since they were extracted (1.mp4); --refresh extracts them again" in said
    assert _bytes(store) == before
    assert _run(videos, store, "-n")[1]["changed"] == 1


def test_touching_a_file_changes_it_and_copying_it_with_its_time_does_not(
    grown: tuple[Path, Path], tmp_path: Path
) -> None:
    videos, store = grown
    sources = {source.video_id: source for source in find_sources(videos).sources}
    os.utime(videos / "2.mp4")
    assert find_changes(store, sources).changed == {"1.mp4", "2.mp4"}


def test_refresh_replaces_the_changed_and_copies_the_others(grown: tuple[Path, Path], tmp_path: Path) -> None:
    videos, store = grown
    _clip(videos / "new.mp4")
    code, summary, _ = _run(videos, store, "--refresh")
    assert (code, summary["changed"], summary["done"], summary["extracted_now"]) == (0, 0, 5, 2)
    assert committed_parts(store) == ["64x96-000001", "64x96-000002"]
    _assert_same_videos(store, videos, tmp_path)
    assert verify(store).problems == []
    before = _bytes(store)
    assert _run(videos, store, "--refresh")[1]["extracted_now"] == 0
    assert _bytes(store) == before


def test_the_others_of_the_part_need_no_file(grown: tuple[Path, Path]) -> None:
    videos, store = grown
    frames = open_store(store)["3.mp4"].frames[:]
    (videos / "3.mp4").unlink()
    _, summary, said = _run(videos, store, "--refresh")
    assert (summary["vanished"], summary["extracted_now"]) == (1, 1)
    assert "1 videos of the store are not in VIDEOS (3.mp4); they are kept" in said
    np.testing.assert_array_equal(open_store(store)["3.mp4"].frames[:], frames)


def test_another_size_and_a_part_of_which_all_changed(grown: tuple[Path, Path], tmp_path: Path) -> None:
    videos, store = grown
    for k, size in enumerate([(64, 96), (96, 64), (64, 96), (96, 64)]):
        _clip(videos / f"{k}.mp4", velocity=(-1, 2), num_frames=6 + k, size=size)
    _run(videos, store, "--refresh")
    assert [row.videos for row in read_plan(store)] == [("0.mp4", "2.mp4"), ("1.mp4", "3.mp4")]
    _assert_same_videos(store, videos, tmp_path)


@pytest.mark.parametrize(("module", "step"), [(changes, "to_replace"), (plan, "read_headers"), (changes, "withdraw")])
def test_a_refresh_that_is_killed_is_completed_by_any_run(
    grown: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: Any, step: str
) -> None:
    videos, store = grown
    calm = shutil.copytree(store, tmp_path / "calm.store")
    _run(videos, calm, "--refresh")

    def dies(*_: object) -> None:
        raise RuntimeError("killed")

    monkeypatch.setattr(module, step, dies)
    with pytest.raises(RuntimeError, match="killed"):
        extract(videos, store, ExtractSettings(), refresh=True)
    monkeypatch.undo()
    # Whatever it left, no video is there twice, and those that did not change are all there.
    assert read_index(store)["video_id"].to_pylist() in (
        ["0.mp4", "2.mp4", "3.mp4"],
        ["0.mp4", "1.mp4", "2.mp4", "3.mp4"],
    )
    assert list(open_store(store).videos.index) == read_index(store)["video_id"].to_pylist()
    assert _run(videos, store)[0] == 0
    assert _bytes(store) == _bytes(calm)


def test_a_damaged_part_is_not_copied(grown: tuple[Path, Path]) -> None:
    videos, store = grown
    (shard,) = (store / "parts").glob("*/frames/c.0*")
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(content)
    result = CliRunner().invoke(main, ["extract", str(videos), str(store), "--workers", "0", "--refresh"])
    assert result.exit_code == 2
    assert "a damaged part cannot be copied" in result.stderr
    assert list(open_store(store).videos.index) == ["0.mp4", "1.mp4", "2.mp4", "3.mp4"]


def test_rejected_videos_are_tried_again_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    videos, store = tmp_path / "in", tmp_path / "out.store"
    videos.mkdir()
    for name in ("a", "b", "c"):
        _clip(videos / f"{name}.mp4")
    good = (videos / "c.mp4").read_bytes()
    (videos / "c.mp4").write_text("not a video")
    (videos / "d.mp4").write_text("not a video")
    from mgm_prep.decoding.container import Unreadable
    from mgm_prep.extraction import part

    add_video = part.PartWriter.add_video

    def fails_at_b(self: Any, source: Any) -> None:
        if source.video_id == "b.mp4":
            raise Unreadable("made up")
        add_video(self, source)

    monkeypatch.setattr(part.PartWriter, "add_video", fails_at_b)
    assert _run(videos, store)[1]["failed"] == 3
    monkeypatch.undo()
    (videos / "c.mp4").write_bytes(good)
    assert _run(videos, store)[1]["extracted_now"] == 0
    code, summary, _ = _run(videos, store, "--retry-failed")
    assert (code, summary["done"], summary["failed"], summary["extracted_now"]) == (3, 3, 1, 2)
    before = _bytes(store)
    assert _run(videos, store)[1]["failed"] == 1
    assert _bytes(store) == before
    _assert_same_videos(store, videos, tmp_path)


def test_a_lost_plan_duplicates_nothing(grown: tuple[Path, Path]) -> None:
    videos, store = grown
    (store / PLAN_FILE).unlink()
    assert _run(videos, store)[1]["extracted_now"] == 0
    assert _run(videos, store, "--refresh")[1]["extracted_now"] == 1
    assert read_index(store)["video_id"].to_pylist() == ["0.mp4", "1.mp4", "2.mp4", "3.mp4"]


def test_videos_planned_from_another_folder_wait_for_it(
    four: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two folders into one store; the first was stopped after its plan was made."""
    store = tmp_path / "out.store"
    monkeypatch.setattr(stage, "_extract_parts", lambda *_: 0)
    extract(four[0], store, ExtractSettings())
    monkeypatch.undo()
    (tmp_path / "more").mkdir()
    _clip(tmp_path / "more/z.mp4")
    code, summary, _ = _run(tmp_path / "more", store)
    assert (code, summary["done"], summary["failed"]) == (0, 1, 0)
    assert _run(four[0], store)[1]["done"] == 4
    assert len(open_store(store)) == 5
