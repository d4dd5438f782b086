"""A file makes nobody open another file or a connection, a name is no command, and an id stays inside the store.

Each trap is first shown to work on a careless reader, and the watch to see it.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import pytest
from click.testing import CliRunner
from hostile import CONCAT, HLS, OpenWatch, with_data_reference
from synthetic import moving_pattern, pan, write_video

from mgm_prep.cli import main
from mgm_prep.config import ExtractSettings
from mgm_prep.decoding.container import Unreadable
from mgm_prep.decoding.pyav import VideoFile
from mgm_prep.extraction.extract import extract
from mgm_prep.extraction.failures import read_failures
from mgm_shared.store import open_store

CARELESS = {
    "hls": {"allowed_extensions": "ALL", "extension_picky": "0", "protocol_whitelist": "file,http,tcp"},
    "concat": {"safe": "0"},
    "reference": {"enable_drefs": "1", "use_absolute_path": "1"},
}
FORMATS = {"hls": "hls", "concat": "concat", "reference": None}


def _trap(path: Path, kind: str, url: str) -> Path:
    if kind == "reference":
        own = moving_pattern(path.with_name("own.mp4"), "-c:v", "libx264", size="96x64", seconds=0.4)
        path.write_bytes(with_data_reference(own.read_bytes(), Path(url)))
        own.unlink()
    else:
        path.write_text({"hls": HLS, "concat": CONCAT}[kind].format(url=url))
    return path


def _read_carelessly(path: Path, kind: str) -> None:
    try:
        with av.open(str(path), format=FORMATS[kind], options=CARELESS[kind]) as container:
            for _ in container.decode(video=0):
                pass
    except av.FFmpegError:
        pass


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A video that no other file may lead to."""
    return moving_pattern(tmp_path / "secret.mp4", "-c:v", "libx264", size="64x64", seconds=0.4)


@pytest.mark.parametrize("suffix", [".mp4", ".m3u8", ".ffconcat"])
@pytest.mark.parametrize("kind", CARELESS)
def test_no_file_opens_another(tmp_path: Path, secret: Path, kind: str, suffix: str) -> None:
    # A bare name is what FFmpeg's own checks let pass.
    trap = _trap(tmp_path / f"trap{suffix}", kind, str(secret) if kind == "reference" else secret.name)
    watch = OpenWatch(secret)
    _read_carelessly(trap, kind)
    assert watch.was_opened()
    with pytest.raises(Unreadable, match=r"\w"):
        VideoFile(trap)
    assert not watch.was_opened()


def test_no_file_opens_a_connection(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        url = f"http://127.0.0.1:{server.getsockname()[1]}/a.ts"
        trap = _trap(tmp_path / "trap.m3u8", "hls", url)
        with pytest.raises(Unreadable):
            VideoFile(trap)
        with pytest.raises(BlockingIOError):
            server.accept()
        careless = [sys.executable, "-c", f"import av; av.open({str(trap)!r}, options={CARELESS['hls']})"]
        with subprocess.Popen(careless, stderr=subprocess.DEVNULL) as reader:
            server.settimeout(20)
            server.accept()[0].close()
            server.close()
            reader.kill()


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_the_program_opens_the_trap_and_nothing_it_names(tmp_path: Path, secret: Path) -> None:
    """The whole command under strace: of this directory it opens the videos listed, the store, and nothing else."""
    (tmp_path / "in").mkdir()
    traps = [_trap(tmp_path / f"in/{kind}.mp4", kind, str(secret)) for kind in CARELESS]
    log, store = tmp_path / "log", tmp_path / "out.store"
    command = ["strace", "-f", "-o", str(log), "-e", "trace=open,openat,connect", sys.executable, "-m", "mgm_prep"]
    command += ["extract", str(tmp_path / "in"), str(store), "--workers", "0", "--json"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (result.returncode, json.loads(result.stdout)["failed"]) == (3, 3)
    calls = log.read_text().splitlines()
    opened = {call.split('"')[1] for call in calls if str(tmp_path) in call}
    assert {str(trap) for trap in traps} <= opened
    assert all(path.startswith((str(tmp_path / "in"), str(store))) for path in opened)
    assert not [call for call in calls if "AF_INET" in call]
    assert all(failure.reason for failure in read_failures(store).values())
    careless = f"import av; list(av.open({str(traps[1])!r}, format='concat', options={{'safe': '0'}}).decode(video=0))"
    subprocess.run([*command[:6], sys.executable, "-c", careless], env=environment, capture_output=True)
    assert str(secret) in log.read_text()


ODD_NAMES = [
    b"%d.mp4", b"-y.mp4", b"a:b.mp4", b"concat:x|y.mp4", b"file:x.mp4", b"http:x.mp4", b"new\nline.mp4",
    b"not\xffutf8.mp4", b"pipe:0.mp4", "été ☃.mp4".encode(), b'"quoted".mp4', b" .mp4", b"~.mp4", b"$(touch x).mp4",
]  # fmt: skip


@pytest.mark.parametrize("decoder", ["pyav", "mv-extractor"])
def test_a_name_is_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoder: str) -> None:
    """Whatever FFmpeg or a shell makes of it elsewhere. Listed from inside the directory, so with nothing in front."""
    if decoder == "mv-extractor":
        pytest.importorskip("mvextractor")
    (tmp_path / "in/bytes \udce9").mkdir(parents=True)
    clip = write_video(tmp_path / "clip.mp4", pan((2, 1), num_frames=3, height=64, width=96), options={"bf": "0"})
    for name in ODD_NAMES:
        shutil.copy(os.fsencode(clip), os.path.join(os.fsencode(tmp_path / "in"), name))
    shutil.copy(clip, tmp_path / "in/bytes \udce9/a.mp4")
    monkeypatch.chdir(tmp_path / "in")
    command = ["extract", ".", "../out.store", "--workers", "0", "--decoder", decoder]
    escaped = {"not\\xffutf8.mp4", "bytes \\xe9/a.mp4"}
    assert CliRunner().invoke(main, command).exit_code == (0 if decoder == "pyav" else 3)
    store = open_store(tmp_path / "out.store")
    failures = read_failures(store.path)
    # mv-extractor takes no bytes for a name.
    assert failures.keys() == (set() if decoder == "pyav" else escaped)
    assert len(store.videos) + len(failures) == len(ODD_NAMES) + 1
    assert "new\nline.mp4" in store.videos.index
    if decoder == "pyav":
        assert store["bytes \\xe9/a.mp4"].label == "bytes \\xe9"
    for video_id in store.videos.index:
        assert store[video_id].frames[:].shape == (3, 64, 96, 3)
    assert CliRunner().invoke(main, ["verify", "../out.store"]).exit_code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.mp4", "in", "out.store"]


def test_an_id_stays_inside_the_store(tmp_path: Path) -> None:
    """Ids of a list may point anywhere; they are text in tables, and no file is named after them."""
    (tmp_path / "a/b/in").mkdir(parents=True)
    clip = write_video(tmp_path / "clip.mp4", pan((2, 1), num_frames=3, height=64, width=96))
    shutil.copy(clip, tmp_path / "a/b/in/x.mp4")
    shutil.copy(clip, tmp_path / "a/b/in/y.mp4")
    names = [
        "../../../clip.mp4",
        str(clip),
        "x.mp4",
        "./y.mp4",
        "../in/x.mp4",
        "nowhere/../../../../../gone.mp4",
        "/gone.mp4",
    ]
    (tmp_path / "a/b/in/list.txt").write_text("\n".join(names))
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    extract(tmp_path / "a/b/in/list.txt", tmp_path / "a/b/out.store", ExtractSettings())
    after = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert all(path.is_relative_to(tmp_path / "a/b/out.store") for path in after - before)
    store = open_store(tmp_path / "a/b/out.store")
    assert set(store.videos.index) == set(names[:5])
    assert set(read_failures(store.path)) == set(names[5:])


@pytest.mark.parametrize("happening", ["grows", "shrinks", "vanishes", "is replaced"])
def test_a_file_that_changes_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, happening: str) -> None:
    (tmp_path / "in").mkdir()
    path = write_video(tmp_path / "in/a.mp4", pan((2, 1), num_frames=30, height=64, width=96))
    write_video(tmp_path / "in/b.mp4", pan((2, 1), num_frames=3, height=64, width=96))
    decode = VideoFile._decode

    def disturbed(self: Any) -> Iterator[Any]:
        for number, picture in enumerate(decode(self)):
            if number == 20 and path.exists():
                match happening:
                    case "grows":
                        path.write_bytes(path.read_bytes() + b"more")
                    case "shrinks":
                        os.truncate(path, path.stat().st_size // 2)
                    case "vanishes":
                        path.unlink()
                    case "is replaced":
                        shutil.copy(tmp_path / "in/b.mp4", tmp_path / "new")
                        (tmp_path / "new").rename(path)
            yield picture

    monkeypatch.setattr(VideoFile, "_decode", disturbed)
    extract(tmp_path / "in", tmp_path / "out.store", ExtractSettings())
    assert list(open_store(tmp_path / "out.store").videos.index) == ["b.mp4"]
    (failure,) = read_failures(tmp_path / "out.store").values()
    assert failure.video_id == "a.mp4"
    assert (
        "No such file" in failure.reason if happening == "vanishes" else "changed while it was read" in failure.reason
    )
