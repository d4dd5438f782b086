"""Shapes, positions, what the encoder may see, initial weights, and timm's protocols.

Parity with transformers is in test_export.py. Axes as in model.py.
"""

import dataclasses
import math
from functools import partial
from typing import Any

import pytest
import torch
from timm.layers import trunc_normal_
from timm.optim import create_optimizer_v2

from mgm_shared.errors import UserError
from mgm_train.model_config import ModelConfig, model_config
from mgm_train.models.videomae import VideoClassifier, VideoMAE, build, normalise, split_mask

TOY = ModelConfig(
    name="toy",
    width=24,
    depth=3,
    num_heads=2,
    decoder_width=16,
    decoder_depth=1,
    decoder_num_heads=2,
    num_frames=4,
    image_px=48,
)


def _clips(num_clips: int = 2, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    frames_BCTHW = torch.randn(num_clips, 3, 4, 48, 48, generator=generator)
    mask_BN = torch.stack([torch.randperm(18, generator=generator) < 12 for _ in range(num_clips)])
    return frames_BCTHW, mask_BN


def test_split_mask_is_sorted_and_complete() -> None:
    _, mask_BN = _clips(5)
    visible_BV, masked_BM = split_mask(mask_BN, 12)
    for mask_N, visible_V, masked_M in zip(mask_BN, visible_BV, masked_BM, strict=True):
        assert torch.equal(visible_V, torch.nonzero(~mask_N).flatten())
        assert torch.equal(masked_M, torch.nonzero(mask_N).flatten())


def test_embedding_equals_its_convolution() -> None:
    model = VideoMAE(TOY)
    frames_BCTHW, mask_BN = _clips()
    expected_BND = model.encoder.patch_embed.proj(frames_BCTHW).flatten(2).transpose(1, 2)
    torch.testing.assert_close(model.encoder.patch_embed(frames_BCTHW), expected_BND, atol=1e-5, rtol=0)
    visible_BV, _ = split_mask(mask_BN, 12)
    visible_BVD = model.encoder.patch_embed(frames_BCTHW, visible_BV)
    torch.testing.assert_close(visible_BVD, expected_BND[~mask_BN].view(2, 6, -1), atol=1e-5, rtol=0)


def test_uint8_frames_are_normalised_inside() -> None:
    model = VideoClassifier(TOY, 7).eval()
    generator = torch.Generator().manual_seed(1)
    frames_BCTHW = torch.randint(0, 256, (2, 3, 4, 48, 48), generator=generator, dtype=torch.uint8)
    with torch.no_grad():
        expected_BK = model(normalise(frames_BCTHW))
        torch.testing.assert_close(model(frames_BCTHW), expected_BK, atol=1e-5, rtol=0)
        assert not torch.allclose(model(frames_BCTHW.float()), expected_BK, atol=1e-2)


def test_prediction_does_not_depend_on_masked_pixels_but_on_visible_ones() -> None:
    model = VideoMAE(TOY).eval()
    frames_BCTHW, mask_BN = _clips()
    is_masked = mask_BN.view(2, 1, 2, 3, 3).repeat_interleave(2, 2)
    is_masked = is_masked.repeat_interleave(16, 3).repeat_interleave(16, 4).expand_as(frames_BCTHW)
    with torch.no_grad():
        pixels_BMP = model(frames_BCTHW, mask_BN)
        other_masked_BMP = model(torch.where(is_masked, 0.0, frames_BCTHW), mask_BN)
        other_visible_BMP = model(torch.where(is_masked, frames_BCTHW, 0.0), mask_BN)
    assert pixels_BMP.shape == (2, 12, 1536)
    assert torch.equal(pixels_BMP, other_masked_BMP)
    assert not torch.allclose(pixels_BMP, other_visible_BMP, atol=1e-3)


def test_positions_are_in_no_checkpoint() -> None:
    assert not [name for name in VideoMAE(TOY).state_dict() if "position" in name]


def test_initial_weights() -> None:
    model = build(lambda: VideoMAE(TOY), seed=3)
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            bound = math.sqrt(6 / (module.in_features + module.out_features))
            assert 0.8 * bound < float(module.weight.detach().abs().max()) <= bound
            assert module.bias is None or not module.bias.any()
    assert model.encoder_to_decoder.bias is None


QUANTILES = torch.tensor([0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99])


def _truncated_normal_quantiles(bound: float) -> torch.Tensor:
    """Quantiles of timm's truncated normal of std 0.02, from many draws."""
    drawn = torch.empty(200_000)
    with torch.random.fork_rng(devices=[]):
        trunc_normal_(drawn, std=0.02, a=-bound, b=bound)
    return drawn.quantile(QUANTILES)


def test_mask_token_is_truncated_at_one_std() -> None:
    tokens = [build(lambda: VideoMAE(TOY), seed).mask_token.detach().flatten() for seed in range(100)]
    torch.testing.assert_close(
        torch.cat(tokens).quantile(QUANTILES), _truncated_normal_quantiles(0.02), atol=1.5e-3, rtol=0
    )
    assert float(torch.cat(tokens).abs().max()) <= 0.02


@pytest.mark.parametrize("attention", ["joint", "divided"])
def test_initial_weights_of_a_classifier_are_truncated_normal(attention: str) -> None:
    config = dataclasses.replace(model_config("vit_tiny", attention=attention), depth=1)
    model = build(lambda: VideoClassifier(config, 400), seed=3)
    expected = _truncated_normal_quantiles(2.0)
    linears = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    assert len(linears) == (5 if attention == "joint" else 7)
    for name, module in linears.items():
        # Xavier's weights of these layers have a std of 0.0255 to 0.072, and no tails.
        quantiles = module.weight.detach().flatten().quantile(QUANTILES)
        torch.testing.assert_close(quantiles, expected, atol=1.2e-3, rtol=0, msg=partial("{} {}".format, name))
        assert not module.bias.any()


def test_every_norm_has_videomaes_epsilon() -> None:
    for model in (
        VideoMAE(TOY),
        VideoClassifier(TOY, 7),
        VideoClassifier(dataclasses.replace(TOY, attention="divided"), 7),
    ):
        assert {module.eps for module in model.modules() if isinstance(module, torch.nn.LayerNorm)} == {1e-6}


def test_build_is_a_function_of_its_seed_and_leaves_the_global_one() -> None:
    before = torch.get_rng_state()
    first, again, other = (build(lambda: VideoMAE(TOY), seed).decoder.head.weight for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state())


def test_recomputing_gives_the_same_gradients() -> None:
    frames_BCTHW, mask_BN = _clips()
    gradients = []
    for is_recomputing in (False, True):
        model = build(lambda: VideoMAE(TOY), seed=0)
        model.set_grad_checkpointing(is_recomputing)
        model(frames_BCTHW, mask_BN).square().mean().backward()
        block: Any = model.encoder.blocks[0]
        gradients.append(block.attn.qkv.weight.grad)
    torch.testing.assert_close(*gradients)


def test_classifier_head_scale_and_shapes() -> None:
    model = VideoClassifier(TOY, 7, head_init_scale=0.001)
    assert float(model.head.weight.detach().abs().max()) <= 0.001 * 2
    frames_BCTHW, _ = _clips()
    assert model.forward_features(frames_BCTHW).shape == (2, 18, 24)
    assert model(frames_BCTHW).shape == (2, 7)
    assert model.get_classifier() is model.head


def test_drop_path_grows_linearly() -> None:
    model = VideoClassifier(TOY, 7, drop_path=0.2)
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in model.encoder.blocks]
    assert rates == pytest.approx([0, 0.1, 0.2])


def test_layer_decay_goes_from_head_to_embedding() -> None:
    model = VideoClassifier(TOY, 7)
    optimizer = create_optimizer_v2(model, "adamw", lr=1.0, weight_decay=0.05, layer_decay=0.5)
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    scales = {name_of[id(p)]: group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    decays = {name_of[id(p)]: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert scales["head.weight"] == scales["fc_norm.weight"] == 1
    block_scales = [scales[f"encoder.blocks.{index}.mlp.fc1.weight"] for index in range(3)]
    assert block_scales == [0.125, 0.25, 0.5]
    assert scales["encoder.patch_embed.proj.weight"] == 0.0625
    assert decays["encoder.patch_embed.proj.weight"] == 0.05
    assert decays["encoder.blocks.0.norm1.weight"] == decays["head.bias"] == 0


def test_mask_token_has_no_weight_decay() -> None:
    model = VideoMAE(TOY)
    optimizer = create_optimizer_v2(model, "adamw", lr=1.0, weight_decay=0.05)
    decay = [
        group["weight_decay"] for group in optimizer.param_groups if any(p is model.mask_token for p in group["params"])
    ]
    assert decay == [0]


def test_model_config_names_the_sizes() -> None:
    config = model_config("vit_tiny", num_frames=8, image_px=96)
    assert (config.grid.num_tokens, config.width) == (4 * 36, 192)
    assert dataclasses.replace(config, num_frames=16, image_px=224) == model_config("vit_tiny")
    with pytest.raises(UserError, match="vit_tiny"):
        model_config("vit_colossal")


def test_vit_base_has_videomaes_number_of_weights() -> None:
    with torch.device("meta"):
        model = VideoMAE(model_config("vit_base"))
        classifier = VideoClassifier(model_config("vit_base"), 400)
    # transformers' counts; timm's fused qkv has the biases of the keys in addition.
    assert sum(p.numel() for p in model.parameters()) == 94_210_944 + 12 * 768 + 4 * 384
    assert sum(p.numel() for p in classifier.parameters()) == 86_534_800 + 12 * 768


def test_one_graph_under_torch_compile() -> None:
    """A graph break or a wait for the GPU inside the model would be an error with fullgraph."""
    model = VideoMAE(TOY).eval()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    frames_BCTHW, mask_BN = _clips()
    frames_BCTHW = (frames_BCTHW * 50 + 128).clamp(0, 255).to(torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(compiled(frames_BCTHW, mask_BN, 12), model(frames_BCTHW, mask_BN, 12))
