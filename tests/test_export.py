"""Our models against transformers', with the same weights, input and mask: the independent oracle of model and loss.

Every weight and every bias is random, so that a forgotten one shows.
"""

import dataclasses
from typing import Any

import pytest
import torch
from pixel_error import pixel_error
from torch import nn

from mgm_shared.errors import UserError
from mgm_train.checkpoint.transformers import to_transformers_state, transformers_config
from mgm_train.model_config import ModelConfig
from mgm_train.models.videomae import VideoClassifier, VideoMAE, normalise

transformers = pytest.importorskip("transformers")

TWO_LAYERS = ModelConfig(
    name="two_layers",
    width=48,
    depth=2,
    num_heads=3,
    decoder_width=24,
    decoder_depth=2,
    decoder_num_heads=2,
    num_frames=4,
    image_px=48,
)
NUM_MASKED = 12
by_patch = pytest.mark.parametrize(("patch_px", "tubelet"), [(16, 2), (8, 1), (16, 1), (8, 2)])


def _randomise(model: nn.Module, generator: torch.Generator) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)


def _clips(generator: torch.Generator, num_tokens: int = 18) -> tuple[torch.Tensor, torch.Tensor]:
    frames_BCTHW = torch.randint(0, 256, (3, 3, 4, 48, 48), generator=generator, dtype=torch.uint8)
    mask_BN = torch.zeros(3, num_tokens, dtype=torch.bool)
    for mask_N in mask_BN:
        mask_N[torch.randperm(num_tokens, generator=generator)[:NUM_MASKED]] = True
    return frames_BCTHW, mask_BN


def _as_transformers(model: nn.Module, config: ModelConfig, is_classifier: bool) -> nn.Module:
    name = "VideoMAEForVideoClassification" if is_classifier else "VideoMAEForPreTraining"
    settings = transformers_config(config, is_classifier=is_classifier)
    theirs = getattr(transformers, name)(transformers.VideoMAEConfig(**settings, num_labels=5))
    theirs.load_state_dict(to_transformers_state(model.state_dict()), strict=True)
    # transformers has no setting for these two; VideoMAE's own code has 1e-6.
    (theirs.fc_norm if is_classifier else theirs.decoder.norm).eps = 1e-6
    theirs.eval()
    assert isinstance(theirs, nn.Module)
    return theirs


@by_patch
def test_pretraining_equals_transformers(patch_px: int, tubelet: int) -> None:
    config = dataclasses.replace(TWO_LAYERS, patch_px=patch_px, tubelet=tubelet)
    generator = torch.Generator().manual_seed(1)
    model = VideoMAE(config).eval()
    _randomise(model, generator)
    frames_BCTHW, mask_BN = _clips(generator, config.grid.num_tokens)
    theirs = _as_transformers(model, config, is_classifier=False)
    with torch.no_grad():
        inputs_BCTHW = normalise(frames_BCTHW)
        pixels_BMP = model(inputs_BCTHW, mask_BN, NUM_MASKED)
        expected = theirs(inputs_BCTHW.transpose(1, 2), bool_masked_pos=mask_BN)
    torch.testing.assert_close(pixels_BMP, expected.logits, atol=1e-4, rtol=0)
    loss = pixel_error(pixels_BMP, frames_BCTHW, mask_BN, patch=config.patch)
    torch.testing.assert_close(loss, expected.loss, atol=1e-4, rtol=0)
    assert pixels_BMP.std() > 0.5, "the comparison needs outputs that differ"


@by_patch
def test_classifier_equals_transformers(patch_px: int, tubelet: int) -> None:
    config = dataclasses.replace(TWO_LAYERS, patch_px=patch_px, tubelet=tubelet)
    generator = torch.Generator().manual_seed(2)
    model = VideoClassifier(config, num_classes=5).eval()
    _randomise(model, generator)
    frames_BCTHW, _ = _clips(generator)
    theirs = _as_transformers(model, config, is_classifier=True)
    with torch.no_grad():
        inputs_BCTHW = normalise(frames_BCTHW)
        logits_BK = model(inputs_BCTHW)
        expected_BK = theirs(inputs_BCTHW.transpose(1, 2)).logits
    torch.testing.assert_close(logits_BK, expected_BK, atol=1e-4, rtol=0)


@pytest.mark.parametrize("part", ["query", "key", "value"])
def test_key_bias_is_the_only_one_without_effect(part: str) -> None:
    generator = torch.Generator().manual_seed(3)
    model = VideoMAE(TWO_LAYERS).eval()
    _randomise(model, generator)
    frames_BCTHW, mask_BN = _clips(generator)
    with torch.no_grad():
        before_BMP = model(normalise(frames_BCTHW), mask_BN)
        row = ("query", "key", "value").index(part)
        block: Any = model.encoder.blocks[0]
        block.attn.qkv.bias.view(3, -1)[row] += torch.linspace(-1, 1, TWO_LAYERS.width)
        after_BMP = model(normalise(frames_BCTHW), mask_BN)
    difference = float((after_BMP - before_BMP).abs().max())
    assert difference < 1e-4 if part == "key" else difference > 1e-2


@pytest.mark.parametrize(
    "change", [{"attention": "divided"}, {"trained_px": 64}, {"positions": "separable"}, {"positions": "rope3d"}]
)
def test_what_transformers_cannot_be_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="joint attention and sinusoid positions"):
        transformers_config(dataclasses.replace(TWO_LAYERS, **change), is_classifier=True)


def test_config_matches_the_exported_grid() -> None:
    wide = dataclasses.replace(TWO_LAYERS, num_frames=8, image_px=64)
    theirs: Any = _as_transformers(VideoMAE(wide), wide, is_classifier=False)
    assert theirs.videomae.embeddings.num_patches == wide.grid.num_tokens == 64
