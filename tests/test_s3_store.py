"""Both stages on a store at s3://…, over HTTP against moto's server: byte for byte the local one, whatever happens."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from click.testing import CliRunner, Result
from synthetic import pan, write_video
from torch.utils.data import DataLoader

from mgm_prep.cli import main as prep
from mgm_prep.config import ExtractSettings
from mgm_prep.extraction.extract import extract
from mgm_prep.runtime import lock
from mgm_prep.runtime.execution import Execution
from mgm_shared import storage
from mgm_shared.errors import UserError
from mgm_shared.index import committed_parts
from mgm_shared.objects import Url
from mgm_shared.store import open_store
from mgm_train.cli import main as train
from mgm_train.data.augmentation.augment import PretrainAugment
from mgm_train.data.clips import PretrainDataset, start_worker

SMALL = """--model vit_tiny --num-frames 4 --image-px 32 --stride 2 --batch-size 6 --epochs 1 --warmup-epochs 0
--num-workers 1 --repeats 1 --device cpu""".split()
SIZES = ((64, 96), (96, 64), (64, 64))


def _run(program: Any, *arguments: object) -> Result:
    return CliRunner().invoke(program, [str(argument) for argument in arguments])


def _files(store: storage.StorePath) -> dict[str, bytes]:
    names = sorted(storage.file_sizes(store))
    return dict(zip(names, storage.read_files([store / name for name in names]), strict=True))


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six good files of three sizes, so three parts, and a bad one."""
    root = tmp_path_factory.mktemp("videos")
    for k in range(6):
        (root / f"class{k % 2}").mkdir(exist_ok=True)
        height, width = SIZES[k % 3]
        write_video(root / f"class{k % 2}/{k}.mp4", pan((2, 1), num_frames=12, height=height, width=width))
    (root / "text.mkv").write_text("not a video\n" * 40)
    return root


@pytest.fixture(scope="module")
def local(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Their store on the disk: what every other must be equal to."""
    store = tmp_path_factory.mktemp("stores") / "local.store"
    extract(videos, store, ExtractSettings())
    assert len(committed_parts(store)) == 3
    return store


@pytest.fixture
def remote(bucket: Url, monkeypatch: pytest.MonkeyPatch) -> Url:
    monkeypatch.setattr(lock, "BEAT_S", 0.1)
    return bucket / "data/remote.store"


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
@pytest.mark.starts_dask
def test_both_stages_at_a_url(videos: Path, local: Path, remote: Url, tmp_path: Path) -> None:
    """The commands a user gives, one after the other, by workers that have nothing but the environment."""
    first = _run(prep, "extract", videos, remote, "--workers", 1, "--json")
    assert first.exit_code == 3, first.output
    expected = json.loads(_run(prep, "extract", videos, local, "--workers", 0, "--json").stdout)
    assert json.loads(first.stdout) == expected | {"store": str(remote), "extracted_now": 6}
    assert _files(remote) == _files(local)
    again = json.loads(_run(prep, "extract", videos, remote, "--workers", 0, "--json").stdout)
    assert (again["extracted_now"], again["done"], again["failed"]) == (0, 6, 1)
    outlook = json.loads(_run(prep, "extract", videos, remote, "-n", "--json").stdout)
    assert (outlook["done"], outlook["to_do"]) == (6, 0)
    verdict = json.loads(_run(prep, "verify", remote, "--json").stdout)
    assert (verdict["parts"], verdict["videos"], verdict["problems"]) == (3, 6, [])
    described = json.loads(_run(prep, "inspect", remote, "--json").stdout)
    assert described == json.loads(_run(prep, "inspect", local, "--json").stdout) | {"store": str(remote)}
    assert json.loads(_run(prep, "index", remote, "--json").stdout)["videos"] == 6
    assert _files(remote) == _files(local)
    trained = _run(train, "pretrain", remote, "--run", tmp_path / "run", *SMALL, "--json")
    assert json.loads(trained.stdout)["num_steps"] == 1, trained.output
    forced = _run(prep, "extract", videos, remote, "--force")
    assert forced.exit_code == 2
    assert "--force moves what is there aside" in forced.stderr


@pytest.fixture
def copied(local: Path, bucket: Url) -> Url:
    """The local store's files at a URL."""
    for name, content in _files(local).items():
        storage.write_bytes(bucket / "copy.store" / name, content)
    return bucket / "copy.store"


def test_it_opens_as_the_local_one_does(local: Path, copied: Url) -> None:
    xarray = pytest.importorskip("xarray")
    ours, theirs = open_store(str(copied)), open_store(local)
    assert ours.digest == theirs.digest
    assert ours.videos.equals(theirs.videos)
    for video_id in ("class0/0.mp4", "class1/3.mp4"):
        video, reference = ours[video_id], theirs[video_id]
        for key in (slice(None), slice(1, 9, 4), [3, 3, 0], -1):
            np.testing.assert_array_equal(video.frames[key], reference.frames[key])
            np.testing.assert_array_equal(video.motion[key], reference.motion[key])
        np.testing.assert_array_equal(video.time_s, reference.time_s)
        np.testing.assert_array_equal(video.picture_type, reference.picture_type)
        xarray.testing.assert_identical(video.to_xarray().load(), reference.to_xarray().load())
    part: Any = zarr.open_group(str(ours[video_id].part), mode="r")
    np.testing.assert_array_equal(part["frames"][12:24], video.frames[:])


def still_cells(clip: Any, rng: Any) -> Any:
    """A mask of which the motion decides each bit."""
    return (np.nan_to_num(clip.motion_TYX2) == 0).ravel()


# Python 3.12 and later warn of any fork of a process with threads.
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_a_loader_s_workers_stream_it(local: Path, copied: Url, start: str) -> None:
    """After this process has used its own connection, which a fork must not share."""

    def dataset(path: Path | Url) -> PretrainDataset:
        augment = PretrainAugment(size_px=32)
        return PretrainDataset(open_store(path), num_frames=4, stride=2, augment=augment, mask=still_cells)

    remote, expected = dataset(copied), dataset(local)
    keys = [(0, index) for index in range(len(expected))] * 2
    assert torch.equal(remote[keys[0]][0]["frames_CTHW"], expected[keys[0]][0]["frames_CTHW"])
    loader = DataLoader(
        remote,
        sampler=keys,
        batch_size=None,
        num_workers=2,
        multiprocessing_context=start,
        worker_init_fn=start_worker,
        timeout=60,
    )
    for key, (sample,) in zip(keys, loader, strict=True):
        (reference,) = expected[key]
        assert torch.equal(sample["frames_CTHW"], reference["frames_CTHW"])
        assert torch.equal(sample["mask_N"], reference["mask_N"])


def test_an_upload_that_fails_anywhere_is_never_seen_as_a_part(
    videos: Path, local: Path, remote: Url, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The k-th upload fails, for many k; then the store holds whole parts only, and the next run completes it."""
    import s3fs

    call, calls = s3fs.S3FileSystem._call_s3, 0

    async def fails(self: Any, method: str, *arguments: Any, **options: Any) -> Any:
        nonlocal calls
        if method == "put_object" and "/parts/" in options["Key"]:
            calls += 1
            if calls == limit:
                raise OSError("the network is gone")
        return await call(self, method, *arguments, **options)

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", fails)
    whole = _files(local)
    for limit in (3, 9, 14, 10, 9, 10**9):
        calls = 0
        if limit < 10**9:
            with pytest.raises(UserError, match="cannot be reached: the network is gone"):
                extract(videos, remote, ExtractSettings())
        else:
            extract(videos, remote, ExtractSettings())
        found = _files(remote)
        for part in committed_parts(remote):
            of_part = {name: content for name, content in whole.items() if name.startswith(f"parts/{part}/")}
            assert of_part.items() <= found.items()
    assert found == whole


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 7))])
def test_a_run_killed_between_two_uploads_is_completed(
    videos: Path, local: Path, remote: Url, tmp_path: Path, seed: Any
) -> None:
    """SIGKILL before the k-th request that writes; what is seen meanwhile are whole parts, and the end is the same."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, s3fs\n"
        "call, left = s3fs.S3FileSystem._call_s3, int(os.environ['REQUESTS_TO_LIVE'])\n"
        "async def counted(self, method, *arguments, **options):\n"
        "    global left\n"
        "    left -= method == 'put_object'\n"
        "    os.kill(os.getpid(), 9) if left < 0 else None\n"
        "    return await call(self, method, *arguments, **options)\n"
        "s3fs.S3FileSystem._call_s3 = counted\n"
        "from mgm_prep.runtime import lock\nlock.BEAT_S = 0.1\n"
    )
    command = [sys.executable, "-m", "mgm_prep", "extract", str(videos), str(remote), "--workers", "0"]
    whole = _files(local)
    rng = random.Random(seed)
    for _ in range(2):
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path]),
            "REQUESTS_TO_LIVE": str(rng.randrange(3, 18)),
        }
        killed = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        found = _files(remote)
        for part in committed_parts(remote):
            of_part = {name: content for name, content in whole.items() if name.startswith(f"parts/{part}/")}
            assert of_part.items() <= found.items()
        if "zarr.json" in found:
            videos_seen = open_store(remote).table["video_id"].to_pylist()
            assert set(videos_seen) <= set(open_store(local).table["video_id"].to_pylist())
    extract(videos, remote, ExtractSettings())
    assert _files(remote) == whole


@pytest.mark.slow
@pytest.mark.starts_dask
def test_a_video_that_ends_its_workers_is_rejected(
    videos: Path, local: Path, remote: Url, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it is on a disk, but its workers die twice as often, since the first death names nobody."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os\nfrom mgm_prep.extraction import part\nadd = part.PartWriter.add_video\n"
        "def dies(self, source):\n    os._exit(1) if source.path.name == '3.mp4' else add(self, source)\n"
        "part.PartWriter.add_video = dies\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    summary = extract(videos, remote, ExtractSettings(), Execution(workers=2))
    assert (summary.done, summary.failed) == (5, 2)
    rows = [json.loads(line) for line in storage.read_bytes(remote / "failures.jsonl").splitlines()]
    assert rows[0]["video_id"] == "class1/3.mp4"
    assert rows[0]["reason"] == "decoding it ended the worker process, twice (killed or crashed)"
    assert not [name for name in storage.file_sizes(remote) if name.startswith((".unfinished", ".lock"))]


def test_damage_is_found(copied: Url) -> None:
    (frames, *_) = [name for name in storage.file_sizes(copied) if "/frames/c." in name]
    content = bytearray(storage.read_bytes(copied / frames))
    content[100] ^= 1
    storage.write_bytes(copied / frames, bytes(content))
    (track, *_) = [name for name in storage.file_sizes(copied) if "/time/c." in name]
    storage.remove(copied / track)
    result = _run(prep, "verify", copied)
    assert result.exit_code == 3
    assert "checksum mismatch" in result.stdout
    assert "time has 0 values" in result.stdout


def test_bad_places_are_one_line(videos: Path, bucket: Url) -> None:
    storage.write_bytes(bucket / "other/notes.txt", b"mine")
    cases = {
        ("extract", videos, bucket / "other"): "exists and is not an mgm store",
        ("extract", videos, "s3://no-such-bucket/a.store"): "bucket does not exist",
        ("inspect", bucket / "nothing"): "is not an mgm store",
        ("verify", "nonsense://bucket"): "is no address that fsspec knows",
    }
    for arguments, message in cases.items():
        result = _run(prep, *arguments)
        assert (result.exit_code, message in result.stderr) == (2, True), (arguments, result.output, result.exception)
        assert len(result.stderr.strip().splitlines()) == 1
    assert storage.file_sizes(bucket) == {"other/notes.txt": 4}
