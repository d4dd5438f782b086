"""B pictures of MPEG-4 part 2, whose vectors FFmpeg does not export, on a pan of known speed."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from recording import Recording
from synthetic import ffmpeg, pan, write_video

from mgm_prep.cli import main
from mgm_prep.config import ExtractSettings
from mgm_prep.extraction.extract import extract
from mgm_prep.motion import filling
from mgm_prep.motion.codec import ZERO_B_CODECS
from mgm_prep.motion.filling import Filler
from mgm_prep.runtime.execution import Execution
from mgm_shared.schema import PICTURE_TYPES
from mgm_shared.store import open_store

VELOCITY = (3, -2)
TYPE_I, TYPE_P, TYPE_B = (PICTURE_TYPES.index(name) for name in "IPB")
XVID = ["-c:v", "libxvid", "-q:v", "4"]
ENCODERS = {
    # Packed: the packet of a P picture also holds the B picture before it, and an empty one follows.
    "packed.avi": [*XVID, "-bf", "2"],
    "unpacked.avi": ["-c:v", "mpeg4", "-bf", "2", "-q:v", "4"],
    "many.mp4": ["-c:v", "mpeg4", "-bf", "4", "-b_strategy", "0", "-q:v", "4", "-g", "15"],
    "qpel.avi": [*XVID, "-bf", "2", "-flags", "+qpel"],
    "divx.mkv": ["-c:v", "mpeg4", "-bf", "1", "-q:v", "4", "-tag:v", "DX50"],
}
# All pictures but I have vectors, and those are the codec's.
COMPLETE = {
    "no-b.avi": [*XVID, "-bf", "0"],
    "mpeg4.mp4": ["-c:v", "mpeg4", "-q:v", "4"],
    "mpeg2.ts": ["-c:v", "mpeg2video", "-bf", "2", "-q:v", "4"],
    "mpeg1.mpg": ["-c:v", "mpeg1video", "-bf", "2", "-q:v", "4"],
    "ms.avi": ["-c:v", "msmpeg4", "-q:v", "4"],
    "flv.flv": ["-c:v", "flv", "-q:v", "4"],
    "h264.mp4": ["-c:v", "libx264", "-bf", "3"],
}


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The store of all clips by each choice of --no-vectors, and what each extraction said."""
    root = tmp_path_factory.mktemp("filling")
    (root / "in").mkdir()
    write_video(root / "raw.mkv", pan(VELOCITY, num_frames=32), "ffv1")
    for name, options in (ENCODERS | COMPLETE).items():
        ffmpeg("-i", str(root / "raw.mkv"), "-pix_fmt", "yuv420p", *options, str(root / "in" / name))
    found = {}
    for no_vectors in ("skip", "estimate", "transcode"):
        progress = Recording()
        settings = ExtractSettings(no_vectors=no_vectors)
        summary = extract(root / "in", root / f"{no_vectors}.store", settings, Execution(progress=progress))
        found[no_vectors] = open_store(root / f"{no_vectors}.store"), progress.lines, summary
    return found


@pytest.mark.parametrize("no_vectors", ["estimate", "transcode"])
@pytest.mark.parametrize("name", ENCODERS)
def test_b_pictures_have_the_pan_s_speed(stores: dict[str, Any], name: Any, no_vectors: str) -> None:
    """A velocity a frame interval, like that of P pictures, which span several."""
    video = stores[no_vectors][0][name]
    assert video.record["motion_source"] == f"codec+{no_vectors}"
    assert set(video.picture_type) == {TYPE_I, TYPE_P, TYPE_B}
    # libxvid loses the picture before the last, so the last one moves twice as far.
    for picture_type, motion_YX2 in zip(video.picture_type[:-1], video.motion[:-1], strict=True):
        if picture_type == TYPE_I:
            assert np.isnan(motion_YX2).all()
            continue
        known_N2 = motion_YX2[~np.isnan(motion_YX2[..., 0])]
        # P pictures span up to five frames, and what has come into view since is intra.
        assert len(known_N2) > (0.95 if picture_type == TYPE_B else 0.6) * motion_YX2[..., 0].size
        assert np.abs(np.median(known_N2, axis=0) - VELOCITY).max() <= 0.25
        assert (np.abs(known_N2 - VELOCITY).max(-1) < 0.5).mean() > (0.85 if picture_type == TYPE_B else 0.6)
    assert not np.isnan(video.motion[-1]).all()


@pytest.mark.parametrize("name", ENCODERS)
def test_the_codec_s_own_vectors_are_kept(stores: dict[str, Any], name: Any) -> None:
    """Those that --no-vectors skip stores; B pictures are missing there, and the store says so."""
    skipped = stores["skip"][0][name]
    assert skipped.record["motion_source"] == "codec+none"
    assert np.isnan(skipped.motion[:][skipped.picture_type == TYPE_B]).all()
    for no_vectors in ("estimate", "transcode"):
        filled_TYX2, skipped_TYX2 = stores[no_vectors][0][name].motion[:], skipped.motion[:]
        is_own_T = ~np.isnan(skipped_TYX2).all((1, 2, 3))
        assert is_own_T.sum() >= 4
        np.testing.assert_array_equal(filled_TYX2[is_own_T], skipped_TYX2[is_own_T])


@pytest.mark.parametrize("name", COMPLETE)
def test_other_videos_are_left_alone(stores: dict[str, Any], name: Any) -> None:
    videos = [stores[no_vectors][0][name] for no_vectors in ("skip", "estimate", "transcode")]
    assert {video.record["motion_source"] for video in videos} == {"codec"}
    for video in videos[1:]:
        np.testing.assert_array_equal(video.motion[:], videos[0].motion[:])
        np.testing.assert_array_equal(video.frames[:], videos[0].frames[:])
    motion_TYX2 = videos[0].motion[:]
    has_motion_T = ~np.isnan(motion_TYX2).all((1, 2, 3))
    # The decoders of MPEG-1 and 2 hand out the last picture behind B pictures without vectors.
    assert has_motion_T[videos[0].picture_type != TYPE_I][:-1].all()
    for motion_YX2 in motion_TYX2[has_motion_T]:
        assert np.abs(np.nanmedian(motion_YX2, axis=(0, 1)) - VELOCITY).max() <= 0.25


def test_it_is_said_and_counted(stores: dict[str, Any]) -> None:
    for no_vectors, what in (
        ("skip", "left missing"),
        ("estimate", "block matching"),
        ("transcode", "H.264 transcode"),
    ):
        _, said, summary = stores[no_vectors]
        assert summary.without_b_vectors == {"mpeg4": len(ENCODERS)}
        assert summary.without_vectors == {}
        (line,) = (line for line in said if "B pictures" in line)
        assert line.startswith(f"{len(ENCODERS)} videos have B pictures without motion vectors (mpeg4 {len(ENCODERS)})")
        assert what in line


def test_inspect_shows_the_share_with_motion(stores: dict[str, Any]) -> None:
    for no_vectors, share in (("skip", 0.0), ("transcode", 1.0)):
        store = stores[no_vectors][0]
        output = CliRunner().invoke(main, ["inspect", str(store.path), "packed.avi", "--json"]).stdout
        described = json.loads(output)
        video = store["packed.avi"]
        for name, type_ in (("I", TYPE_I), ("P", TYPE_P), ("B", TYPE_B)):
            is_known = ~np.isnan(video.motion[:][video.picture_type == type_][..., 0])
            assert described["cells_with_motion"][name] == pytest.approx(is_known.mean(), abs=1e-4)
        assert described["cells_with_motion"]["B"] == pytest.approx(share, abs=0.02)
        num_known = sum(not np.isnan(motion_YX2).all() for motion_YX2 in video.motion[:])
        assert described["pictures_with_motion"] == pytest.approx(num_known / video.num_frames, abs=1e-4)
        described = json.loads(CliRunner().invoke(main, ["inspect", str(store.path), "--json"]).stdout)
        source = {"skip": "codec+none", "transcode": "codec+transcode"}[no_vectors]
        assert described["motion_from"] == {"codec": len(COMPLETE), source: len(ENCODERS)}


def test_lossless_frames_turned(tmp_path: Path) -> None:
    """The frames are compared as stored, so the motion is that of the picture as shown."""
    (tmp_path / "in").mkdir()
    path = write_video(tmp_path / "b.mp4", pan(VELOCITY, num_frames=12), "mpeg4", {"bf": "2"}, rotation=90)
    path.rename(tmp_path / "in/b.mp4")
    extract(tmp_path / "in", tmp_path / "b.store", ExtractSettings(frame_codec="lossless"))
    video = open_store(tmp_path / "b.store")["b.mp4"]
    assert (video.height, video.width) == (320, 240)
    medians_T2 = np.nanmedian(video.motion[:][video.picture_type != TYPE_I], axis=(1, 2))
    assert np.abs(medians_T2 - (-2, -3)).max() <= 0.25


class _Recorder:
    """A source that knows which frames it was given, and answers with the last two."""

    given: list[int]

    def __init__(self, height: Any, width: Any) -> None:
        self.given = _Recorder.given = []

    def motion(self, luma_HW: Any) -> Any:
        self.given.append(int(luma_HW[0, 0]))
        return tuple(self.given[-2:])


def test_only_what_is_needed_is_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each B picture against the frame before, whether that was given already or not."""
    monkeypatch.setitem(filling.SOURCES, "estimate", _Recorder)
    filler = Filler("estimate", 8, 8)
    found = []
    for number, letter in enumerate("IPPBPPPBBPI"):
        picture: Any = SimpleNamespace(codec="mpeg4", picture_type=PICTURE_TYPES.index(letter), vectors_K=())
        found.append(filler.motion(picture, np.full((8, 8, 3), number, np.uint8)))
    assert found == [None, None, None, (2, 3), None, None, None, (6, 7), (7, 8), None, None]
    assert _Recorder.given == [2, 3, 6, 7, 8]
    assert filler.num_filled == 3


def test_a_first_b_picture_has_no_motion() -> None:
    picture: Any = SimpleNamespace(codec="mpeg4", picture_type=TYPE_B, vectors_K=())
    for source in ("estimate", "transcode"):
        motion_YX2 = Filler(source, 64, 64).motion(picture, np.zeros((64, 64, 3), np.uint8))
        assert motion_YX2 is not None
        assert motion_YX2.shape == (8, 8, 2)
        assert np.isnan(motion_YX2).all()


def test_codecs_with_vectors_of_b_pictures_are_not_filled() -> None:
    assert not ZERO_B_CODECS & {"h264", "mpeg1video", "mpeg2video"}
