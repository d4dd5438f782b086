"""The target `kmeans`: codes against the codebook's own, cross entropy by hand, learning, resuming, wrong files.

Axes: N tokens · M masked tokens · T frames of a token · K codes.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy import CPU, SAVING_OFTEN, TOY, MovingStripes, assert_same_run, losses_of

from mgm_shared.codebook import Codebook, PatchNorm, patch_vectors, write_codebook
from mgm_shared.errors import UserError
from mgm_shared.progress import SILENT
from mgm_shared.store import Store
from mgm_train.checkpoint.run_folder import RunFolder
from mgm_train.config import PretrainConfig
from mgm_train.models.videomae import VideoMAE, build, split_mask
from mgm_train.tasks.pretrain import pretrain_job
from mgm_train.training.loop import Job, train
from mgm_train.training.losses import PretrainObjective
from mgm_train.training.targets.choose import make_targets, pretrain_shape
from mgm_train.training.targets.kmeans import KMeans

SETTINGS: dict[str, Any] = {"num_frames": 4, "image_px": 32}


def book(path: Path, num_codes: int = 6, norm: PatchNorm = "none", patch_px: int = 16) -> str:
    """A codebook of flat patches of different greys, or of random ones."""
    centres_KP = np.random.default_rng(0).normal(0, 0.7, (num_codes, 3 * (patch_px // 2) ** 2)).astype(np.float32)
    if norm == "none":
        centres_KP = 0.02 * centres_KP + np.linspace(0, 1, num_codes, dtype=np.float32)[:, None]
    write_codebook(path, Codebook(centres_KP=centres_KP, patch_px=patch_px, norm=norm))
    return str(path)


@pytest.mark.parametrize("norm", ["none", "patch"])
@pytest.mark.parametrize(("tubelet", "patch_px"), [(2, 16), (1, 16), (2, 8)])
def test_codes_are_those_of_the_codebook_for_each_frame_of_a_token(
    tmp_path: Path, norm: PatchNorm, tubelet: Any, patch_px: Any
) -> None:
    # Coarse blocks, so that patches differ by more than noise. The centres are patches of the last clip.
    coarse = np.random.default_rng(1).integers(0, 256, (3, 3, 4, 8, 8)).astype(np.uint8)
    frames_BCTHW = torch.from_numpy(coarse.repeat(4, axis=3).repeat(4, axis=4))
    last_THWC = frames_BCTHW[2].permute(1, 2, 3, 0).numpy()
    centres_KP = patch_vectors(last_THWC[:, 8 : 8 + patch_px, 4 : 4 + patch_px], norm)
    file = tmp_path / "a.npz"
    write_codebook(file, Codebook(centres_KP=centres_KP, patch_px=patch_px, norm=norm))
    config = PretrainConfig(target="kmeans", codebook=str(file), tubelet=tubelet, patch_px=patch_px, **SETTINGS)
    target, grid = KMeans.of(config), config.grid
    frames_BCTHW = frames_BCTHW[:2]
    mask_BN = torch.zeros(2, grid.num_tokens, dtype=torch.bool)
    mask_BN[0, 1::2] = mask_BN[1, ::2] = True
    _, masked_BM = split_mask(mask_BN, grid.num_tokens // 2)
    values, is_valid = target.values({"frames_BCTHW": frames_BCTHW}, masked_BM)
    assert is_valid is None
    assert values.shape == (2, grid.num_tokens // 2, tubelet)
    assert len(values.unique()) > 2
    codebook = Codebook(centres_KP=target.centres_KP.numpy(), patch_px=patch_px, norm=norm)
    for b in range(2):
        for m, token in enumerate(masked_BM[b].tolist()):
            t, h, w = np.unravel_index(token, (grid.t, grid.h, grid.w))
            place = slice(h * patch_px, (h + 1) * patch_px), slice(w * patch_px, (w + 1) * patch_px)
            patches_NHWC = frames_BCTHW[b, :, t * tubelet : (t + 1) * tubelet, *place].permute(1, 2, 3, 0).numpy()
            assert values[b, m].tolist() == codebook.codes(patches_NHWC).tolist()


def test_the_loss_is_the_mean_cross_entropy_of_the_frames(tmp_path: Path) -> None:
    target = KMeans.of(PretrainConfig(target="kmeans", codebook=book(tmp_path / "a.npz"), **SETTINGS))
    assert target.width == 12
    output_BMP, codes_BMT = torch.randn(2, 3, 12), torch.randint(6, (2, 3, 2))
    losses = []
    for b in range(2):
        for m in range(3):
            for frame in range(2):
                logits_K = output_BMP[b, m, 6 * frame : 6 * frame + 6]
                losses.append(-torch.log(logits_K.exp() / logits_K.exp().sum())[codes_BMT[b, m, frame]])
    expected = float(torch.stack(losses).mean())
    assert target.loss(output_BMP, codes_BMT, None).item() == pytest.approx(expected, rel=1e-5)


def test_codes_do_not_depend_on_the_precision_of_the_model(tmp_path: Path) -> None:
    target = KMeans.of(PretrainConfig(target="kmeans", codebook=book(tmp_path / "a.npz", 200), **SETTINGS))
    frames_BCTHW = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (2, 3, 4, 32, 32)).astype(np.uint8))
    masked_BM = torch.arange(8).expand(2, -1)
    codes, _ = target.values({"frames_BCTHW": frames_BCTHW}, masked_BM)
    with torch.autocast("cpu", torch.bfloat16):
        same, _ = target.values({"frames_BCTHW": frames_BCTHW}, masked_BM)
    assert torch.equal(codes, same)


def toy_job(run: Path, codebook: str, epochs: int, signal_at: int = -1, **changes: Any) -> Job:
    settings: dict[str, Any] = {"target": "kmeans", "codebook": codebook, "batch_size": 8, "epochs": epochs}
    settings |= {"warmup_epochs": 2, "base_lr": 0.15, "num_workers": 0, "precision": "fp32", "device": "cpu"}
    config = PretrainConfig(**(settings | {"log_every_steps": 1} | SETTINGS | changes))
    targets = make_targets(config)
    shape = replace(TOY, outputs=pretrain_shape(config, targets).outputs)
    return Job(
        task="pretrain",
        config=config,
        model=build(lambda: VideoMAE(shape), config.seed),
        objective=PretrainObjective.of(config, targets),
        dataset=MovingStripes(signal_at=signal_at),
        run=RunFolder(run),
        **SAVING_OFTEN,
    )


@pytest.mark.usefixtures("one_thread")
def test_a_toy_learns_more_than_how_frequent_the_codes_are(tmp_path: Path) -> None:
    job = toy_job(tmp_path / "run", book(tmp_path / "a.npz"), epochs=60)
    frames_BCTHW = torch.stack([job.dataset[0, index][0]["frames_CTHW"] for index in range(8)])
    target = KMeans.of(job.config)  # type: ignore[arg-type]
    codes, _ = target.values({"frames_BCTHW": frames_BCTHW}, torch.arange(8).expand(8, -1))
    frequency_K = np.bincount(codes.flatten(), minlength=6) / codes.numel()
    by_frequency = -sum(share * np.log(share) for share in frequency_K if share)
    assert by_frequency > 0.5
    train(job, CPU)
    assert np.mean(losses_of(tmp_path / "run")[-5:]) < 0.8 * by_frequency


@pytest.mark.usefixtures("one_thread")
def test_a_stopped_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    file = book(tmp_path / "a.npz")
    target = "pixels+kmeans:0.1"
    train(toy_job(tmp_path / "whole", file, 6, target=target), CPU)
    stopped = train(toy_job(tmp_path / "parts", file, 6, signal_at=20, target=target), CPU)
    assert 0 < stopped.num_steps < 6
    train(toy_job(tmp_path / "parts", file, 6, target=target), CPU)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_run_goes_on_with_the_same_codebook_only(pan_store: Store, tmp_path: Path) -> None:
    config = PretrainConfig(target="kmeans", codebook=book(tmp_path / "a.npz"), model="vit_tiny", **SETTINGS)
    one = pretrain_job(pan_store.path, tmp_path / "run", config, SILENT).inputs
    book(tmp_path / "a.npz", norm="patch")
    other = pretrain_job(pan_store.path, tmp_path / "run", config, SILENT).inputs
    assert one.keys() == other.keys() == {"codebook"}
    assert one != other


def test_wrong_files_and_missing_options_are_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="codebook is '' but must be a file for the target kmeans"):
        PretrainConfig(target="kmeans")
    with pytest.raises(UserError, match="codebook is 'a' but must be"):
        PretrainConfig(codebook="a")
    config = PretrainConfig(target="kmeans", codebook=str(tmp_path / "none.npz"))
    with pytest.raises(UserError, match="there is no codebook"):
        make_targets(config)
    with pytest.raises(UserError, match=r"patches of 8 px, but patch-px is 16.*--patch-px 16"):
        make_targets(config.replace(codebook=book(tmp_path / "a.npz", patch_px=8)))
