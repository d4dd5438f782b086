"""What a run began with is compared from its first start on, contents included; and a run folder has one run."""

import json
import os
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from toy import CPU, MovingStripes, pretrain_job, toy_config

from mgm_shared.errors import UserError
from mgm_shared.lock import one_writer
from mgm_shared.store import Store
from mgm_train.checkpoint.resume import check_resumable
from mgm_train.checkpoint.run_folder import RunFolder
from mgm_train.checkpoint.weights import load_weights, save_weights
from mgm_train.cli import main
from mgm_train.config import PretrainConfig
from mgm_train.training.loop import train

SHAPE = "--model vit_tiny --num-frames 4 --image-px 64 --stride 2 --num-workers 0 --no-flip --device cpu".split()
SHORT = [
    *SHAPE,
    *"--batch-size 4 --epochs 1 --warmup-epochs 0 --log-every-steps 1 --repeats 1 --grad-accum-steps 1".split(),
]
VIEWS = "--num-temporal-views 2 --num-spatial-views 1 --num-workers 0 --device cpu".split()


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def _refused(result: Result, *texts: str) -> None:
    assert result.exit_code == 2, result.output
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("mgm-train:")]
    for text in texts:
        assert text in line
    assert result.stderr.splitlines()[-1] == line


def test_other_settings_are_refused_before_there_is_a_checkpoint(tmp_path: Path) -> None:
    def fail(epoch: int, model: object) -> dict[str, float]:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train(pretrain_job(tmp_path, toy_config(), on_epoch_end=fail, save_last_every_s=1e9), CPU)
    run = RunFolder(tmp_path)
    assert not run.last.exists()
    rows = run.read_metrics()
    assert rows
    with pytest.raises(UserError, match=r"begun with other settings: mask was 'mgm' and is now 'tube'; .* or --force"):
        train(pretrain_job(tmp_path, toy_config(mask="tube")), CPU)
    with pytest.raises(UserError, match=r"store was '' and is now 'other'"):
        train(pretrain_job(tmp_path, toy_config(), store="other"), CPU)
    assert run.read_metrics() == rows, "nothing of the first run is touched"
    assert train(pretrain_job(tmp_path, toy_config(num_workers=0, save_every_epochs=1)), CPU).is_complete


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("key: value\nother: [1]\n")
    (tmp_path / "environment.json").write_text("{}")
    with pytest.raises(UserError, match=r"has a config.yaml or environment.json of something else"):
        train(pretrain_job(tmp_path), CPU)
    assert (tmp_path / "config.yaml").read_text().startswith("key")


def test_an_option_that_came_later_had_its_default() -> None:
    options = PretrainConfig().to_dict()
    del options["mask_top_k"]
    state = {"task": "pretrain", "position": {"store": "a"}, "config": options}
    run = RunFolder(Path("run"))
    check_resumable(run, state, "pretrain", PretrainConfig(), "a")
    with pytest.raises(UserError, match="mask-top-k was 1 and is now 2"):
        check_resumable(run, state, "pretrain", PretrainConfig(mask_top_k=2), "a")


@pytest.fixture(scope="module")
def pretrained(pan_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "pretrain"
    assert _run("pretrain", pan_store.path, "--run", folder, *SHORT).exit_code == 0
    return folder


@pytest.fixture
def finetuned(pan_store: Store, pretrained: Path, tmp_path: Path) -> list[object]:
    """The command of a finished fine-tuning with a class map and pretrained weights, copied into `tmp_path`."""
    shutil.copytree(pretrained, tmp_path / "init")
    (tmp_path / "map.csv").write_text("label,class\n" + "".join(f"{name},{name}\n" for name in ("up", "down", "left")))
    command: list[object] = ["finetune", pan_store.path, "--run", tmp_path / "run", "--class-map", tmp_path / "map.csv"]
    command += [
        "--init",
        tmp_path / "init",
        *SHORT,
        "--batch-size",
        "3",
        "--sampling",
        "segment",
        "--mixup",
        "0",
        "--cutmix",
        "0",
    ]
    result = _run(*command)
    assert result.exit_code == 0, result.output
    return command


def test_an_edited_class_map_is_refused(finetuned: list[object], tmp_path: Path) -> None:
    (tmp_path / "map.csv").write_text("label,class\nup,z\ndown,down\nleft,left\n")
    _refused(_run(*finetuned), "class-map: the content of ", "map.csv is not what it was")


def test_other_weights_of_the_same_name_are_refused(finetuned: list[object], tmp_path: Path) -> None:
    weights = load_weights(tmp_path / "init")
    save_weights(weights.path, {name: tensor + 1 for name, tensor in weights.state.items()}, weights.model, {})
    _refused(_run(*finetuned), "init: the content of ", "is not what it was")


def test_the_same_files_under_other_names_are_the_same(
    finetuned: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy("map.csv", "copy.csv")
    command = [*finetuned, "--class-map", "copy.csv", "--init", Path("run") / ".." / "init"]
    assert _run(*command).exit_code == 0
    assert _run(*command, "--init", "init/checkpoints/epoch-0001.safetensors").exit_code == 0


def test_edited_boxes_are_refused(pan_store: Store, tmp_path: Path) -> None:
    boxes = tmp_path / "boxes"
    for video in map(pan_store.video_at, range(len(pan_store))):
        file = boxes / f"{video.video_id}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(f"{frame},1,10,10,30,30,1,1,1\n" for frame in range(1, 25)))
    command = ["pretrain", pan_store.path, "--run", tmp_path / "run", *SHORT, "--guidance", "boxes", "--boxes", boxes]
    assert _run(*command).exit_code == 0
    assert _run(*command, "--boxes", f"{boxes}/").exit_code == 0
    file.write_text("1,1,10,10,30,30,1,1,1\n")
    _refused(_run(*command), "boxes: the content of ")


def test_a_test_samples_as_the_fine_tuning_did_unless_told_otherwise(
    finetuned: list[object], pan_store: Store, tmp_path: Path
) -> None:
    command = ["evaluate", pan_store.path, tmp_path / "run", "--class-map", tmp_path / "map.csv", *VIEWS, "--json"]
    inherited = _run(*command)
    assert inherited.exit_code == 0, inherited.output
    for line in ("stride is 2, as in the fine-tuning; --stride sets another", "sampling is segment, as in the fine"):
        assert line in inherited.stderr
    asked = _run(*command, "--stride", "2", "--sampling", "segment")
    assert "as in the fine-tuning" not in asked.stderr
    table = tmp_path / "run" / "predictions-test.csv"
    rows = table.read_text()
    _run(*command)
    assert table.read_text() == rows
    (tmp_path / "file.yaml").write_text("evaluate: {stride: 3, sampling: dense}\n")
    other = _run(*command, "--config", tmp_path / "file.yaml")
    assert "stride is 3 as asked; the fine-tuning had 2" in other.stderr
    assert table.read_text() != rows
    preview = json.loads(_run(*command, "-n").stdout)
    assert (preview["stride"], preview["sampling"]) == (2, "segment")


def test_one_class_is_said(pan_store: Store, tmp_path: Path) -> None:
    (tmp_path / "map.csv").write_text("label,class\nup,moves\ndown,moves\nleft,moves\nright,moves\n")
    result = _run("finetune", pan_store.path, "--run", tmp_path / "run", "--class-map", tmp_path / "map.csv", *SHORT)
    assert result.exit_code == 0
    assert "warning: all training videos have one class, 'moves', so there is nothing to tell apart" in result.stderr


def _pairs(folder: Path) -> Path:
    """Two classes of two training videos each: a probe holds one of each out."""
    file = folder / "pairs.csv"
    file.write_text("label,class\nleft,across\nright,across\nup,along\ndown,along\n")
    return file


@pytest.mark.parametrize("force", [(), ("--force",)])
@pytest.mark.parametrize("task", ["pretrain", "probe"])
def test_the_second_run_of_a_folder_is_told_who_has_it(
    task: str, force: tuple[str, ...], pan_store: Store, pretrained: Path, tmp_path: Path
) -> None:
    options = SHORT if task == "pretrain" else ["--init", pretrained, *VIEWS, "--class-map", _pairs(tmp_path)]
    with one_writer(tmp_path / "run"):
        result = _run(task, pan_store.path, "--run", tmp_path / "run", *options, *force)
        _refused(result, f"another command (process {os.getpid()} on ", "is writing to ", "wait for it, or stop it")
        assert [file.name for file in (tmp_path / "run").iterdir()] == [".lock"]
    assert not list(tmp_path.glob("run.old*"))


def test_force_moves_a_folder_aside_that_nobody_holds(pan_store: Store, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("other: 1")
    assert _run("pretrain", pan_store.path, "--run", tmp_path / "run", *SHORT, "--force").exit_code == 0
    assert [file.name for file in (tmp_path / "run.old-1").iterdir()] == ["config.yaml"]
    assert not (tmp_path / "run" / ".lock").exists()


def test_two_tests_into_one_folder(finetuned: list[object], pan_store: Store, tmp_path: Path) -> None:
    command = ["evaluate", pan_store.path, tmp_path / "run", "--class-map", tmp_path / "map.csv", *VIEWS]
    with one_writer(tmp_path / "run", name=".test.lock"):
        _refused(_run(*command), f"another command (process {os.getpid()} on ")
    # The training may go on meanwhile.
    with one_writer(tmp_path / "run"):
        assert _run(*command).exit_code == 0
    assert not list((tmp_path / "run").glob(".*"))


def test_two_ablations_in_one_folder(pan_store: Store, tmp_path: Path) -> None:
    grid = Path(__file__).parent.parent / "pipelines" / "ablation.yaml"
    with one_writer(tmp_path / "out"):
        _refused(_run("ablate", grid, pan_store.path, "--run", tmp_path / "out"), "another command (process")


def test_a_probe_does_not_mix_into_a_pretraining(pan_store: Store, pretrained: Path, tmp_path: Path) -> None:
    before = (pretrained / "config.yaml").read_bytes()
    options = ["--init", pretrained, *VIEWS, "--class-map", _pairs(tmp_path)]
    result = _run("probe", pan_store.path, "--run", pretrained, *options)
    _refused(result, "is the folder of a pretrain run; take another run folder for the probe")
    assert (pretrained / "config.yaml").read_bytes() == before


def test_an_interrupted_run_holds_nothing(tmp_path: Path) -> None:
    dataset = MovingStripes(signal_at=12)
    assert not train(pretrain_job(tmp_path, dataset=dataset), CPU).is_complete
    assert not (tmp_path / ".lock").exists()
