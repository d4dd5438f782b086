"""The linear probe against single heads fitted one by one; features that are computed once, and never twice or mixed.

Axes as in probe.py.
"""

import csv
import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from torch import nn
from torch.nn import functional as F

from mgm_shared.errors import UserError
from mgm_shared.store import Store
from mgm_train.checkpoint.weights import Weights, load_weights, save_weights
from mgm_train.cli import main
from mgm_train.config import ProbeConfig
from mgm_train.data.labels import class_names, label_subset
from mgm_train.evaluation import features
from mgm_train.evaluation.features import FeatureCache, Features, FrozenEncoder
from mgm_train.evaluation.linear_probe import fit, fit_and_score, grid, hold_out
from mgm_train.evaluation.multiview import ViewDataset, collate_views
from mgm_train.model_config import model_config
from mgm_train.models.videomae import VideoClassifier, VideoMAE, build
from mgm_train.runtime.distributed import Distributed
from mgm_train.tasks import probe as probing

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = Distributed(device=torch.device("cpu"))
MODEL = model_config("vit_tiny", num_frames=4, image_px=32)
CONFIG = ProbeConfig(
    learning_rates=(1e-2, 1e-3), weight_decays=(0.0, 0.5, 9.0), epochs=3, head_batch_size=16, num_workers=0, stride=2
)


def _features(num_videos: int = 20, num_views: int = 2, seed: int = 0) -> Features:
    """Three classes whose features differ in their means."""
    generator = torch.Generator().manual_seed(seed)
    label_N = torch.arange(num_videos) % 3
    noise_NVD = torch.randn(num_videos, num_views, 5, generator=generator)
    feature_NVD = noise_NVD + 2 * F.one_hot(label_N, 5)[:, None] + torch.tensor([9.0, 0, 0, 0, -3])
    video_ids = [f"{number:02d}" for number in range(num_videos)]
    return Features(feature_NVD=feature_NVD.half(), label_N=label_N, sample_ids=video_ids, unreadable={})


def test_a_grid_of_heads_learns_what_each_head_would_alone() -> None:
    data = _features()
    heads = fit(data, 3, CONFIG, CPU.device)
    feature_SD = data.feature_NVD.float().flatten(0, 1)
    feature_SD = (feature_SD - feature_SD.mean(0)) / (feature_SD.std(0, correction=0) + 1e-6)
    label_S = data.label_N.repeat_interleave(2)
    for number, (rate, decay) in enumerate(grid(CONFIG)):
        single = nn.Linear(5, 3)
        nn.init.zeros_(single.weight)
        nn.init.zeros_(single.bias)
        groups = [{"params": [single.weight], "weight_decay": decay}, {"params": [single.bias], "weight_decay": 0}]
        optimizer = torch.optim.AdamW(groups, lr=rate)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (1 + np.cos(np.pi * step / 9)) / 2)
        for epoch in range(3):
            order_S = np.random.default_rng([0, epoch]).permutation(40)
            for batch_B in (order_S[:14], order_S[14:27], order_S[27:]):
                optimizer.zero_grad()
                F.cross_entropy(single(feature_SD[batch_B]), label_S[batch_B]).backward()
                optimizer.step()
                schedule.step()
        torch.testing.assert_close(heads.weight_GKD[number], single.weight.detach(), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(heads.bias_GK[number], single.bias.detach(), atol=1e-5, rtol=1e-4)


def test_probabilities_are_means_over_views() -> None:
    data, scored = _features(), _features(seed=1)
    heads = fit(data, 3, CONFIG, CPU.device)
    probability_NGK = heads.probabilities(scored)
    standard_VD = (scored.feature_NVD[7].float() - heads.mean_D) / heads.std_D
    views = [(heads.weight_GKD[4] @ feature_D + heads.bias_GK[4]).softmax(0) for feature_D in standard_VD]
    torch.testing.assert_close(probability_NGK[7, 4], (views[0] + views[1]) / 2)


def test_the_head_that_counts_is_chosen_without_the_scored_videos() -> None:
    data, scored = _features(60), _features(30, seed=1)
    config = CONFIG.replace(learning_rates=(1e-9, 1e-2), weight_decays=(0.0,), epochs=10)
    choices, best, predictions = fit_and_score(data, scored, 3, config, CPU.device)
    assert best == 1
    assert choices[1].top1 >= 0.9
    assert choices[0].held_out_loss == pytest.approx(np.log(3), abs=1e-4)
    assert choices[1].held_out_loss < 0.7
    wrong = replace(scored, label_N=(scored.label_N + 1) % 3)
    again, best_of_wrong, _ = fit_and_score(data, wrong, 3, config, CPU.device)
    assert best_of_wrong == 1
    assert again[1].top1 < 0.1, "the labels of the scored videos count nowhere but in the score"
    right = sum(int(prediction.probability_K.argmax()) == prediction.label for prediction in predictions)
    assert choices[1].top1 == pytest.approx(right / 30)


def test_videos_held_out_are_a_share_of_each_class() -> None:
    data = _features(23)
    fitted, held = hold_out(data, 0.25, seed=3)
    assert sorted(fitted.sample_ids + held.sample_ids) == data.sample_ids
    assert np.bincount(held.label_N).tolist() == [2, 2, 2]
    assert torch.equal(held.feature_NVD, data.feature_NVD[[int(video_id) for video_id in held.sample_ids]])
    assert torch.equal(held.label_N, torch.tensor([int(video_id) % 3 for video_id in held.sample_ids]))
    with pytest.raises(UserError, match="no class has training videos of two groups"):
        hold_out(_features(3), 0.25, seed=0)


def test_some_videos_of_each_class_are_always_left_to_learn_from() -> None:
    fitted, held = hold_out(_features(6), 0.99, seed=0)
    assert sorted(fitted.label_N.tolist()) == sorted(held.label_N.tolist()) == [0, 1, 2]


@pytest.fixture
def weights(tmp_path: Path) -> Weights:
    model = build(lambda: VideoMAE(MODEL), seed=1)
    norm: Any = model.encoder.norm
    nn.init.normal_(norm.weight)
    save_weights(tmp_path / "weights.safetensors", model.state_dict(), MODEL, {})
    return load_weights(tmp_path / "weights.safetensors")


def test_the_encoder_is_as_pretraining_left_it_norm_included(weights: Weights) -> None:
    model = VideoMAE(MODEL)
    model.load_state_dict(weights.state)
    frames_BCTHW = torch.randint(0, 256, (2, 3, 4, 32, 32), dtype=torch.uint8)
    frozen = FrozenEncoder(weights)
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    with torch.no_grad():
        torch.testing.assert_close(frozen(frames_BCTHW), model.encoder(frames_BCTHW).mean(1))


def test_a_fine_tuned_encoder_keeps_its_pooled_norm(tmp_path: Path) -> None:
    model = build(lambda: VideoClassifier(MODEL, 7, drop_path=0.9, fc_dropout=0.9), seed=1)
    nn.init.normal_(model.fc_norm.weight)
    save_weights(tmp_path / "weights.safetensors", model.state_dict(), MODEL, {})
    frames_BCTHW = torch.randint(0, 256, (2, 3, 4, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        expected_BD = model.eval().fc_norm(model.encoder(frames_BCTHW).mean(1))
        frozen = FrozenEncoder(load_weights(tmp_path / "weights.safetensors"))
        torch.testing.assert_close(frozen(frames_BCTHW), expected_BD)


def _dataset(store: Any, **settings: Any) -> ViewDataset:
    config = CONFIG.replace(split="test", num_temporal_views=2, num_spatial_views=1, **settings)
    return ViewDataset(store, class_names(store), MODEL, config)


def test_features_are_computed_once_and_go_on_after_a_stop(
    pan_store: Store, weights: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "VIDEOS_PER_CHUNK", 3)
    model, dataset = FrozenEncoder(weights), _dataset(pan_store)
    cache = FeatureCache.of(tmp_path / "run", weights, dataset, CPU)
    save = FeatureCache._save

    def save_and_ask_to_stop(self: Any, part: Any, values: Any) -> None:
        save(self, part, values)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(FeatureCache, "_save", save_and_ask_to_stop)
    assert not cache.compute(model, dataset, CPU)
    assert [file.name for file in cache.folder.iterdir()] == ["test-00000.safetensors"]
    monkeypatch.setattr(FeatureCache, "_save", save)
    assert cache.compute(model, dataset, CPU)
    no_model: Any = None
    assert cache.compute(no_model, dataset, CPU), "nothing is left to compute"
    loaded = cache.load(len(dataset))
    assert loaded.sample_ids == [dataset[index].video_id for index in range(4)]
    with torch.no_grad():
        expected_VD = model(collate_views([dataset[3]])["frames_NVCTHW"][0])
    torch.testing.assert_close(loaded.feature_NVD[3].float(), expected_VD, atol=2e-3, rtol=2e-3)
    assert loaded.label_N.tolist() == dataset.labels.tolist()


def test_features_of_something_else_are_refused(pan_store: Store, weights: Weights, tmp_path: Path) -> None:
    dataset = _dataset(pan_store)
    cache = FeatureCache.of(tmp_path / "run", weights, dataset, CPU)
    assert cache.compute(FrozenEncoder(weights), dataset, CPU)
    other = _dataset(pan_store, stride=1)
    no_model: Any = None
    with pytest.raises(UserError, match="holds features of another stride;"):
        FeatureCache.of(tmp_path / "run", weights, other, CPU).compute(no_model, other, CPU)


def test_a_video_that_cannot_be_read_is_named(
    pan_store: Store, weights: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = _dataset(pan_store)
    read = ViewDataset._read

    def read_all_but_one(self: Any, video: Any, frames_VCTHW: Any) -> None:
        if "left" in video.video_id:
            raise OSError("checksum")
        read(self, video, frames_VCTHW)

    monkeypatch.setattr(ViewDataset, "_read", read_all_but_one)
    cache = FeatureCache.of(tmp_path / "run", weights, dataset, CPU)
    cache.compute(FrozenEncoder(weights), dataset, CPU)
    loaded = cache.load(len(dataset))
    assert (len(loaded.sample_ids), loaded.num_listed) == (3, 4)
    assert loaded.unreadable == {"test/left/0.mp4": "checksum"}


def test_the_command(pan_store: Store, weights: Weights, tmp_path: Path) -> None:
    (tmp_path / "map.csv").write_text("label,class\nleft,across\nright,across\nup,along\ndown,along\n")
    arguments = ["probe", pan_store.path, "--run", tmp_path / "run", "--init", weights.path, "--stride", 2]
    arguments += ["--class-map", tmp_path / "map.csv", "--num-workers", 0, "--json"]

    def run(*more: Any) -> Result:
        return CliRunner().invoke(main, [str(argument) for argument in (*arguments, *more)])

    plan = json.loads(run("-n").stdout)
    assert (plan["training_videos"], plan["scored_videos"], plan["heads"]) == (4, 4, 20)
    result = run()
    assert result.exit_code == 0, result.stderr
    assert "trained on 4 of 4 training samples" in result.stderr
    scores = json.loads(result.stdout)
    rows = list(csv.DictReader((tmp_path / "run" / "heads.csv").read_text().splitlines()))
    assert len(rows) == 20
    (counts,) = [row for row in rows if row["counts"]]
    assert float(counts["top1"]) == pytest.approx(scores["top1"], abs=1e-4)
    assert float(counts["held_out_top1"]) == max(float(row["held_out_top1"]) for row in rows)
    assert scores["best_top1"] == max(float(row["top1"]) for row in rows)
    assert scores["knn_top1"] in (0, 0.25, 0.5, 0.75, 1)
    # A video of each class is left, and none can be held out.
    too_few = run("--label-fraction", 0.5, "-n")
    assert too_few.exit_code == 2
    assert "none can be held out" in too_few.stderr
    parts = list((tmp_path / "run" / "features").iterdir())
    before = [part.stat().st_mtime_ns for part in parts]
    assert json.loads(run("--epochs", 1).stdout)["scored"] == 4
    assert [part.stat().st_mtime_ns for part in parts] == before, "other heads, the same features"


def test_probe_needs_weights(pan_store: Store, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["probe", str(pan_store.path), "--run", str(tmp_path / "run")])
    assert result.exit_code == 2
    assert "probe needs --init" in result.stderr


def test_features_of_all_videos_serve_a_share_of_the_labels(pan_store: Store, weights: Weights) -> None:
    """The heads learn from the drawn videos alone, the same that fine-tuning draws."""
    dataset = _dataset(pan_store.select())
    ids = [dataset[index].sample_id for index in range(4)]
    config = CONFIG.replace(label_fraction=0.2, seed=2)
    label_N = torch.tensor([0, 0, 0, 0])
    dataset.labels = label_N.numpy()
    features_of_all = Features(
        feature_NVD=torch.arange(4.0)[:, None, None].half(), label_N=label_N, sample_ids=ids, unreadable={}
    )
    kept = label_subset(dataset.labels, 0.2, seed=2)
    chosen = probing._with_labels(features_of_all, dataset, config)
    assert chosen.feature_NVD.flatten().tolist() == kept.tolist()
    assert chosen.sample_ids == [ids[place] for place in kept]
