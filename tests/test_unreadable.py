"""Videos that cannot be read in training: named, counted, without a share in the loss, and too many end the run."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from timm.data.mixup import Mixup
from toy import CPU, MovingStripes, assert_same_run, losses_of, pretrain_job, run_processes, toy_config

from mgm_shared.errors import UserError
from mgm_shared.shard_reader import ShardedArray
from mgm_shared.store import Store, open_store
from mgm_train.checkpoint.run_folder import RunFolder
from mgm_train.config import PretrainConfig
from mgm_train.data.augmentation.augment import FinetuneAugment
from mgm_train.data.clips import LabelledDataset, PretrainDataset, collate
from mgm_train.runtime.distributed import init_distributed
from mgm_train.tasks.pretrain import pretrain_dataset
from mgm_train.training.loop import train
from mgm_train.training.losses import FinetuneObjective, PretrainObjective


@dataclass
class Damaged(MovingStripes):
    """The toy's videos, of which some cannot be read."""

    bad: tuple[int, ...] = (3,)

    def __getitem__(self, key: Any) -> Any:
        samples = super().__getitem__(key)
        if key[1] in self.bad:
            for sample in samples:
                sample |= {
                    "frames_CTHW": torch.zeros(3, 4, 32, 32, dtype=torch.uint8),
                    "unreadable": (f"{key[1]}.mp4", "checksum mismatch"),
                }
        return samples


def _damage_first_frame(array: ShardedArray, index: int) -> None:
    """Flip the bits of a byte of a stored frame."""
    place = array._place(index)
    with open(place.path, "r+b") as file:
        file.seek(place.offset + 40)
        (byte,) = file.read(1)
        file.seek(place.offset + 40)
        file.write(bytes([byte ^ 255]))


@pytest.fixture
def damaged_store(pan_store: Store, tmp_path: Path) -> Store:
    """A copy of the store in which every frame of train/left/0.mp4 is damaged."""
    shutil.copytree(str(pan_store.path), tmp_path / "damaged.store")
    store = open_store(tmp_path / "damaged.store")
    video = store["train/left/0.mp4"]
    for index in range(24):
        _damage_first_frame(video.frames.array, video.record["start"] + index)
    return store


def _pretrain(store: Any) -> PretrainDataset:
    return pretrain_dataset(store, PretrainConfig(num_frames=8, stride=2, image_px=64, repeats=2))


def test_a_damaged_video_is_named_and_blank_and_the_others_are_as_they_were(
    damaged_store: Store, pan_store: Store
) -> None:
    dataset, whole = _pretrain(damaged_store), _pretrain(pan_store)
    videos = [damaged_store.video_at(row).video_id for row in dataset.rows]
    bad = videos.index("train/left/0.mp4")
    batch = collate([dataset[0, index] for index in range(4)])
    expected = collate([whole[0, index] for index in range(4)])
    assert list(batch["unreadable"]) == ["train/left/0.mp4"]
    assert "checksum mismatch" in batch["unreadable"]["train/left/0.mp4"]
    assert batch["kept_K"].tolist() == [k for k in range(8) if k // 2 != bad]
    kept_K = batch["kept_K"]
    for name in ("frames_BCTHW", "mask_BN"):
        assert batch[name].shape == expected[name].shape
        assert torch.equal(batch[name][kept_K], expected[name][kept_K])
    assert not batch["frames_BCTHW"][2 * bad : 2 * bad + 2].any()
    assert batch["mask_BN"].sum(1).unique().numel() == 1
    assert "kept_K" not in expected
    assert "unreadable" not in expected


def test_a_damaged_labelled_video_is_blank_too(damaged_store: Store) -> None:
    dataset = LabelledDataset(
        damaged_store,
        num_frames=8,
        stride=2,
        augment=FinetuneAugment(size_px=32),
        classes=["down", "left", "right", "up"],
    )
    (sample,) = dataset[0, 1]
    assert sample["unreadable"][0] == "train/left/0.mp4"
    assert sample["label"] == 1
    assert not sample["frames_CTHW"].any()


def _batch(bad: tuple[int, ...], num_clips: int = 1) -> dict[str, Any]:
    batch = collate([Damaged(num_clips, bad=bad)[0, index] for index in range(4)])
    return batch | {"num_masked": 6}


@pytest.mark.parametrize("bad", [(0,), (1, 2), (0, 1, 2, 3)])
def test_a_blank_clip_adds_no_loss_and_changes_no_other_s(tmp_path: Path, bad: Any) -> None:
    model: Any = pretrain_job(tmp_path).model
    whole, batch = _batch(()), _batch(bad)
    loss = PretrainObjective()(model, batch, 0)
    loss.backward()
    gradient = model.encoder.patch_embed.proj.weight.grad.clone()
    model.zero_grad()
    alone = [{key: value[k : k + 1] for key, value in whole.items() if key != "num_masked"} for k in range(4)]
    expected: Any = sum(
        PretrainObjective()(model, clip | {"num_masked": 6}, 0) for k, clip in enumerate(alone) if k not in bad
    )
    if len(bad) == 4:
        assert loss == 0
        assert not gradient.any()
        return
    torch.testing.assert_close(loss, expected / 4)
    (expected / 4).backward()
    torch.testing.assert_close(gradient, model.encoder.patch_embed.proj.weight.grad)


def test_a_clip_that_was_mixed_with_a_blank_one_does_not_count() -> None:
    weight = torch.randn(3 * 4 * 32 * 32, 2, generator=torch.Generator().manual_seed(0)) / 100

    def model(frames_BCTHW: Any) -> Any:
        frames_BCTHW = frames_BCTHW.float() / 255 if frames_BCTHW.dtype == torch.uint8 else frames_BCTHW
        return frames_BCTHW.flatten(1) @ weight

    mixed: Any = FinetuneObjective(mixup=Mixup(num_classes=2, cutmix_alpha=1), hard_loss=torch.nn.CrossEntropyLoss())
    plain: Any = FinetuneObjective(mixup=None, hard_loss=torch.nn.CrossEntropyLoss())
    whole, batch = _batch(()), _batch((0,))
    per_clip = torch.nn.CrossEntropyLoss(reduction="none")
    expected = per_clip(model(whole["frames_BCTHW"]), whole["label_B"])
    torch.testing.assert_close(plain(model, batch, 0), expected[1:].sum() / 4)
    # Clip 0 is mixed with clip 3: what is left are 1 and 2, which are mixed with each other.
    others = _batch((0, 3))
    torch.testing.assert_close(mixed(model, batch, 0), mixed(model, others, 0))
    assert mixed(model, batch, 0) > 0
    assert mixed(model, _batch((0, 1)), 0) == 0


def test_the_first_unreadable_video_ends_a_run_that_allows_none(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"1 videos cannot be read, 0 may be \(max-unreadable-videos\).*'3\.mp4': checksum"
    ):
        train(pretrain_job(tmp_path, dataset=Damaged()), CPU)


def test_unreadable_videos_are_named_once_counted_and_do_not_end_a_run_that_allows_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = train(pretrain_job(tmp_path, toy_config(max_unreadable_videos=2), Damaged(bad=(3, 5))), CPU)
    assert outcome.is_complete
    rows = RunFolder(tmp_path).read_metrics()
    named = [row["unreadable"] for row in rows if "unreadable" in row]
    assert sorted(named) == ["3.mp4", "5.mp4"]
    assert [row["num_unreadable"] for row in rows if "loss" in row][-1] == 2
    assert capsys.readouterr().err.count("cannot be read and is left out: checksum mismatch") == 2
    assert np.isfinite(losses_of(tmp_path)).all()


def test_a_run_with_an_unreadable_video_goes_on_bit_for_bit_and_remembers_it(tmp_path: Path) -> None:
    config = toy_config(max_unreadable_videos=1)
    train(pretrain_job(tmp_path / "whole", config, Damaged()), CPU)
    assert not train(pretrain_job(tmp_path / "parts", config, Damaged(signal_at=10)), CPU).is_complete
    train(pretrain_job(tmp_path / "parts", config, Damaged()), CPU)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    train(pretrain_job(tmp_path / "worker", toy_config(max_unreadable_videos=1, num_workers=1), Damaged()), CPU)
    assert losses_of(tmp_path / "whole") == losses_of(tmp_path / "worker")
    assert not train(pretrain_job(tmp_path / "worse", config, Damaged(signal_at=10)), CPU).is_complete
    with pytest.raises(UserError, match=r"2 videos cannot be read"):
        train(pretrain_job(tmp_path / "worse", config, Damaged(bad=(5,))), CPU)
    # More may be allowed when it goes on.
    train(pretrain_job(tmp_path / "worse", toy_config(max_unreadable_videos=2), Damaged(bad=(5,))), CPU)


def _train_damaged(run: Path, max_unreadable_videos: int) -> None:
    with init_distributed("cpu") as distributed:
        try:
            train(
                pretrain_job(run, toy_config(max_unreadable_videos=max_unreadable_videos), Damaged(bad=(3, 5))),
                distributed,
            )
        except UserError as error:
            print(error, file=run.with_suffix(f".{distributed.rank}").open("w"))


def test_two_processes_count_together(tmp_path: Path) -> None:
    train(pretrain_job(tmp_path / "one", toy_config(max_unreadable_videos=2), Damaged(bad=(3, 5))), CPU)
    assert run_processes(2, _train_damaged, tmp_path / "two", 2) == [0, 0]
    assert losses_of(tmp_path / "two") == pytest.approx(losses_of(tmp_path / "one"), abs=1e-5)
    assert run_processes(2, _train_damaged, tmp_path / "few", 1) == [0, 0]
    said = [tmp_path.joinpath(f"few.{rank}").read_text() for rank in range(2)]
    assert said[0] == said[1]
    assert "2 videos cannot be read, 1 may be" in said[0]
