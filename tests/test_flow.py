"""Optical flow for a store: right on textures of known speed, stored like motion, resumed, replaced only when told."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from click.testing import CliRunner, Result
from synthetic import pan
from torchvision.models.optical_flow import raft_small

from mgm_prep.cli import main
from mgm_prep.config import FlowSettings
from mgm_prep.motion.optical_flow import cell_motion, estimator, opencv_motion, raft_motion
from mgm_prep.runtime.execution import Execution
from mgm_prep.store_tools import add_flow as flow_array
from mgm_prep.store_tools.add_flow import add_flow
from mgm_prep.store_tools.verify import verify
from mgm_shared import shard_reader
from mgm_shared.errors import UserError
from mgm_shared.store import Store, open_store
from mgm_train.cli import main as train

SPEEDS = {"right": (3, 0), "left": (-3, 0), "up": (0, -3), "down": (0, 3)}


@pytest.fixture
def store(pan_store: Store, tmp_path: Path) -> Path:
    shard_reader._shard_index.cache_clear()
    return shutil.copytree(str(pan_store.path), tmp_path / "copy.store")


@pytest.fixture(scope="module")
def raft_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights: for what the program does with them, not for what they find."""
    file = tmp_path_factory.mktemp("weights") / "raft.pth"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.save(raft_small(weights=None, progress=False).state_dict(), file)
    return file


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["flow", *map(str, arguments)])


@pytest.mark.parametrize("method", ["farneback", "dis"])
@pytest.mark.parametrize("velocity", [(4, 0), (-2, 3)])
def test_the_flow_of_a_pan_is_its_velocity(method: str, velocity: tuple[int, int]) -> None:
    frames_THWC = np.stack(list(pan(velocity, num_frames=3, height=96, width=128)))
    motion_BHW2 = opencv_motion(method, frames_THWC)
    assert motion_BHW2.shape == (2, 96, 128, 2)
    np.testing.assert_allclose(np.median(motion_BHW2, axis=(1, 2)), [velocity, velocity], atol=0.1)


def test_vectors_lie_where_the_content_is_now() -> None:
    # A block jumps from the left to the right half: only there can one look back at where it was.
    frames_THWC = np.zeros((2, 64, 128, 3), np.uint8)
    block = np.random.default_rng(0).integers(60, 255, (24, 24, 1), np.uint8)
    frames_THWC[0, 16:40, 32:56], frames_THWC[1, 16:40, 40:64] = block, block
    motion_HW2 = opencv_motion("dis", frames_THWC)[0]
    np.testing.assert_allclose(np.median(motion_HW2[18:38, 44:60], axis=(0, 1)), (8, 0), atol=0.5)


def test_the_first_frame_has_no_flow_and_the_batches_do_not_show() -> None:
    frames_THWC = np.stack(list(pan((2, 1), num_frames=7, height=64, width=64)))
    estimate = estimator(FlowSettings(method="dis"))
    whole = np.stack(list(cell_motion(iter([frames_THWC]), estimate)))
    assert whole.shape == (7, 8, 8, 2)
    assert np.isnan(whole[0]).all()
    assert not np.isnan(whole[1:]).any()
    in_pieces = np.stack(list(cell_motion(iter([frames_THWC[:1], frames_THWC[1:4], frames_THWC[4:]]), estimate)))
    np.testing.assert_array_equal(in_pieces, whole)
    by_pixel = opencv_motion("dis", frames_THWC[2:4])[0]
    np.testing.assert_allclose(whole[3], by_pixel.reshape(8, 8, 8, 8, 2).mean((1, 3)), atol=1e-5)


def test_raft_gets_pictures_it_can_take_and_looks_backwards() -> None:
    class Recorder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, first: Any, second: Any) -> list[Any]:
            self.seen = first, second
            flow = torch.zeros(len(first), 2, *first.shape[2:])
            flow[:, 0] = torch.arange(first.shape[3])
            return [flow * 0, flow]

    frames_THWC = np.random.default_rng(0).integers(0, 256, (3, 72, 136, 3), np.uint8)
    model = Recorder()
    motion_BHW2 = raft_motion(model, frames_THWC)
    first, second = model.seen
    assert first.shape == second.shape == (2, 3, 128, 136)
    expected = frames_THWC.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1
    np.testing.assert_allclose(first[:, :, :72].numpy(), expected[1:], atol=1e-6)
    np.testing.assert_allclose(second[:, :, :72].numpy(), expected[:-1], atol=1e-6)
    assert motion_BHW2.shape == (2, 72, 136, 2)
    np.testing.assert_array_equal(motion_BHW2[..., 0], np.broadcast_to(-np.arange(136.0), (2, 72, 136)))


def test_a_store_gets_flow_beside_its_motion_and_a_second_run_finds_it(store: Path) -> None:
    before = {file: file.read_bytes() for file in store.rglob("*") if file.is_file()}
    result = run(store, "--method", "farneback", "--workers", "0", "--json")
    assert result.exit_code == 0, result.stderr
    summary = json.loads(result.stdout)
    assert (summary["parts"], summary["computed_now"], summary["frames"]) == (1, 1, 192)
    opened = open_store(store)
    for label, velocity in SPEEDS.items():
        flow_TYX2 = opened[f"train/{label}/0.mp4"].flow[:]
        assert flow_TYX2.shape == (24, 16, 20, 2)
        assert np.isnan(flow_TYX2[0]).all()
        np.testing.assert_allclose(np.median(flow_TYX2[1:, 3:-3, 3:-3], axis=(1, 2)), [velocity] * 23, atol=0.15)
    # Nothing else of the store has changed, and nothing is left over.
    after = {file for file in store.rglob("*") if file.is_file()}
    assert {file.parent.name for file in after - before.keys()} == {"flow"}
    assert all(file.read_bytes() == content for file, content in before.items())
    assert not verify(store).problems
    again = json.loads(run(store, "--method", "farneback", "--workers", "0", "--json").stdout)
    assert (again["parts"], again["computed_now"]) == (1, 0)


def test_zarr_and_xarray_read_the_flow(store: Path) -> None:
    add_flow(store, FlowSettings(method="dis"))
    (part,) = (store / "parts").glob("128x160-*")
    array = zarr.open_array(part / "flow", mode="r")
    assert array.attrs["made_by"] == {"method": "dis"}
    assert array.dtype == np.int16
    attributes: Any = array.attrs
    packed_TYX2 = np.asarray(array[:])
    stored_TYX2 = np.where(packed_TYX2 == attributes["_FillValue"], np.nan, packed_TYX2 * attributes["scale_factor"])
    video = open_store(store)["test/up/0.mp4"]
    start = int(video.record["start"])
    np.testing.assert_array_equal(stored_TYX2[start : start + 24].astype(np.float32), video.flow[:])
    np.testing.assert_array_equal(video.to_xarray()["flow"].to_numpy(), video.flow[:])


def test_another_method_is_refused_and_replaced_only_when_told(store: Path) -> None:
    add_flow(store, FlowSettings(method="dis"))
    result = run(store, "--method", "farneback", "--workers", "0")
    assert result.exit_code == 2
    assert "has flow by dis; --force replaces it" in result.stderr
    result = run(store, "--method", "farneback", "--workers", "0", "--force", "--json")
    assert json.loads(result.stdout)["computed_now"] == 1
    shard_reader._shard_index.cache_clear()
    (part,) = (store / "parts").glob("128x160-*")
    assert zarr.open_array(part / "flow", mode="r").attrs["made_by"] == {"method": "farneback"}
    assert not verify(store).problems
    assert not list((store / "parts").glob(".*"))
    assert not (store / ".unfinished").exists()


def test_an_interrupted_run_leaves_no_half_and_goes_on(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(flow_array, "publish", stop)
    assert run(store, "--method", "dis", "--workers", "0").exit_code == 130
    (part,) = (store / "parts").glob("128x160-*")
    assert not (part / "flow").exists()
    assert not (store / ".unfinished").exists()
    monkeypatch.undo()
    assert add_flow(store, FlowSettings(method="dis")).computed_now == 1


def test_damage_of_frames_is_said_and_harms_no_other_part(store: Path) -> None:
    (part,) = (store / "parts").glob("128x160-*")
    shutil.copytree(part, part.with_name("128x160-000001"))
    shard = next((part / "frames").glob("c*"))
    content = bytearray(shard.read_bytes())
    content[200] ^= 1
    shard.write_bytes(content)
    shard_reader._shard_index.cache_clear()
    result = run(store, "--method", "dis", "--workers", "0", "--json")
    assert result.exit_code == 3
    summary = json.loads(result.stdout)
    assert (summary["computed_now"], summary["parts"]) == (1, 1)
    assert "128x160-000000" in summary["damaged"][0]
    assert not (part / "flow").exists()


@pytest.mark.starts_dask
def test_workers_write_the_same_bytes(store: Path, tmp_path: Path) -> None:
    other = shutil.copytree(store, tmp_path / "other.store")
    add_flow(store, FlowSettings(method="dis"))
    add_flow(other, FlowSettings(method="dis"), Execution(workers=2))
    for file in (file for file in store.rglob("flow/*") if file.is_file()):
        assert file.read_bytes() == (other / file.relative_to(store)).read_bytes()


def test_raft_with_weights_from_a_file(store: Path, raft_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # One video is enough of a model this slow.
    (part,) = (store / "parts").glob("128x160-*")
    metadata = json.loads((part / "zarr.json").read_text())
    metadata["attributes"]["videos"] = [metadata["attributes"]["videos"][0] | {"num_frames": 3}]
    (part / "zarr.json").write_text(json.dumps(metadata))
    monkeypatch.setattr(torch, "set_num_threads", lambda num: None)
    settings = FlowSettings(method="raft-small", weights=str(raft_weights), device="cpu")
    add_flow(store, settings)
    made_by: Any = zarr.open_array(part / "flow", mode="r").attrs["made_by"]
    assert made_by["method"] == "raft-small"
    assert len(made_by["weights_sha256"]) == 64


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", None, "other"])
def test_weights_that_are_none_are_refused_in_a_line(store: Path, tmp_path: Path, content: bytes | str | None) -> None:
    file = tmp_path / "weights.pth"
    if content == "other":
        torch.save(torch.nn.Linear(2, 2).state_dict(), file)
    elif isinstance(content, bytes):
        file.write_bytes(content)
    result = run(store, "--method", "raft-small", "--weights", file, "--device", "cpu", "--workers", "0")
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert str(file) in result.stderr


def test_weights_are_never_unpickled_into_code(store: Path, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, Any]:
            return (print, ("trapped",))

    file = tmp_path / "trap.pth"
    torch.save({"weights": Trap()}, file)
    result = run(store, "--method", "raft-small", "--weights", file, "--device", "cpu", "--workers", "0")
    assert result.exit_code == 2
    assert "trapped" not in result.stdout


def test_settings_that_do_not_fit_are_refused() -> None:
    mistakes: tuple[dict[str, Any], ...] = (
        {"method": "guess"},
        {"method": "raft-small"},
        {"weights": "a.pth"},
        {"device": "tpu"},
    )
    for wrong in mistakes:
        with pytest.raises(UserError, match="must be"):
            FlowSettings(**wrong)


def test_pretraining_is_guided_by_the_flow(store: Path, tmp_path: Path) -> None:
    small = ["--model", "vit_tiny", "--num-frames", "4", "--image-px", "64", "--stride", "2", "--num-workers", "0",
             "--batch-size", "4", "--epochs", "1", "--warmup-epochs", "0", "--guidance", "flow"]  # fmt: skip
    arguments = ["pretrain", str(store), "--run", str(tmp_path / "run"), *small]
    result = CliRunner().invoke(train, arguments)
    assert result.exit_code == 2
    assert "has no flow; `mgm-prep flow` puts it into the store" in result.stderr
    add_flow(store, FlowSettings(method="dis"))
    assert CliRunner().invoke(train, arguments).exit_code == 0
