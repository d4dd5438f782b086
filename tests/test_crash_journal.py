"""Videos that end or hang the process that decodes them are rejected, alone, and the reason says what was seen."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from synthetic import pan, write_video

from mgm_prep.config import ExtractSettings
from mgm_prep.extraction.extract import extract
from mgm_prep.runtime import crash_journal
from mgm_prep.runtime.crash_journal import deadly_videos, journal
from mgm_prep.runtime.execution import Execution
from mgm_shared import storage
from mgm_shared.objects import Url
from mgm_shared.storage import write_bytes
from mgm_shared.store import open_store

# What a worker does at its start: some files are made deadly. A regular expression that never ends holds the GIL, as a
# decoder stuck inside one call may.
DEADLY = """
import os, re, signal
from mgm_prep.decoding import pyav as decode
from mgm_prep.extraction import part
from mgm_prep.runtime import crash_journal
crash_journal.GRACE_S = 1
open_file, add_video = decode.VideoFile.__init__, part.PartWriter.add_video
def opens(self, path, settings=None):
    if path.name == "segfault.mp4":
        os.kill(os.getpid(), signal.SIGSEGV)
    open_file(self, path, settings)
def adds(self, source):
    if source.path.name == "exit.mp4":
        os._exit(1)
    if source.path.name == "hang.mp4":
        re.match("(a+)+$", "a" * 64 + "b")
    add_video(self, source)
decode.VideoFile.__init__, part.PartWriter.add_video = opens, adds
"""


@pytest.mark.starts_dask
def test_deadly_videos_are_rejected_and_blame_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One crashes on its header, one while it is decoded, one never returns."""
    videos, site = tmp_path / "in", tmp_path / "site"
    videos.mkdir()
    site.mkdir()
    for name in ("a", "exit", "hang", "segfault", "z"):
        write_video(videos / f"{name}.mp4", pan((2, 1), num_frames=6, height=64, width=96))
    (site / "sitecustomize.py").write_text(DEADLY)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), *sys.path]))
    summary = extract(videos, tmp_path / "out.store", ExtractSettings(max_seconds=15), Execution(workers=2))
    assert (summary.done, summary.failed) == (2, 3)
    assert list(open_store(tmp_path / "out.store").videos.index) == ["a.mp4", "z.mp4"]
    failures = [json.loads(line) for line in (tmp_path / "out.store/failures.jsonl").read_text().splitlines()]
    text = "decoding it ended the worker process, twice ({})"
    assert {failure["video_id"]: failure["reason"] for failure in failures} == {
        "exit.mp4": text.format("killed"),
        "hang.mp4": text.format("Timeout (0:00:16)"),
        "segfault.mp4": text.format("Segmentation fault"),
    }
    assert not (tmp_path / "out.store/.unfinished").exists()


def _dies(store: Any, task: Any, video_id: Any) -> None:
    """Leave the record of a process that died at the video."""
    with journal(store, task, 0) as notes:
        notes.opening(video_id)
        record = Path(notes._file.name)
        record.rename(kept := record.with_suffix(".kept"))
    kept.rename(record)


@pytest.mark.parametrize("text", ["", "\0\0\0", '"a.mp4', '"connection.py"\0\0395 in _recv\n'])
def test_a_record_that_says_nothing_blames_nobody(tmp_path: Path, text: str) -> None:
    _dies(tmp_path, "part", "a.mp4")
    (record,) = tmp_path.rglob("part-*.opening")
    record.write_text(text)
    _dies(tmp_path, "part", "a.mp4")
    assert deadly_videos(tmp_path, "part") == {}
    assert not record.exists()


def test_one_death_is_no_proof(tmp_path: Path) -> None:
    """Two workers that die at two videos are no proof against either, whatever the ids look like."""
    for video_id in ("a.mp4", "new\nline\udcff.mp4"):
        _dies(tmp_path, "part", video_id)
    assert deadly_videos(tmp_path, "part") == {}
    _dies(tmp_path, "part", "new\nline\udcff.mp4")
    assert deadly_videos(tmp_path, "other") == {}
    assert deadly_videos(tmp_path, "part") == {"new\nline\udcff.mp4": "killed"}
    assert deadly_videos(tmp_path, "part") == {}


def test_behind_a_url_only_a_try_after_a_death_names_its_videos(bucket: Url, monkeypatch: pytest.MonkeyPatch) -> None:
    """Since each naming is a request; a death more is needed for it."""
    asked = []

    def note(path: Path | Url, content: bytes) -> None:
        asked.append(content)
        write_bytes(path, content)

    monkeypatch.setattr(crash_journal, "write_bytes", note)

    def dies_at(*video_ids: str) -> None:
        with monkeypatch.context() as patched, journal(bucket, "part", 0) as notes:
            patched.setattr(crash_journal, "remove", lambda record: None)
            for video_id in video_ids:
                notes.opening(video_id)

    dies_at("a.mp4", "b.mp4", "c.mp4")
    assert asked == [b""]
    dies_at("a.mp4", "b.mp4")
    assert deadly_videos(bucket, "part") == {}
    dies_at("a.mp4", "b.mp4")
    assert deadly_videos(bucket, "other") == {}
    assert deadly_videos(bucket, "part") == {"b.mp4": "killed or crashed"}
    assert storage.file_sizes(bucket) == {}


def test_a_living_task_leaves_no_record(tmp_path: Path) -> None:
    with journal(tmp_path, "part", 1) as notes:
        notes.opening("a.mp4")
        assert len(list((tmp_path / ".unfinished").iterdir())) == 1
    assert not list((tmp_path / ".unfinished").iterdir())
