"""The count of operations against torch's own counter, on real forward and backward passes."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from toy import CPU, TOY, pretrain_job

from mgm_train.checkpoint.run_folder import RunFolder
from mgm_train.config import PretrainConfig
from mgm_train.model_config import ModelConfig
from mgm_train.models.flops import (
    BF16_PEAKS,
    Peak,
    epoch_flops,
    finetune_flops,
    forward_flops,
    matmul_rate,
    mean_flops,
    mean_gmacs,
    peak,
    pretrain_flops,
)
from mgm_train.models.videomae import VideoClassifier, VideoMAE
from mgm_train.training.loop import train

LOPSIDED = ModelConfig(
    name="lopsided",
    width=48,
    depth=3,
    num_heads=3,
    decoder_width=32,
    decoder_depth=2,
    decoder_num_heads=2,
    num_frames=4,
    image_px=48,
)


def _counted(model: torch.nn.Module, *inputs: object) -> Any:
    # The fused attention computes its scores again on the way back, which MFU does not count.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(*inputs).sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("num_masked", [5, 12])
@pytest.mark.parametrize("config", [TOY, LOPSIDED], ids=lambda config: config.name)
def test_pretraining_count_is_torchs(config: ModelConfig, num_masked: int) -> None:
    num_masked = min(num_masked, config.grid.num_tokens - 1)
    generator = torch.Generator().manual_seed(0)
    frames_BCTHW = torch.zeros(2, 3, config.num_frames, config.image_px, config.image_px, dtype=torch.uint8)
    num_tokens = config.grid.num_tokens
    mask_BN = torch.stack([torch.randperm(num_tokens, generator=generator) < num_masked for _ in range(2)])
    assert 2 * pretrain_flops(config, num_masked) == _counted(VideoMAE(config), frames_BCTHW, mask_BN, num_masked)


@pytest.mark.parametrize("decoder", ["joint", "cross"])
@pytest.mark.parametrize(("num_masked", "num_left_out"), [(12, 0), (6, 0), (6, 6), (1, 9)])
def test_pretraining_count_with_tokens_left_out_is_torchs(decoder: str, num_masked: int, num_left_out: int) -> None:
    config = dataclasses.replace(LOPSIDED, decoder=decoder)
    frames_BCTHW = torch.zeros(1, 3, 4, 48, 48, dtype=torch.uint8)
    roles_1N = torch.zeros(1, config.grid.num_tokens, dtype=torch.int8)
    roles_1N[0, :num_masked], roles_1N[0, num_masked : num_masked + num_left_out] = 1, -1
    counted = _counted(VideoMAE(config), frames_BCTHW, roles_1N, num_masked, num_left_out)
    assert pretrain_flops(config, num_masked, num_left_out) == counted


@pytest.mark.parametrize(("num_predicted", "gmacs"), [(1408, 35.48), (784, 25.87)])
def test_videomaes_own_numbers(num_predicted: int, gmacs: float) -> None:
    """Table 1 of VideoMAE V2 (2023), in which all tokens are embedded, and the decoder's last block computes the
    visible tokens too. At a half the decoder gets 784 mask tokens, 80 of them at visible places.
    """
    config = PretrainConfig(mask="tube", mask_ratio=0.9)
    ours = forward_flops(config.shape, num_predicted, 1568 - 160 - num_predicted)
    all_embedded = 1568 * 1536 * 768 / 1e9
    seen_in_last_block = 160 * (10 * 384**2 + 2 * 384 * (160 + num_predicted)) / 1e9
    theirs = (ours.encoder + ours.decoder) / 2e9 + all_embedded + seen_in_last_block
    assert theirs == pytest.approx(gmacs, rel=0.01)
    assert mean_gmacs(config) == pytest.approx(forward_flops(config.shape, 1408).gmacs)


def test_a_schedule_adds_up_its_stages() -> None:
    config = PretrainConfig(image_px_schedule="128@0,224@0.8", epochs=10, warmup_epochs=0)
    small, large = (PretrainConfig(image_px=image_px) for image_px in (128, 224))
    (small_flops, *_), (large_flops, *_) = epoch_flops(small), epoch_flops(large)
    assert epoch_flops(config) == [small_flops] * 8 + [large_flops] * 2
    assert mean_flops(config) == pytest.approx(0.8 * small_flops + 0.2 * large_flops)
    assert mean_gmacs(config) == pytest.approx(0.8 * mean_gmacs(small) + 0.2 * mean_gmacs(large))


@pytest.mark.parametrize("attention", ["joint", "divided"])
def test_finetuning_count_is_torchs(attention: str) -> None:
    config = dataclasses.replace(LOPSIDED, attention=attention)
    frames_BCTHW = torch.zeros(2, 3, 4, 48, 48, dtype=torch.uint8)
    assert 2 * finetune_flops(config, 7) == _counted(VideoClassifier(config, 7), frames_BCTHW)


def test_vit_base_is_videomaes_180_gigaflops_forward() -> None:
    """The paper of VideoMAE gives 180 for a view of ViT-B, where a multiplication with its addition is one."""
    from mgm_train.model_config import model_config

    assert finetune_flops(model_config("vit_base"), 400) / 3 / 2 == pytest.approx(180e9, rel=0.03)


def test_the_peak_is_measured_where_no_data_sheet_is_known() -> None:
    measured = peak(CPU.device, torch.float32)
    assert measured.source == "measured"
    assert 1e9 < measured.flops_per_s < 1e14
    assert matmul_rate(CPU.device, torch.float32, side=256) > 1e9


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA A10G", "A10G"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA GH200 480GB", "GH200"),
    ],
)
def test_a_gpu_is_found_by_its_name(name: str, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    peak.cache_clear()
    found = peak(torch.device("cuda", 0), torch.bfloat16)
    peak.cache_clear()
    assert found == Peak(flops_per_s=BF16_PEAKS[part], source=f"data sheet of {part}")


def test_mfu_is_operations_over_time_over_the_peak(tmp_path: Path) -> None:
    train(pretrain_job(tmp_path, flops_per_clip=1_000_000), CPU)
    row = RunFolder(tmp_path).read_metrics()[3]
    flops_per_s = json.loads((tmp_path / "environment.json").read_text())["peak_flops"]["flops_per_s"]
    assert row["mfu"] == pytest.approx(1e6 * row["clips_per_s"] / flops_per_s)
    assert row["gpu_memory_gib"] is None
