"""A model that diverged is never scored, and never saved as a finished run: one line that says so, exit 2."""

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from toy import CPU, TOY, MovingStripes, finetune_job, losses_of, pretrain_job, run_processes, toy_config

from mgm_shared.errors import UserError
from mgm_shared.store import Store, open_store
from mgm_train.checkpoint.run_folder import RunFolder, load_last
from mgm_train.checkpoint.weights import load_weights, save_weights
from mgm_train.cli import main
from mgm_train.config import EvaluateConfig, ProbeConfig
from mgm_train.data.labels import class_names
from mgm_train.evaluation.features import Features
from mgm_train.evaluation.linear_probe import fit_and_score
from mgm_train.evaluation.metrics import Prediction, rank_of_label
from mgm_train.evaluation.multiview import ViewDataset, collate_views, score_every, score_views
from mgm_train.model_config import model_config
from mgm_train.models.videomae import VideoClassifier, VideoMAE, build
from mgm_train.runtime.distributed import init_distributed
from mgm_train.training.loop import Job, train
from mgm_train.training.losses import Objective

pytestmark = pytest.mark.usefixtures("one_thread")

MODEL = model_config("vit_tiny", num_frames=4, image_px=64)
BAD = pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
ONE_VIEW = {"num_temporal_views": 1, "num_spatial_views": 1, "stride": 2, "num_workers": 0}


def _run(*arguments: object) -> Any:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def _flags(**options: object) -> list[str]:
    return [text for name, value in options.items() for text in (f"--{name.replace('_', '-')}", str(value))]


def _is_one_line(result: Any) -> bool:
    return (
        result.exit_code == 2
        and not result.stdout
        and sum("mgm-train:" in line for line in result.stderr.splitlines()) == 1
    )


class _Constant(nn.Module):
    """Always the same logits; for the clips whose first pixel is that of `video`, `bad` ones."""

    def __init__(self, bad: float, video_VCTHW: Tensor | None = None) -> None:
        super().__init__()
        self.bad, self.video_VCTHW = bad, video_VCTHW

    def forward(self, frames_BCTHW: Tensor) -> Tensor:
        logits_BK = torch.tensor([[1.0, 3.0, 2.0, 0.0]]).repeat(len(frames_BCTHW), 1)
        for logits_K, frames_CTHW in zip(logits_BK, frames_BCTHW, strict=True):
            if self.video_VCTHW is None or torch.equal(frames_CTHW, self.video_VCTHW[0]):
                logits_K[2] = self.bad
        return logits_BK


@BAD
def test_outputs_that_are_not_finite_are_no_prediction(bad: float) -> None:
    with pytest.raises(UserError, match="output for video 'a' is not finite"):
        Prediction(sample_id="a", label=0, probability_K=np.array([0.5, bad], np.float32))
    feature_NVD = torch.tensor([[[1.0, 2.0]], [[3.0, bad]]])
    with pytest.raises(UserError, match="output for video 'b' is not finite"):
        Features(feature_NVD=feature_NVD, label_N=torch.tensor([0, 1]), sample_ids=["a", "b"], unreadable={})


def test_a_rank_of_nan_is_the_last_and_not_the_first() -> None:
    """However such a prediction might come about."""
    prediction = Prediction(sample_id="a", label=0, probability_K=np.array([0.5, 0.2, 0.2, 0.1], np.float32))
    prediction.probability_K[:] = np.nan
    assert rank_of_label([prediction]).tolist() == [4]


def _dataset(store: Store) -> ViewDataset:
    return ViewDataset(store, class_names(store), MODEL, EvaluateConfig(**ONE_VIEW, batch_size=3))  # type: ignore[arg-type]


def _frames(dataset: ViewDataset, index: int) -> torch.Tensor:
    frames_VCTHW: torch.Tensor = collate_views([dataset[index]])["frames_NVCTHW"][0]
    return frames_VCTHW


@BAD
def test_a_single_bad_output_ends_a_test_and_names_its_video(pan_store: Store, bad: float) -> None:
    dataset = _dataset(pan_store)
    video = dataset[2]
    model = _Constant(bad, _frames(dataset, 2))
    with pytest.raises(UserError, match=re.escape(repr(video.video_id))):
        score_views(model, dataset, CPU)
    with pytest.raises(UserError, match=re.escape(repr(video.video_id))):
        score_every(1, dataset, print, CPU)(1, model)


def _score_and_note(store: Path, out: Path) -> None:
    dataset = _dataset(open_store(store))
    with init_distributed("cpu") as distributed:
        try:
            score_views(_Constant(math.nan, _frames(dataset, 1)), dataset, distributed)
        except UserError as error:
            out.with_suffix(f".{distributed.rank}").write_text(str(error))


def test_all_processes_end_where_one_of_them_meets_it(pan_store: Store, tmp_path: Path) -> None:
    assert run_processes(2, _score_and_note, pan_store.path, tmp_path / "said") == [0, 0]
    said = [(tmp_path / f"said.{rank}").read_text() for rank in range(2)]
    assert said[0] == said[1]
    assert "is not finite" in said[0]


@pytest.fixture(scope="module")
def finetuned(pan_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fine-tuned model with finite weights whose logits overflow."""
    file = tmp_path_factory.mktemp("weights") / "huge.safetensors"
    model = build(lambda: VideoClassifier(MODEL, 4), seed=0)
    nn.init.constant_(model.fc_norm.bias, 10.0)
    nn.init.constant_(model.head.weight, 1e38)
    save_weights(file, model.state_dict(), MODEL, {"labels": json.dumps(class_names(pan_store))})
    return file


def test_evaluate_and_probe_refuse_a_model_that_overflows(pan_store: Store, finetuned: Path, tmp_path: Path) -> None:
    result = _run("evaluate", pan_store.path, finetuned, "--out", tmp_path / "out", *_flags(**ONE_VIEW), "--json")
    assert _is_one_line(result), result.stderr
    assert "is not finite, so nothing is scored" in result.stderr
    assert not list(tmp_path.rglob("*.csv"))
    features = load_file(finetuned)
    features["fc_norm.weight"].fill_(1e6)
    with_large_features = tmp_path / "large.safetensors"
    save_weights(with_large_features, features, MODEL, load_weights(finetuned).metadata)
    # Two classes of two videos each, so that one of each can be held out.
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("label,class\nleft,across\nright,across\nup,along\ndown,along\n")
    result = _run(
        "probe",
        pan_store.path,
        "--class-map",
        pairs,
        "--run",
        tmp_path / "probe",
        "--init",
        with_large_features,
        *_flags(**ONE_VIEW),
        "--json",
    )
    assert _is_one_line(result), result.stderr
    assert "is not finite" in result.stderr, "1e6 is too large for float16"
    assert not list((tmp_path / "probe").rglob("*.safetensors"))


@BAD
def test_weights_that_are_not_finite_are_neither_saved_nor_loaded(tmp_path: Path, finetuned: Path, bad: float) -> None:
    model = VideoMAE(TOY)
    good = tmp_path / "weights.safetensors"
    save_weights(good, model.state_dict(), TOY, {})
    before = good.read_bytes()
    model.decoder.norm.bias.data[3] = bad
    with pytest.raises(UserError, match=r"decoder\.norm\.bias is not finite"):
        save_weights(good, model.state_dict(), TOY, {})
    assert good.read_bytes() == before
    state, loaded = load_file(finetuned), load_weights(finetuned)
    state["encoder.blocks.0.norm1.weight"][0] = bad
    foreign = tmp_path / "foreign.safetensors"
    # Only what an earlier version wrote, without a checksum.
    save_file(state, foreign, metadata={"mgm_model": loaded.metadata["mgm_model"]})
    with pytest.raises(UserError, match=r"blocks\.0\.norm1\.weight is not finite"):
        load_weights(foreign)


def _breaking(job: Job, at_step: int) -> Objective:
    """The job's objective, whose gradient but not its value is NaN at a step."""
    calls: list[int] = []

    def objective(model: nn.Module, batch: dict[str, Any], seed: int) -> Tensor:
        calls.append(0)
        loss = job.objective(model, batch, seed)
        # The root of 0 has an infinite slope, and 0 times infinity is NaN.
        return loss + (loss - loss).sqrt() if len(calls) == at_step else loss

    return objective


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
@pytest.mark.parametrize("at_step", [10, 7])
def test_the_last_update_is_checked_before_it_is_saved(tmp_path: Path, at_step: int, ema_decay: float) -> None:
    """Of ten steps of two an epoch: the loss of the last one is finite, the weights after it are not."""
    job = pretrain_job(tmp_path, toy_config(save_every_epochs=1, log_every_steps=10, ema_decay=ema_decay))
    with pytest.raises(
        UserError, match=f"the (weights are not finite after|loss is nan at) step {at_step + at_step % 2}"
    ):
        train(Job(**(vars(job) | {"objective": _breaking(job, at_step)})), CPU)
    if at_step == 10:
        assert all(map(math.isfinite, losses_of(tmp_path)))
    files = sorted(path.name for path in RunFolder(tmp_path).checkpoints.glob("*.safetensors"))
    assert files == [f"epoch-000{epoch}.safetensors" for epoch in range(1, (at_step - 1) // 2 + 1)]
    last = load_last(RunFolder(tmp_path))
    assert last is not None
    assert all(bool(tensor.isfinite().all()) for tensor in last["model"].values())


def test_moments_that_overflow_are_no_finished_run(tmp_path: Path) -> None:
    """A gradient of 1e30 leaves weights that are finite, and a second moment that freezes them for ever."""
    job = pretrain_job(tmp_path)
    huge: list[int] = []

    def objective(model: nn.Module, batch: dict[str, Any], seed: int) -> Tensor:
        huge.append(0)
        return job.objective(model, batch, seed) * (1e30 if len(huge) == 10 else 1)

    with pytest.raises(UserError, match="not finite after step 10"):
        train(Job(**(vars(job) | {"objective": objective})), CPU)


def test_a_test_between_epochs_is_not_reached_with_such_weights(tmp_path: Path) -> None:
    tested: list[int] = []

    def test(epoch: int, model: nn.Module) -> dict[str, float]:
        tested.append(epoch)
        return {"top1": 1.0}

    job = finetune_job(tmp_path)
    with pytest.raises(UserError, match="not finite"):
        train(Job(**(vars(job) | {"objective": _breaking(job, 4), "on_epoch_end": test})), CPU)
    assert tested == [1]


def _train_broken(run: Path) -> None:
    with init_distributed("cpu") as distributed:
        job = pretrain_job(run, toy_config(fsdp=True, log_every_steps=10), MovingStripes())
        try:
            train(Job(**(vars(job) | {"objective": _breaking(job, 10)})), distributed)
        except UserError as error:
            run.with_suffix(f".{distributed.rank}").write_text(str(error))


def test_shards_of_a_model_are_checked_together(tmp_path: Path) -> None:
    assert run_processes(2, _train_broken, tmp_path / "run") == [0, 0]
    said = [(tmp_path / f"run.{rank}").read_text() for rank in range(2)]
    assert "not finite after step 10" in said[0]
    assert said[0] == said[1]


def test_a_run_that_diverges_says_so_and_exits_with_2(pan_store: Store, tmp_path: Path) -> None:
    """The case of the report: between epochs it said "top-1 100.0%"."""
    options = _flags(
        model="vit_tiny", num_frames=4, image_px=64, stride=2, num_workers=0, batch_size=4, epochs=3, warmup_epochs=0,
        base_lr=1e30, precision="bf16", eval_every_epochs=1, eval_split="test", repeats=1, head_init_scale=1,
    )  # fmt: skip
    result = _run("finetune", pan_store.path, "--run", tmp_path / "run", *options, "--no-flip", "--json")
    assert _is_one_line(result), result.stderr
    assert "not finite" in result.stderr or "the loss is nan" in result.stderr
    assert "top-1" not in result.stderr
    assert not list((tmp_path / "run").rglob("*.safetensors"))


def test_a_head_of_the_probe_that_diverges_is_not_chosen() -> None:
    generator = torch.Generator().manual_seed(0)
    label_N = torch.arange(40) % 2
    feature_NVD = torch.randn(40, 1, 6, generator=generator) + 3 * label_N[:, None, None]
    train_features = Features(
        feature_NVD=feature_NVD.half(), label_N=label_N, sample_ids=[str(n) for n in range(40)], unreadable={}
    )
    config = ProbeConfig(learning_rates=(3e37, 1e-2), weight_decays=(0.0,), epochs=20, head_batch_size=8)
    choices, best, predictions = fit_and_score(train_features, train_features, 2, config, CPU.device)
    assert best == 1
    assert choices[1].top1 > 0.9
    assert choices[0].top1 == 0
    assert len(predictions) == 40
    with pytest.raises(UserError, match="lower learning-rates"):
        fit_and_score(train_features, train_features, 2, config.replace(learning_rates=(3e37,)), CPU.device)


def test_probe_settings_that_float32_cannot_hold_are_rejected() -> None:
    with pytest.raises(UserError, match="learning-rates"):
        ProbeConfig(learning_rates=(1e38,))
    with pytest.raises(UserError, match="weight-decays"):
        ProbeConfig(weight_decays=(1e38,))
