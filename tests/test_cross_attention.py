"""The cross-attention decoder: against torch's own attention, and each masked token on its own."""

from dataclasses import replace

import pytest
import torch
from toy import WIDE_TOY

from mgm_shared.errors import UserError
from mgm_train.checkpoint.transformers import transformers_config
from mgm_train.config import PretrainConfig
from mgm_train.model_config import ModelConfig
from mgm_train.models.attention import Attention
from mgm_train.models.cross_attention import CrossAttention, CrossBlocks
from mgm_train.models.rope import rotation_table
from mgm_train.models.videomae import VideoMAE, build

CROSS = replace(WIDE_TOY, decoder="cross", decoder_depth=2)


def _random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def test_attention_is_torchs() -> None:
    ours, theirs = CrossAttention(24, 3), torch.nn.MultiheadAttention(24, 3, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.q.weight, ours.kv.weight]))
        theirs.in_proj_bias.copy_(torch.cat([ours.q.bias, ours.kv.bias]))
        theirs.out_proj.load_state_dict(ours.proj.state_dict())
        masked_BMD, visible_BVD = _random(2, 7, 24), _random(2, 5, 24)
        expected_BMD = theirs(masked_BMD, visible_BVD, visible_BVD)[0]
        torch.testing.assert_close(ours(masked_BMD, visible_BVD), expected_BMD, atol=1e-5, rtol=1e-5)


def test_rotary_positions_are_those_of_joint_attention() -> None:
    """Joint attention of the same weights, in which masked tokens may attend to visible ones only."""
    cross, joint = CrossAttention(24, 2), Attention(24, 2)
    rotation_1NR2 = rotation_table(WIDE_TOY.grid, WIDE_TOY.grid, 12)
    with torch.no_grad():
        joint.qkv.weight.copy_(torch.cat([cross.q.weight, cross.kv.weight]))
        joint.qkv.bias.copy_(torch.cat([cross.q.bias, cross.kv.bias]))
        joint.proj.load_state_dict(cross.proj.state_dict())
        tokens_BND = _random(2, 32, 24)
        allowed_B1ON = torch.zeros(2, 1, 20, 32, dtype=torch.bool)
        allowed_B1ON[..., :12] = True
        expected_BMD = joint(tokens_BND, 20, allowed_B1ON, rotation_1NR2)
        found_BMD = cross(tokens_BND[:, 12:], tokens_BND[:, :12], rotation_1NR2)
    torch.testing.assert_close(found_BMD, expected_BMD, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("positions", ["sinusoid", "rope3d"])
def test_a_prediction_does_not_depend_on_the_other_predicted_tokens(positions: str) -> None:
    for decoder, is_independent in (("cross", True), ("joint", False)):
        model = build(lambda: VideoMAE(replace(CROSS, decoder=decoder, positions=positions)), seed=0).eval()  # noqa: B023
        frames_BCTHW = _random(1, 3, 4, 64, 64)
        roles_1N = torch.ones(1, 32, dtype=torch.int8)
        roles_1N[0, :8] = 0
        fewer_1N = roles_1N.clone()
        fewer_1N[0, 8:20] = -1
        with torch.no_grad():
            all_1MP, fewer_1MP = model(frames_BCTHW, roles_1N), model(frames_BCTHW, fewer_1N)
        assert torch.allclose(all_1MP[:, 12:], fewer_1MP, atol=1e-6) == is_independent


def test_recomputing_gives_the_same_gradients() -> None:
    gradients = []
    for is_recomputing in (False, True):
        model = build(lambda: VideoMAE(CROSS), seed=0)
        model.set_grad_checkpointing(is_recomputing)
        mask_BN = torch.arange(32)[None] >= 8
        model(_random(1, 3, 4, 64, 64), mask_BN).square().mean().backward()
        assert isinstance(model.decoder.blocks, CrossBlocks)
        gradients.append([parameter.grad for parameter in model.parameters()])
    torch.testing.assert_close(*gradients)
    assert all(gradient is not None and gradient.abs().max() > 0 for gradient in gradients[0]), "all are trained"


def test_the_option_reaches_the_weights_and_old_files_have_a_joint_decoder() -> None:
    assert PretrainConfig(decoder="cross").shape.decoder == "cross"
    assert PretrainConfig().shape.decoder == ModelConfig(**vars(WIDE_TOY)).decoder == "joint"


def test_transformers_has_no_such_decoder() -> None:
    with pytest.raises(UserError, match="cross-attention"):
        transformers_config(CROSS, is_classifier=False)
    assert transformers_config(CROSS, is_classifier=True)


def test_one_graph_under_torch_compile() -> None:
    model = build(lambda: VideoMAE(CROSS), seed=0).eval()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    frames_BCTHW, roles_1N = _random(1, 3, 4, 64, 64), torch.ones(1, 32, dtype=torch.int8)
    roles_1N[0, :8], roles_1N[0, 8:12] = 0, -1
    with torch.no_grad():
        torch.testing.assert_close(compiled(frames_BCTHW, roles_1N, 20, 4), model(frames_BCTHW, roles_1N, 20, 4))
