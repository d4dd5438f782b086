"""mgm-train as a user runs it, on a tiny store: pretrain, fine-tune, test, draw; and what it says to bad input."""

import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import av
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from PIL.GifImagePlugin import GifImageFile

from mgm_shared.store import Store
from mgm_train.checkpoint.run_folder import RunFolder
from mgm_train.cli import main
from mgm_train.figures.paper_figures import attention_picture

SMALL = [
    "--model",
    "vit_tiny",
    "--num-frames",
    "4",
    "--image-px",
    "64",
    "--stride",
    "2",
    "--num-workers",
    "0",
    "--no-flip",
]
SHORT = ["--batch-size", "4", "--epochs", "2", "--warmup-epochs", "1", "--log-every-steps", "1", "--repeats", "1"]
ONE_VIEW = ["--num-temporal-views", "1", "--num-spatial-views", "1", "--stride", "2", "--num-workers", "0"]


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def pretrained(pan_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "pretrain"
    result = _run("pretrain", pan_store.path, "--run", folder, *SMALL, *SHORT, "--json")
    assert result.exit_code == 0, result.stderr
    outcome = json.loads(result.stdout)
    assert (outcome["num_steps"], outcome["is_complete"]) == (2, True)
    return folder


@pytest.fixture(scope="module")
def finetuned(pan_store: Store, pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "finetune"
    result = _run("finetune", pan_store.path, "--run", folder, "--init", pretrained, *SMALL, *SHORT)
    assert result.exit_code == 0, result.stderr
    assert "74 pretrained tensors used; new: fc_norm, head" in result.stderr
    return folder


def test_a_finished_run_is_left_alone(pan_store: Store, pretrained: Path) -> None:
    before = {file: file.read_bytes() for file in pretrained.rglob("*.safetensors")}
    result = _run("pretrain", pan_store.path, "--run", pretrained, *SMALL, *SHORT, "--json")
    assert json.loads(result.stdout)["num_steps"] == 2
    assert {file: file.read_bytes() for file in pretrained.rglob("*.safetensors")} == before


def test_tests_between_epochs_disturb_nothing(
    pan_store: Store, pretrained: Path, finetuned: Path, tmp_path: Path
) -> None:
    watched = ["--eval-every-epochs", "1", "--eval-split", "test"]
    result = _run("finetune", pan_store.path, "--run", tmp_path, "--init", pretrained, *SMALL, *SHORT, *watched)
    assert result.exit_code == 0, result.stderr
    rows = RunFolder(tmp_path).read_metrics()
    tested = [row for row in rows if "test_top1" in row]
    assert [(row["step"], row["epoch"], row["test_scored"], row["test_listed"]) for row in tested] == [
        (1, 1, 4, 4),
        (2, 2, 4, 4),
    ]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses == [row["loss"] for row in RunFolder(finetuned).read_metrics()]
    scores = json.loads(_run("evaluate", pan_store.path, tmp_path, *ONE_VIEW, "--json").stdout)
    assert tested[-1]["test_top1"] == scores["top1"]
    # It may be asked for, or not any more, when a run goes on.
    again = _run("finetune", pan_store.path, "--run", tmp_path, "--init", pretrained, *SMALL, *SHORT)
    assert again.exit_code == 0, again.stderr


def test_a_split_without_videos_cannot_be_tested(pan_store: Store, tmp_path: Path) -> None:
    result = _run("finetune", pan_store.path, "--run", tmp_path / "new", *SMALL, *SHORT, "--eval-every-epochs", "1")
    assert (result.exit_code, "split 'val'" in result.stderr) == (2, True)
    assert not (tmp_path / "new").exists()


def test_evaluate_scores_every_listed_video(pan_store: Store, finetuned: Path) -> None:
    result = _run("evaluate", pan_store.path, finetuned, *ONE_VIEW, "--json")
    assert result.exit_code == 0, result.stderr
    scores = json.loads(result.stdout)
    assert (scores["scored"], scores["listed"], scores["views"]) == (4, 4, 1)
    assert "scored 4 of 4 listed" in result.stderr
    rows = list(csv.DictReader((finetuned / "predictions-test.csv").read_text().splitlines()))
    right = sum(row["label"] == row["predicted"] for row in rows)
    assert scores["top1"] == right / 4


def test_a_class_map_names_what_is_scored(pan_store: Store, finetuned: Path, tmp_path: Path) -> None:
    (tmp_path / "map.csv").write_text("label,class\nleft,right\nup,up\naway,down\n")
    mapped = ["evaluate", pan_store.path, finetuned, *ONE_VIEW, "--class-map", tmp_path / "map.csv"]
    result = _run(*mapped, "--out", tmp_path / "out", "--json")
    assert result.exit_code == 0, result.stderr
    assert "takes 2 of 4 videos of split 'test'; no video" in result.stderr
    assert json.loads(result.stdout)["listed"] == 2
    rows = list(csv.DictReader((tmp_path / "out" / "predictions-test.csv").read_text().splitlines()))
    assert [(row["video_id"], row["label"]) for row in rows] == [("test/left/0.mp4", "right"), ("test/up/0.mp4", "up")]
    assert json.loads(_run(*mapped, "-n", "--json").stdout)["videos"] == 2


def test_visualize_draws(pan_store: Store, pretrained: Path, tmp_path: Path) -> None:
    result = _run("visualize", pan_store.path, "--run", pretrained, "--out", tmp_path, "--json")
    assert result.exit_code == 0, result.stderr
    written = json.loads(result.stdout)
    assert written.keys() == {"loss", "masks", "saliency", "attention", "reconstruction"}
    for name, file in written.items():
        assert file == str(tmp_path / f"{name}.png")
        assert Path(file).read_bytes().startswith(b"\x89PNG")


def test_visualize_animates_and_knows_boxes(
    pan_store: Store, pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def one_picture(subject: Any, model: Any) -> dict[str, Any]:
        assert [len(boxes) for boxes in subject.boxes_T] == [0, 1, 0, 0]
        return {"attention": attention_picture(subject, model)}

    monkeypatch.setattr("mgm_train.figures.paper_figures.pictures", one_picture)
    # The clip is of frames 8, 10, 12, 14; a MOT file counts from 1.
    (tmp_path / "gt.txt").write_text("11,1,10,10,20,20,1\n")
    arguments = ["--run", pretrained, "--boxes", tmp_path / "gt.txt", "--gif", "--mp4"]
    result = _run("visualize", pan_store.path, "--video", "train/up/0.mp4", *arguments, "--json")
    assert result.exit_code == 0, result.stderr
    assert Path(json.loads(result.stdout)["attention_gif"]) == pretrained / "figures/attention.gif"
    with Image.open(pretrained / "figures/attention.gif") as gif:
        # 25 frames a second at a stride of 2.
        assert isinstance(gif, GifImageFile)
        assert (gif.n_frames, gif.info["duration"]) == (4, 80)
        size = gif.size
    with av.open(json.loads(result.stdout)["attention_mp4"]) as film:
        video = film.streams.video[0]
        assert (video.frames, float(video.average_rate)) == (4, 12.5)
        assert (video.width, video.height) == tuple(side + side % 2 for side in size)


def test_a_dry_run_says_and_does_nothing(pan_store: Store, tmp_path: Path) -> None:
    result = _run("pretrain", pan_store.path, "--run", tmp_path / "new", *SMALL, *SHORT, "-n", "--json")
    plan = json.loads(result.stdout)
    assert (plan["videos"], plan["steps"], plan["mask_ratio"]) == (4, 2, 0.75)
    assert not (tmp_path / "new").exists()


def test_mirroring_classes_that_a_mirror_exchanges_is_warned_of(pan_store: Store, tmp_path: Path) -> None:
    for command in ("pretrain", "finetune"):
        arguments = [command, pan_store.path, "--run", tmp_path / "new", *SMALL, *SHORT, "-n"]
        assert "mirrored" not in _run(*arguments).stderr
        assert "'left' mirrored is 'right'; use --no-flip" in _run(*arguments, "--flip").stderr


def test_bad_input_is_one_line(pan_store: Store, pretrained: Path, finetuned: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("pretrain:\n  epoch: 10\n")
    (tmp_path / "junk.safetensors").write_text("junk")
    store, run = pan_store.path, ["--run", tmp_path / "new"]
    other_size = ["--model", "vit_small", *SMALL[2:]]
    cases = {
        ("pretrain", tmp_path / "nowhere", *run): "is not an mgm store",
        ("pretrain", store, *run, "--config", tmp_path / "config.yaml"): "`pretrain` has no option epoch",
        ("pretrain", store, *run, *SMALL, "--mask", "tubes"): "'tubes' is not one of 'mgm'",
        ("pretrain", store, *run, *SMALL, "--batch-size", 512): "there are 4 videos to train on",
        ("pretrain", store, *run, *SMALL, *SHORT, "--device", "cuda"): "torch sees no GPU",
        ("pretrain", store, "--run", pretrained, *SMALL, *SHORT, "--seed", 1): "seed was 0 and is now 1",
        ("finetune", store, *run, *other_size, *SHORT, "--init", pretrained): "model is vit_small and not vit_tiny",
        ("finetune", store, *run, *SMALL, *SHORT, "--init", tmp_path): "neither a weights file nor a run folder",
        ("evaluate", store, tmp_path / "junk.safetensors"): "is no safetensors file",
        ("evaluate", store, pretrained): "holds no classifier",
        ("evaluate", store, finetuned, "--split", "val"): "has no video of split 'val'",
        ("visualize", store, "--run", finetuned): "is not the folder of a pretrain run",
    }
    for arguments, message in cases.items():
        result = _run(*arguments)
        assert result.exit_code == 2, (arguments, result.stderr)
        assert message in result.stderr
        (line,) = [line for line in result.stderr.splitlines() if line.startswith("mgm-train")]
        assert result.stderr.endswith(f"{line}\n"), result.stderr
        assert not (tmp_path / "new").exists()


def test_two_processes_of_torchrun(pan_store: Store, finetuned: Path, tmp_path: Path) -> None:
    """Two gloo processes pretrain until SIGTERM, one goes on alone; two score each video once.

    torchrun's own parser takes `--run` for its `--run-path`, hence the second name.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    torchrun = [sys.executable, *"-m torch.distributed.run --standalone --nproc-per-node 2 -m mgm_train".split()]
    run = tmp_path / "run"
    long = [*SMALL, *SHORT, "--epochs", "60"]
    command = [*torchrun, "pretrain", str(pan_store.path), "--run-dir", str(run), *long]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and len(RunFolder(run).read_metrics()) < 2:
            time.sleep(0.02)
        process.terminate()
        _, said = process.communicate(timeout=60)
    assert "run the same command again to continue" in said
    alone = _run("pretrain", pan_store.path, "--run", run, *long, "--json")
    assert alone.exit_code == 0, alone.stderr
    assert "continuing after step" in alone.stderr
    assert json.loads(alone.stdout)["num_steps"] == 60
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 61))

    command = [*torchrun, "evaluate", str(pan_store.path), str(finetuned), *ONE_VIEW, "--json"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    together = json.loads(done.stdout)
    assert together == json.loads(_run(*command[command.index("evaluate") :]).stdout)
    assert (together["scored"], together["listed"]) == (4, 4)
