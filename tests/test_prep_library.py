"""Stage 1 in Python, without the command line: from a folder of videos to a store, and what can be done with it."""

import ast
import inspect
import io
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow.json
import pyarrow.parquet
import pytest
from click.testing import CliRunner
from recording import Recording
from synthetic import pan, write_video

import mgm_prep
from mgm_prep import (
    Execution,
    ExtractSettings,
    FlowSettings,
    TranscodeSettings,
    add_flow,
    attach_labels,
    build_index,
    cli,
    describe_store,
    describe_video,
    draw_video,
    extract,
    preview_extract,
    repair,
    saliency,
    transcode,
    verify,
)
from mgm_shared import open_store
from mgm_shared.cores import num_usable_cores
from mgm_shared.errors import UserError

VELOCITY = (3, -2)
MAX_BODY_LINES = 12


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """Two classes of pans, and a file that is no video."""
    root = tmp_path / "videos"
    for label, (dx, dy) in {"there": VELOCITY, "back": (-3, 2)}.items():
        (root / "train" / label).mkdir(parents=True)
        write_video(root / "train" / label / "0.mp4", pan((dx, dy), num_frames=12, height=64, width=96))
    (root / "broken.mp4").write_bytes(b"no video")
    return root


def test_from_a_folder_to_a_store_and_all_around_it(videos: Path, tmp_path: Path) -> None:
    """Paths may be text. The pan's own velocity is what comes out at the end."""
    path, progress = str(tmp_path / "pans.store"), Recording()
    assert asdict(preview_extract(str(videos), path)) == {
        "store": path, "listed": 3, "done": 0, "failed": 0, "changed": 0, "vanished": 0, "to_do": 3, "new": 3
    }  # fmt: skip
    summary = extract(str(videos), path, ExtractSettings(short_side=64), Execution(progress=progress))
    assert (summary.listed, summary.done, summary.failed, summary.frames) == (3, 2, 1, 24)
    assert progress.steps == [["reading headers", "video", 3, 3], ["extracting", "video", 2, 2]]
    assert progress.details["failed"] == 0
    assert extract(videos, path, ExtractSettings(short_side=64)).extracted_now == 0

    store = open_store(path)
    video = store["train/there/0.mp4"]
    assert (video.label, video.split) == ("there", "train")
    np.testing.assert_allclose(np.nanmedian(video.motion[1:], axis=(0, 1, 2)), VELOCITY, atol=0.25)
    (tmp_path / "new.csv").write_text("path,label\ntrain/there/0.mp4,away\n")
    assert attach_labels(path, [str(tmp_path / "new.csv")]).attached == 1
    assert open_store(path)["train/there/0.mp4"].label == "away"

    assert verify(path, str(videos)).problems == []
    (part,) = (tmp_path / "pans.store/parts").glob("64x96-*")
    shard = part / "frames" / "c.0.0.0.0"
    before = shard.read_bytes()
    shard.write_bytes(before[:100] + bytes([before[100] ^ 1]) + before[101:])
    assert verify(path).broken_parts == [part.name]
    assert repair(path, videos).repaired_parts == [part.name]
    assert shard.read_bytes() == before

    assert add_flow(path, FlowSettings(method="dis")).computed_now == 1
    assert build_index(path).frames == 24
    description = describe_video(open_store(path)["train/back/0.mp4"])
    assert description.speed_p50_px == pytest.approx(np.hypot(*VELOCITY), rel=0.1)
    assert description.flat()["num_frames"] == 12
    assert describe_store(open_store(path)).splits == {"train": 2}
    draw_video(open_store(path)["train/back/0.mp4"], tmp_path / "back.png")
    assert (tmp_path / "back.png").stat().st_size > 1000
    (tmp_path / "boxes/train/back").mkdir(parents=True)
    (tmp_path / "boxes/train/back/0.txt").write_text("".join(f"{t},1,1,1,40,40,1\n" for t in range(1, 13)))
    assert saliency(path, str(tmp_path / "boxes")).ratio == pytest.approx(1, rel=0.1)


def test_copies_and_a_second_store_from_them(videos: Path, tmp_path: Path) -> None:
    progress = Recording()
    summary = transcode(str(videos), str(tmp_path / "out"), TranscodeSettings(crf=30), Execution(progress=progress))
    assert (summary.listed, summary.done, summary.failed) == (3, 2, 1)
    assert progress.steps == [["transcoding", "video", 3, 3]]
    assert extract(tmp_path / "out", tmp_path / "out.store").done == 2


def test_errors_are_exceptions_with_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        extract(tmp_path / "nowhere", tmp_path / "out.store")
    with pytest.raises(UserError, match="is not an mgm store"):
        verify(tmp_path)
    with pytest.raises(UserError, match="short-side is 3 but must be at least 16"):
        ExtractSettings(short_side=3)


# As bytes: a folder is split and label, so these are below one.
ODD_NAMES = [
    *(b"caf\xe9.mp4", b"caf\\xe9.mp4", b"new\nline.mp4", b"tab\t.mp4", b"#122_a.mp4", b"%d.mp4", b"-x.mp4", b"a:b.mp4"),
    *(b"'q\"t.mp4", b" lead.mp4", b"\x1b[31m.mp4", "\u2028.mp4".encode(), "ü.mp4".encode(), b"x" * 251 + b".mp4"),
]


def test_odd_names_through_every_table_and_command(tmp_path: Path) -> None:
    """Each file is one row; all tables are text that other programs read; each id finds its video again."""
    folder = tmp_path / os.fsdecode(b"videos\xe9/train/label \xff")
    folder.mkdir(parents=True)
    root = folder.parent.parent
    video = write_video(tmp_path / "one.mp4", pan(VELOCITY, num_frames=3, height=32, width=32))
    for name in ODD_NAMES:
        (folder / os.fsdecode(name)).hardlink_to(video)
        (folder / os.fsdecode(b"bad" + name[:100] + b".mp4")).write_bytes(b"no video")
    store = tmp_path / os.fsdecode(b"s\xe9.store")
    summary = extract(root, store)
    assert (summary.listed, summary.done, summary.failed) == (2 * len(ODD_NAMES), len(ODD_NAMES), len(ODD_NAMES))
    table = pyarrow.parquet.read_table(io.BytesIO((store / "index.parquet").read_bytes())).to_pydict()
    assert set(table["label"]) == {r"label \xff"}
    rows = pyarrow.json.read_json(io.BytesIO((store / "failures.jsonl").read_bytes())).to_pydict()
    assert len({*table["video_id"], *rows["video_id"]}) == 2 * len(ODD_NAMES)
    # Of two names that read alike one has a second backslash in its id.
    names = {video_id.replace("\\\\", "\\") for video_id in rows["video_id"]}
    assert set(rows["path"]) == {rf"{tmp_path}/videos\xe9/{name}" for name in names}
    assert extract(root, store).extracted_now == 0
    assert verify(store, root, num_compared=50).compared == len(ODD_NAMES)
    for video_id in table["video_id"]:
        result = CliRunner().invoke(cli.main, ["inspect", str(store), video_id])
        assert result.exit_code == 0, result.stderr
        assert len(result.stdout.splitlines()) == len(describe_video(open_store(store)[video_id]).flat())


def test_names_in_messages_are_one_line(tmp_path: Path) -> None:
    store = tmp_path / "a\n\x1b[2Jb.store"
    result = CliRunner().invoke(cli.main, ["verify", str(store)])
    assert result.exit_code == 2
    assert r"a\n\x1b[2Jb.store is not an mgm store" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_every_public_name_is_there_and_documented() -> None:
    assert sorted(mgm_prep.__all__) == mgm_prep.__all__ == sorted(mgm_prep._HOMES)
    for name in mgm_prep.__all__:
        assert inspect.getdoc(getattr(mgm_prep, name)), name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        mgm_prep.nothing  # noqa: B018


def test_the_help_waits_for_no_decoder() -> None:
    code = "import sys, mgm_prep.cli; print({'av', 'zarr', 'cv2', 'numba', 'pandas', 'dask'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_a_command_declares_options_and_calls_a_function() -> None:
    tree = ast.parse(Path(cli.__file__).read_text())
    commands = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name != "main"}
    # `list` hides Python's own, and `completion` is that of both programs.
    functions = {"list_videos": "list"}
    assert {functions.get(name, name) for name in commands} == cli.main.commands.keys() - {"completion"}
    for name, command in commands.items():
        first, last = command.body[1], command.body[-1]
        assert 1 + (last.end_lineno or 0) - first.lineno <= MAX_BODY_LINES, name


def test_the_cores_are_those_of_the_affinity() -> None:
    code = "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); from mgm_shared.cores import *; "
    done = subprocess.run([sys.executable, "-c", code + "print(num_usable_cores())"], capture_output=True, text=True)
    assert done.stdout == "1\n", done.stderr
    assert num_usable_cores() == len(os.sched_getaffinity(0))
