"""Images as a second source of pretraining: batches of one kind, the tokens of slice 0, exact resume."""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from synthetic import texture
from toy import CPU, TOY, assert_same_run, losses_of

from mgm_prep.extraction.extract import extract
from mgm_shared.errors import UserError
from mgm_shared.progress import SILENT
from mgm_shared.store import Store, open_store
from mgm_train.checkpoint.run_folder import RunFolder
from mgm_train.config import PretrainConfig
from mgm_train.data.images import WithImages
from mgm_train.data.loader import Plan, StepKeys
from mgm_train.models.flops import pretrain_flops
from mgm_train.models.videomae import VideoMAE, build
from mgm_train.runtime.distributed import Distributed
from mgm_train.tasks.pretrain import image_dataset, pretrain, pretrain_job
from mgm_train.training.loop import Job, train
from mgm_train.training.losses import PretrainObjective

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL: dict[str, Any] = {
    "batch_size": 2, "warmup_epochs": 0, "num_frames": 4, "stride": 2, "image_px": 64, "model": "vit_tiny",
    "num_workers": 0, "device": "cpu", "precision": "fp32", "log_every_steps": 1, "save_every_epochs": 100,
}  # fmt: skip


def small(images: Path, **changes: Any) -> PretrainConfig:
    return PretrainConfig(**{"epochs": 3, "images": str(images), **SMALL, **changes})


@pytest.fixture(scope="module")
def images_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for number in range(5):
        Image.fromarray(texture(72, 96, number)).save(folder / f"{number}.png")
    extract(folder, folder.with_suffix(".store"), images=True)
    return folder.with_suffix(".store")


def keys_by_loops(plan: Plan) -> list[list[tuple[int, int]]]:
    """The keys of each step: videos and images in turn, each source in passes over shuffled samples."""

    def stream(num: int, order: Any) -> Any:
        for number in itertools.count():
            shuffled = order(number).tolist()
            for first in range(0, num // plan.batch_size * plan.batch_size, plan.batch_size):
                yield [(number, index) for index in shuffled[first : first + plan.batch_size]]

    videos = stream(plan.num_videos, plan.order)
    num_images = plan.num_images
    images = stream(num_images, lambda number: np.random.default_rng([plan.seed, number, 1]).permutation(num_images))
    steps = []
    for step in range(plan.num_steps):
        behind = plan.num_videos * (step % 2)
        steps.append([(number, index + behind) for number, index in next((videos, images)[step % 2])])
    return steps


@pytest.mark.parametrize("num_images", [4, 7, 50])
@pytest.mark.parametrize(("world_size", "parts"), [(1, 1), (2, 2)])
def test_every_second_step_is_one_of_images(num_images: int, world_size: int, parts: int) -> None:
    plan = Plan(num_videos=9, batch_size=4, grad_accum_steps=parts, repeats=1, epochs=5, seed=3, num_images=num_images)
    assert (plan.steps_per_epoch, plan.num_steps) == (4, 20)
    expected = keys_by_loops(plan)
    for first in (0, 1, 4, 7, 19):
        ranks = [
            list(StepKeys(plan, first, Distributed(device=torch.device("cpu"), rank=rank, world_size=world_size)))
            for rank in range(world_size)
        ]
        for step in range(first, plan.num_steps):
            pieces = [rank[(step - first) * parts + part] for part in range(parts) for rank in ranks]
            assert [key for piece in pieces for key in piece] == expected[step]
            assert {key[1] >= plan.num_videos for key in expected[step]} == {plan.is_of_images(step)}


def test_an_image_is_one_frame_twice_with_a_mask_of_its_own(images_store: Path) -> None:
    images = image_dataset(small(images_store, image_mask_ratio=0.5))
    assert len(images) == 5
    for index in range(5):
        (sample,) = images[0, index]
        (again,) = images[0, index]
        frames_CTHW = sample["frames_CTHW"]
        assert frames_CTHW.shape == (3, 2, 64, 64)
        assert (frames_CTHW[:, 0] == frames_CTHW[:, 1]).all()
        assert (sample["mask_N"].shape, int(sample["mask_N"].sum())) == ((16,), 8)
        assert (sample["mask_N"] == again["mask_N"]).all()
        (other,) = images[1, index]
        assert not (sample["mask_N"] == other["mask_N"]).all()


def test_of_a_video_among_the_images_one_frame_is_drawn(pan_store: Store) -> None:
    images = image_dataset(small(Path(str(pan_store.path))))
    seen = {images[number, 0][0]["frames_CTHW"].numpy().tobytes() for number in range(4)}
    for number in range(4):
        frames_CTHW = images[number, 0][0]["frames_CTHW"]
        assert (frames_CTHW[:, 0] == frames_CTHW[:, 1]).all()
    assert len(seen) == 4


@pytest.mark.parametrize("positions", ["sinusoid", "separable", "rope3d"])
@pytest.mark.parametrize("attention", ["joint", "divided"])
def test_the_tokens_of_an_image_are_those_of_slice_0(positions: Any, attention: Any) -> None:
    """The encoder gives the same for an image, and for a clip of which it sees these tokens of slice 0 only."""
    config = replace(TOY, positions=positions, attention=attention, width=48, num_frames=8)
    model = build(lambda: VideoMAE(config), 0).eval()
    generator = torch.Generator().manual_seed(0)
    clip_BCTHW = torch.randint(0, 256, (2, 3, 8, 32, 32), dtype=torch.uint8, generator=generator)
    clip_BCTHW[:, :, 1] = clip_BCTHW[:, :, 0]
    visible_BV = torch.tensor([[0, 3], [1, 2]])
    of_clip_BVD = model.encoder(clip_BCTHW, visible_BV)
    of_image_BVD = model.encoder(clip_BCTHW[:, :, :2], visible_BV)
    torch.testing.assert_close(of_image_BVD, of_clip_BVD)
    mask_BN = torch.ones(2, 4, dtype=torch.bool)
    mask_BN[torch.arange(2)[:, None], visible_BV] = False
    pixels_BMP = model(clip_BCTHW[:, :, :2], mask_BN, 2)
    assert pixels_BMP.shape == (2, 2, config.patch.num_values)


def toy_job(run: Path, videos: Store, images: Path, **changes: Any) -> Job:
    config = small(images, **changes)
    job = pretrain_job(str(videos.path), run, config, progress=SILENT)
    assert isinstance(job.dataset, WithImages)
    return job


def test_a_run_on_both_sources_learns_and_resumes_exactly(pan_store: Store, images_store: Path, tmp_path: Path) -> None:
    """Stopped after an odd step, the next one is of images or of videos as it would have been."""
    kinds = []

    def watched(model: torch.nn.Module, batch: dict[str, Any], seed: int) -> torch.Tensor:
        kinds.append((tuple(batch["frames_BCTHW"].shape[2:3]), batch["num_masked"]))
        return PretrainObjective()(model, batch, seed)

    whole = toy_job(tmp_path / "whole", pan_store, images_store, epochs=6, base_lr=0.05)
    steps = len(whole.dataset) // 2 * 2 * 6
    assert train(Job(**(vars(whole) | {"objective": watched})), CPU).num_steps == steps
    assert kinds == [((4,), 24), ((2,), 12)] * (steps // 2)
    losses = losses_of(tmp_path / "whole")
    assert np.mean(losses[-4:]) < np.mean(losses[:4])
    assert np.isfinite(losses).all()

    class Stops(Exception):
        pass

    kinds.clear()
    cut = toy_job(tmp_path / "cut", pan_store, images_store, epochs=6, base_lr=0.05)
    saved = Job(**(vars(cut) | {"max_saving_share": 1e9, "save_last_every_s": 0.0}))

    def failing(model: torch.nn.Module, batch: dict[str, Any], seed: int) -> torch.Tensor:
        kinds.append(((0,), 0))
        if len(kinds) == 6:
            raise Stops
        return PretrainObjective()(model, batch, seed)

    with pytest.raises(Stops):
        train(Job(**(vars(saved) | {"objective": failing})), CPU)
    again = toy_job(tmp_path / "cut", pan_store, images_store, epochs=6, base_lr=0.05)
    train(again, CPU)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_the_counted_operations_are_the_mean_of_both(pan_store: Store, images_store: Path, tmp_path: Path) -> None:
    job = toy_job(tmp_path / "run", pan_store, images_store)
    shape = PretrainConfig(**SMALL).shape
    of_clip, of_image = pretrain_flops(shape, 24), pretrain_flops(replace(shape, num_frames=2), 12)
    assert job.flops_per_clip == pytest.approx([(of_clip + of_image) / 2] * job.config.epochs)


def test_a_run_goes_on_with_the_same_images_only(pan_store: Store, images_store: Path, tmp_path: Path) -> None:
    config = small(images_store, epochs=1)
    pretrain(str(pan_store.path), tmp_path / "run", config)
    with pytest.raises(UserError, match="images"):
        pretrain(str(pan_store.path), tmp_path / "run", config.replace(images=""))
    with pytest.raises(UserError, match="the content of"):
        pretrain(str(pan_store.path), tmp_path / "run", config.replace(images=str(pan_store.path)))
    assert RunFolder(tmp_path / "run").weights(1).exists()


def test_what_cannot_be_is_said_in_a_line(pan_store: Store, images_store: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there are 3 images, but batch-size is 4"):
        Plan.of(small(images_store, batch_size=4), 9, "videos", 3)
    with pytest.raises(UserError):
        pretrain(str(pan_store.path), tmp_path / "run", small(tmp_path / "none"))
    with pytest.raises(UserError, match="image-mask-ratio"):
        small(images_store, image_mask_ratio=0.01)
    assert len(open_store(images_store)) == 5
