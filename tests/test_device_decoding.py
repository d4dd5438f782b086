"""Frames that the device decodes, with torchvision's CPU decoder in the place of nvJPEG, against the workers' own."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from toy import needs_cuda

from mgm_prep.config import ExtractSettings
from mgm_prep.extraction.extract import extract
from mgm_shared.errors import UserError
from mgm_shared.geometry import Box
from mgm_shared.progress import SILENT
from mgm_shared.store import Store, open_store
from mgm_train import finetune, pretrain
from mgm_train.checkpoint.run_folder import RunFolder
from mgm_train.config import DecodeOn, FinetuneConfig, PretrainConfig
from mgm_train.data import decode_share, device_decoding
from mgm_train.data.augmentation.augment import FinetuneAugment
from mgm_train.data.clips import ClipDataset, LabelledDataset, collate
from mgm_train.data.decode_share import DecodeRates, measure_decoding
from mgm_train.data.device_decoding import JPEG_BYTES, check_device_decoding, decode_batch, show_on_device
from mgm_train.data.loader import Plan, ToDevice, collate_counted, make_loader
from mgm_train.data.packed_batch import Packed
from mgm_train.data.views import View, read_views
from mgm_train.runtime.distributed import Distributed
from mgm_train.tasks import device_work
from mgm_train.tasks.pretrain import pretrain_dataset
from mgm_train.training import loop

CPU = torch.device("cpu")
# The library of the decoder is the same; the resizing of OpenCV rounds its weights to 1/2048.
TOLERANCE = 1
TINY: dict[str, Any] = {
    "model": "vit_tiny", "num_frames": 4, "stride": 2, "image_px": 64, "batch_size": 2, "epochs": 2, "warmup_epochs": 1,
    "num_workers": 0, "precision": "fp32", "log_every_steps": 1, "compile": False,
}  # fmt: skip


def shown(video: Any, indices_T: Any, view: View, device: torch.device = CPU) -> Tensor:
    """A view by the device's functions."""
    jpegs = [torch.frombuffer(bytearray(jpeg), dtype=torch.uint8) for jpeg in video.stored_pictures(indices_T)]
    return show_on_device(device_decoding.decode_jpegs(jpegs, device), view)


VIEWS = [
    View(box=Box(x=16, y=8, width=64, height=64), size_px=64),
    View(box=Box(x=16, y=8, width=64, height=64), size_px=64, is_mirrored=True),
    View(box=Box(x=0, y=0, width=160, height=128), size_px=96),
    View(box=Box(x=30, y=22, width=100, height=84), size_px=112, is_mirrored=True),
    # By area: 160 × 128 to less than half.
    View(box=Box(x=0, y=0, width=160, height=128), size_px=56),
]


@pytest.mark.parametrize("view", VIEWS, ids=str)
def test_a_view_is_that_of_the_workers(pan_store: Store, view: View) -> None:
    video, indices_T = pan_store[0], np.array([2, 5, 5, 9])
    (expected_CTHW,) = read_views(video, indices_T, [view])
    difference = np.abs(shown(video, indices_T, view).numpy().astype(int) - expected_CTHW)
    assert difference.max() <= TOLERANCE
    assert difference.mean() < 0.2


def pretraining(store: Store, share: float, **options: Any) -> ClipDataset:
    dataset = pretrain_dataset(store, PretrainConfig(num_frames=4, stride=2, image_px=64, **options))
    dataset.device_share = share
    return dataset


def finetuning(store: Store, share: float) -> ClipDataset:
    augment = FinetuneAugment(size_px=64, random_erasing=1.0, is_on_device=True)
    classes = ["down", "left", "right", "up"]
    return LabelledDataset(
        store, num_frames=4, stride=2, augment=augment, repeats=2, classes=classes, device_share=share
    )


@pytest.mark.parametrize("make", [pretraining, finetuning])
def test_a_batch_is_that_of_the_workers(pan_store: Store, make: Callable[..., ClipDataset]) -> None:
    """All but the pixels is equal: masks, labels, what is still to be changed. No frame is decoded in the worker."""
    of_worker, encoded = (
        collate([dataset[1, k] for k in range(4)]) for dataset in (make(pan_store, s) for s in (0, 1))
    )
    assert "frames_BCTHW" not in encoded
    batch = decode_batch(encoded, CPU)
    assert batch.keys() == of_worker.keys()
    difference = (batch["frames_BCTHW"].int() - of_worker["frames_BCTHW"].int()).abs()
    assert difference.max() <= TOLERANCE
    for name in {"mask_BN", "label_B", "index_B"} & batch.keys():
        assert torch.equal(batch[name], of_worker[name]), name
    assert batch.get("changes_B") == of_worker.get("changes_B")


def test_bytes_are_sent_once_for_all_repeats_and_repeated_frames(pan_store: Store) -> None:
    """A clip of 24 frames at stride 2 repeats frames in a video of 24; two clips show the same ones."""
    dataset = pretrain_dataset(
        pan_store, PretrainConfig(num_frames=32, stride=1, image_px=64, repeats=2, short_videos="repeat")
    )
    dataset.device_share = 1.0
    batch = collate([dataset[0, 0]])
    video = pan_store.video_at(int(dataset.rows[0]))
    assert len(batch[JPEG_BYTES]) == sum(map(len, video.stored_pictures(np.arange(24))))
    frames_BCTHW = decode_batch(batch, CPU)["frames_BCTHW"]
    assert frames_BCTHW.shape == (2, 3, 32, 64, 64)
    assert torch.equal(frames_BCTHW[:, :, 23], frames_BCTHW[:, :, 31])


def test_a_share_of_the_samples_is_decoded_on_the_device(pan_store: Store) -> None:
    """Which ones depends on the key alone; the others keep the workers' pixels, and all keep their places."""
    dataset, on_cpu = pretraining(pan_store, 0.5), pretraining(pan_store, 0.0)
    keys = [(epoch, k) for epoch in range(50) for k in range(4)]
    is_encoded = [dataset._is_decoded_on_device(key) for key in keys]
    assert 80 < sum(is_encoded) < 120
    assert is_encoded == [pretraining(pan_store, 0.5)._is_decoded_on_device(key) for key in keys]
    more = [pretraining(pan_store, 0.8)._is_decoded_on_device(key) for key in keys]
    assert all(later for was, later in zip(is_encoded, more, strict=True) if was)
    chosen = [keys[is_encoded.index(True)], keys[is_encoded.index(False)], *keys[:6]]
    batch = decode_batch(collate([dataset[key] for key in chosen]), CPU)
    expected = collate([on_cpu[key] for key in chosen])
    for key, ours, theirs in zip(chosen, batch["frames_BCTHW"], expected["frames_BCTHW"], strict=True):
        assert (ours.int() - theirs.int()).abs().max() <= TOLERANCE
        if not dataset._is_decoded_on_device(key):
            assert torch.equal(ours, theirs)
    assert torch.equal(batch["mask_BN"], expected["mask_BN"])


def test_an_unreadable_clip_stays_blank_and_is_changed_by_nothing(pan_store: Store, monkeypatch: Any) -> None:
    from mgm_train.data import clips

    dataset = finetuning(pan_store, 1.0)
    whole = dataset[0, 1]

    def fail(*arguments: Any, **options: Any) -> Any:
        raise OSError("damaged")

    monkeypatch.setattr(clips, "read_encoded_clips", fail)
    for order in ([dataset[0, 0], whole], [whole, dataset[0, 0]]):
        batch = decode_batch(collate(order), CPU)
        blank = batch["frames_BCTHW"][:2] if order[1] is whole else batch["frames_BCTHW"][2:]
        assert blank.max() == 0
        assert batch["kept_K"].tolist() == ([2, 3] if order[1] is whole else [0, 1])
        assert sum(len(change.operations) for change in batch["changes_B"]) > 0


def test_the_bytes_are_pinned_and_stay_on_the_cpu(pan_store: Store, monkeypatch: Any) -> None:
    """A GPU's part, as far as it can be seen without one: all tensors of the batch are pinned, the bytes too."""
    packed = Packed(collate_counted([pretraining(pan_store, 0.5)[0, k] for k in range(4)]))
    pinned: list[int] = []

    def pin(tensor: Tensor) -> Tensor:
        pinned.append(tensor.data_ptr())
        return tensor

    monkeypatch.setattr(Tensor, "pin_memory", pin)
    batch = packed.pin_memory()
    assert {value.data_ptr() for value in batch.values() if isinstance(value, Tensor)} == set(pinned)
    move = ToDevice(CPU)
    move.device = torch.device("meta")
    assert move._moved("mask_BN", batch["mask_BN"]).device.type == "meta"
    assert move._moved(JPEG_BYTES, batch[JPEG_BYTES]).device.type == "cpu"


@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_change_nothing(pan_store: Store, num_workers: int) -> None:
    plan = Plan(num_videos=4, batch_size=2, grad_accum_steps=1, repeats=1, epochs=2, seed=0)
    cpu = Distributed(device=CPU)
    dataset = pretraining(pan_store, 0.5)
    read: list[list[Tensor]] = []
    for number in (0, num_workers):
        batches = (b.unpack() if isinstance(b, Packed) else b for b in make_loader(dataset, plan, 0, cpu, number))
        read.append([ToDevice(CPU)(batch)["frames_BCTHW"] for batch in batches])
    assert all(torch.equal(one, other) for one, other in zip(*read, strict=True))


def with_stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the CPU decode what a GPU would."""
    monkeypatch.setattr(device_work, "check_device_decoding", lambda device: None)


@pytest.mark.parametrize("decode_on", ["cuda", "hybrid"])
def test_a_run_goes_on_bit_for_bit(
    pan_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decode_on: Any
) -> None:
    """Also where the share was measured: a later start takes the recorded one, whatever it would measure."""
    with_stand_in(monkeypatch)
    measured = iter([DecodeRates(decoded_s=1.0, read_s=0.0, on_device_s=1.0), None])
    monkeypatch.setattr(device_work, "measure_decoding", lambda dataset, device: next(measured))
    config = PretrainConfig(decode_on=decode_on, **TINY)
    whole = pretrain(pan_store.path, tmp_path / "whole", config)
    assert whole.is_complete
    if decode_on == "hybrid":
        assert "decode_share: 0.5" in (tmp_path / "whole" / "config.yaml").read_text()
        config = config.replace(decode_share=0.5)

    halves = tmp_path / "halves"
    with monkeypatch.context() as patch:
        patch.setattr(loop, "is_stop_agreed", lambda stop, distributed, is_meeting: True)
        assert not pretrain(pan_store.path, halves, config).is_complete
    if decode_on == "hybrid":
        config = config.replace(decode_share="auto")
    assert pretrain(pan_store.path, halves, config).is_complete
    runs = [RunFolder(folder).weights(2).read_bytes() for folder in (tmp_path / "whole", halves)]
    assert runs[0] == runs[1]


def test_finetuning_runs_and_differs_little_from_the_workers(
    pan_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_stand_in(monkeypatch)
    losses = []
    for share in (0.0, 1.0):
        config = FinetuneConfig(decode_on="hybrid", decode_share=share, random_erasing=1.0, **TINY)
        losses.append(finetune(pan_store.path, tmp_path / f"run-{share}", config).last_loss)
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], abs=2e-3)


def test_the_share_makes_both_sides_equally_slow() -> None:
    """By hand: 4 processes, 12 ms to decode, 2 ms to read, 1 ms on the GPU."""
    share = DecodeRates(decoded_s=0.012, read_s=0.002, on_device_s=0.001).share(4)
    assert share == 0.86
    assert ((1 - share) * 12 + share * 2) / 4 == pytest.approx(share * 1, rel=0.02)
    assert DecodeRates(decoded_s=0.012, read_s=0.012, on_device_s=1e-6).share(1) == 1
    assert DecodeRates(decoded_s=0.012, read_s=0.002, on_device_s=1.0).share(0) == 0.01
    assert DecodeRates(decoded_s=0.012, read_s=0.02, on_device_s=0.001).share(2) == 1


def test_rates_are_measured(pan_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_share, "NUM_ROUNDS", 1)
    dataset = pretraining(pan_store, 0.3)
    rates = measure_decoding(dataset, CPU)
    assert min(rates.decoded_s, rates.read_s, rates.on_device_s) > 0
    assert dataset.device_share == 0.3


def test_what_is_missing_is_said_in_one_line(
    pan_store: Store, pan_videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="need a GPU, and torch sees none; set decode-on to cpu or auto"):
        pretrain(pan_store.path, tmp_path / "run", PretrainConfig(decode_on="cuda", **TINY))

    def fail(jpegs: Any, device: Any) -> Any:
        raise RuntimeError("decode_jpegs_cuda: torchvision not compiled with nvJPEG support\nmore")

    monkeypatch.setattr(device_decoding, "decode_jpegs", fail)
    with pytest.raises(
        UserError, match=r"\(decode_jpegs_cuda: torchvision not compiled with nvJPEG support\); install"
    ):
        check_device_decoding(torch.device("cuda"))
    monkeypatch.undo()
    with_stand_in(monkeypatch)
    planes = tmp_path / "planes.store"
    extract(pan_videos, planes, ExtractSettings(frame_codec="planes"))
    with pytest.raises(UserError, match="decode-on hybrid needs JPEG frames, but this store has planes"):
        pretrain(planes, tmp_path / "other", PretrainConfig(decode_on="hybrid", **TINY))
    dataset = pretraining(open_store(planes), 1.0)
    with pytest.raises(ValueError, match="stored as planes, not as JPEG"):
        dataset[0, 0]


def test_torchvision_without_the_function(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a version that has dropped its deprecated decoders."""
    monkeypatch.setitem(sys.modules, "torchvision.io", None)
    with pytest.raises(UserError, match="torchvision cannot decode JPEG on this GPU"):
        check_device_decoding(torch.device("cuda"))


def test_options_that_exclude_each_other() -> None:
    with pytest.raises(UserError, match="decode-on is 'cuda' but must be auto or cpu with device cpu"):
        PretrainConfig(decode_on="cuda", device="cpu")
    with pytest.raises(UserError, match="auto or cpu with guidance clean"):
        PretrainConfig(decode_on="hybrid", guidance="clean")
    with pytest.raises(UserError, match="augment-on is 'cpu' but must be auto or cuda with decode-on cuda"):
        FinetuneConfig(decode_on="cuda", augment_on="cpu")
    expected: dict[DecodeOn, bool] = {"auto": False, "cpu": False, "cuda": True, "hybrid": True}
    for decode_on, is_on_device in expected.items():
        assert FinetuneAugment.of(FinetuneConfig(decode_on=decode_on)).is_on_device == is_on_device
    with pytest.raises(UserError, match="decode-share"):
        PretrainConfig(decode_share=1.5)


@needs_cuda
@pytest.mark.parametrize("view", VIEWS, ids=str)
def test_nvjpeg_shows_what_the_workers_show(pan_store: Store, view: View) -> None:
    """nvJPEG interpolates the chroma in its own way."""
    gpu = torch.device("cuda")
    check_device_decoding(gpu)
    (expected_CTHW,) = read_views(pan_store[0], np.array([2, 9]), [view])
    first, again = (shown(pan_store[0], np.array([2, 9]), view, gpu).cpu() for _ in range(2))
    assert torch.equal(first, again)
    assert np.abs(first.numpy().astype(int) - expected_CTHW).mean() < 3


@needs_cuda
def test_a_run_on_a_gpu_decodes_there(pan_store: Store, tmp_path: Path) -> None:
    options = TINY | {"num_workers": 1}
    places: tuple[DecodeOn, ...] = ("cuda", "hybrid")
    for decode_on in places:
        config = PretrainConfig(decode_on=decode_on, **options)
        assert pretrain(pan_store.path, tmp_path / decode_on, config, progress=SILENT).is_complete
