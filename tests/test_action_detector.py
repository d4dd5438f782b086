"""The detector's parts against plain arithmetic: pooling, positions of other sizes, the loss, transferred weights."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch._dynamo.testing import CompileCounter
from toy import TOY

from mgm_train.checkpoint.transfer import load_encoder
from mgm_train.checkpoint.weights import load_weights, save_weights
from mgm_train.config import DetectConfig
from mgm_train.model_config import ModelConfig
from mgm_train.models.action_detector import ActionDetector
from mgm_train.models.videomae import Encoder, VideoClassifier, VideoMAE, build
from mgm_train.training.losses import DetectionObjective
from mgm_train.training.optim import make_optimizer

pytestmark = pytest.mark.usefixtures("one_thread")

# Frames of other than the square of the configuration.
WIDE = (1, 3, 4, 48, 80)


def _model(config: ModelConfig = TOY) -> ActionDetector:
    return build(lambda: ActionDetector(config, 5), 0).eval()


def _frames(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, shape, np.uint8))


def _pooled(features_Dhw: NDArray[np.float64], box_4: NDArray[np.float64], patch_px: int) -> NDArray[np.float64]:
    """RoIAlign to 7×7 and the maximum, in loops: bilinear at the middles of a regular grid in each of the 49 parts."""
    left, top, right, bottom = box_4 / patch_px - 0.5
    step_x, step_y = (right - left) / 7, (bottom - top) / 7
    num_x, num_y = max(1, int(np.ceil(right - left) / 7 + 0.999)), max(1, int(np.ceil(bottom - top) / 7 + 0.999))
    best_D = np.full(len(features_Dhw), -np.inf)
    for row in range(7):
        for column in range(7):
            values = [
                _bilinear(
                    features_Dhw, top + (row + (b + 0.5) / num_y) * step_y, left + (column + (a + 0.5) / num_x) * step_x
                )
                for b in range(num_y)
                for a in range(num_x)
            ]
            best_D = np.maximum(best_D, np.mean(values, axis=0))
    return best_D


def _bilinear(features_Dhw: NDArray[np.float64], y: float, x: float) -> NDArray[np.float64]:
    height, width = features_Dhw.shape[1:]
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    low_y, low_x = int(y), int(x)
    high_y, high_x = min(low_y + 1, height - 1), min(low_x + 1, width - 1)
    share_y, share_x = y - low_y, x - low_x
    upper = (1 - share_x) * features_Dhw[:, low_y, low_x] + share_x * features_Dhw[:, low_y, high_x]
    lower = (1 - share_x) * features_Dhw[:, high_y, low_x] + share_x * features_Dhw[:, high_y, high_x]
    return np.asarray((1 - share_y) * upper + share_y * lower)


@pytest.mark.parametrize("box", [(0, 0, 80, 48), (16, 16, 48, 40), (3.5, 7.25, 30.5, 33), (70, 40, 71, 41)])
def test_the_logits_of_a_box_are_those_of_pooling_by_hand(box: tuple[float, ...]) -> None:
    model, frames_BCTHW = _model(), _frames(*WIDE)
    with torch.no_grad():
        tokens_ND = model.encoder(frames_BCTHW)[0]
        logits_K = model(frames_BCTHW, torch.tensor([[0.0, *box]]))[0]
        # Two slices of 3×5 tokens.
        features_Dhw = tokens_ND.reshape(2, 3, 5, TOY.width).mean(0).permute(2, 0, 1).double().numpy()
        pooled_D = torch.from_numpy(_pooled(features_Dhw, np.array(box), 16)).float()
        expected_K = model.head(pooled_D)
    torch.testing.assert_close(logits_K, expected_K, atol=1e-5, rtol=1e-5)


def test_boxes_of_several_clips_do_not_mix() -> None:
    model, frames_BCTHW = _model(), _frames(3, 3, 4, 48, 80)
    boxes = [(0, 1, 2, 30, 40), (2, 10, 5, 60, 44), (2, 0, 0, 9, 9), (0, 20, 20, 70, 40)]
    with torch.no_grad():
        together = model(frames_BCTHW, torch.tensor(boxes, dtype=torch.float32))
        for row, (clip, *box) in enumerate(boxes):
            alone = model(frames_BCTHW[clip : clip + 1], torch.tensor([[0, *box]], dtype=torch.float32))
            torch.testing.assert_close(together[row], alone[0], atol=1e-5, rtol=1e-5)


def test_a_compiled_model_is_compiled_once_for_all_numbers_of_boxes() -> None:
    model, counter = _model(), CompileCounter()
    compiled = torch.compile(model, dynamic=False, backend=counter)
    frames_BCTHW, box_R5 = _frames(2, 3, 4, 32, 32), torch.tensor([[0.0, 1, 1, 20, 20]])
    num_graphs = []
    for num_boxes in (1, 2, 3, 5):
        boxes = box_R5.repeat(num_boxes, 1)
        with torch.no_grad():
            assert torch.equal(compiled(frames_BCTHW, boxes), model(frames_BCTHW, boxes))
        num_graphs.append(counter.frame_count)
    assert num_graphs == [1, 1, 1, 1]


def test_a_batch_without_boxes_has_no_loss_and_gradients_of_zero() -> None:
    model = _model().train()
    batch = {"frames_BCTHW": _frames(2, 3, 4, 32, 32), "box_R5": torch.zeros(0, 5), "target_RK": torch.zeros(0, 5)}
    loss = DetectionObjective()(model, batch, 0)
    loss.backward()
    assert loss.item() == 0
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in model.parameters())


def test_the_loss_does_not_depend_on_how_boxes_are_spread_over_batches() -> None:
    """Five boxes in four clips, split into two batches as processes and micro-steps do: the mean of both losses."""
    model, frames_BCTHW = _model(), _frames(4, 3, 4, 32, 32)
    rng = np.random.default_rng(0)
    box_R5 = torch.tensor([[0, 1, 1, 20, 20], [0, 5, 5, 30, 30], [0, 2, 2, 9, 9], [1, 0, 0, 32, 32], [3, 4, 4, 20, 30]])
    target_RK = torch.from_numpy(rng.integers(0, 2, (5, 5))).float()

    def loss(first: int, stop: int) -> float:
        own = (box_R5[:, 0] >= first) & (box_R5[:, 0] < stop)
        moved = box_R5[own].float() - torch.tensor([first, 0, 0, 0, 0])
        batch = {"frames_BCTHW": frames_BCTHW[first:stop], "box_R5": moved, "target_RK": target_RK[own]}
        return float(DetectionObjective()(model, batch, 0).detach())

    assert (loss(0, 2) + loss(2, 4)) / 2 == pytest.approx(loss(0, 4), rel=1e-5)
    with torch.no_grad():
        logits_RK = model(frames_BCTHW, box_R5.float()).double().numpy()
    likely_RK = 1 / (1 + np.exp(-logits_RK))
    errors_RK = -np.where(target_RK.numpy() == 1, np.log(likely_RK), np.log(1 - likely_RK))
    assert loss(0, 4) == pytest.approx(errors_RK.mean(1).sum() / 4, rel=1e-5)


@pytest.mark.parametrize("positions", ["sinusoid", "separable", "rope3d"])
@pytest.mark.parametrize("attention", ["joint", "divided"])
def test_positions_of_another_size_are_those_of_a_model_of_that_size(positions: str, attention: str) -> None:
    config = replace(TOY, positions=positions, attention=attention)
    own = build(lambda: Encoder(config, has_norm=True), 0)
    larger = build(lambda: Encoder(replace(config, image_px=64).after(config), has_norm=True), 0)
    frames_BCTHW = _frames(1, 3, 4, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(own(frames_BCTHW), larger(frames_BCTHW), atol=0, rtol=0)
        assert own(_frames(*WIDE)).shape == (1, 2 * 3 * 5, TOY.width)
    with pytest.raises(ValueError, match="does not divide"):
        own(_frames(1, 3, 4, 40, 64))


def test_a_table_that_a_test_met_first_serves_a_training() -> None:
    model, frames_BCTHW = _model(), _frames(1, 3, 4, 48, 96)
    box_R5 = torch.tensor([[0.0, 0, 0, 20, 20]])
    with torch.inference_mode():
        model(frames_BCTHW, box_R5)
    model(frames_BCTHW, box_R5).sum().backward()


def test_the_last_norm_comes_from_a_pretrained_encoder_or_a_classifier(tmp_path: Path) -> None:
    torch.manual_seed(0)
    pretrained: Any = build(lambda: VideoMAE(TOY), 1)
    classifier: Any = build(lambda: VideoClassifier(TOY, 3), 2)
    torch.nn.init.normal_(pretrained.encoder.norm.weight)
    torch.nn.init.normal_(classifier.fc_norm.weight)
    for name, model, norm, said in (
        (
            "pretrained",
            pretrained,
            pretrained.encoder.norm,
            "new: head; not needed: decoder, encoder_to_decoder, mask_token",
        ),
        ("classifier", classifier, classifier.fc_norm, "new: head; not needed: head; encoder.norm is from fc_norm"),
    ):
        file = tmp_path / f"{name}.safetensors"
        save_weights(file, model.state_dict(), TOY, {})
        detector: Any = _model()
        report = load_encoder(detector, load_weights(file))
        assert str(report).endswith(said), str(report)
        assert torch.equal(detector.encoder.norm.weight, norm.weight)
        assert torch.equal(detector.encoder.blocks[1].mlp.fc1.weight, model.encoder.blocks[1].mlp.fc1.weight)


def test_a_classifier_starts_from_a_detector(tmp_path: Path) -> None:
    detector = _model()
    save_weights(tmp_path / "d.safetensors", detector.state_dict(), TOY, {})
    classifier = build(lambda: VideoClassifier(TOY, 3), 2)
    report = load_encoder(classifier, load_weights(tmp_path / "d.safetensors"))
    assert "fc_norm" in str(report)
    assert torch.equal(classifier.encoder.patch_embed.proj.weight, detector.encoder.patch_embed.proj.weight)


def test_one_rate_for_each_block() -> None:
    """Layer-wise decay: the patch embedding, each of two blocks, then norm and head."""
    optimizer = make_optimizer(_model(), DetectConfig(), 0.7)
    scales = sorted({round(group["lr_scale"], 4) for group in optimizer.param_groups})
    assert scales == [round(0.7**3, 4), round(0.7**2, 4), 0.7, 1.0]
