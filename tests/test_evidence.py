"""The evidence runs at toy size: what is made, what is run and in which order, that it continues, and its cost.

Every stage runs in this process; `test_ablate.py` has the processes.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from synthetic import texture, write_video

from mgm_shared.store import open_store
from mgm_train.ablation.grid import read_grid, runs_of
from mgm_train.ablation.runner import Ended
from mgm_train.cli import main as mgm_train
from mgm_train.config import PretrainConfig
from mgm_train.models.flops import epoch_flops, finetune_flops, pretrain_flops

PIPELINES = Path(__file__).parents[1] / "pipelines"
sys.path.insert(0, str(PIPELINES))

from evidence import cli, data  # noqa: E402
from evidence.cost import planned_flops  # noqa: E402
from evidence.grids import write_grid  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


def pan_clip(path: Path, seed: int, step: int) -> None:
    wide_HWC = texture(48, 200, seed=seed, is_grey=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, (wide_HWC[:, 60 + step * t : 124 + step * t] for t in range(20)))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two clips of each of four videos."""
    folder = tmp_path_factory.mktemp("corpus")
    for video in range(4):
        for number in range(2):
            pan_clip(folder / f"video{video}-{number:04d}.mp4", seed=10 * video + number, step=2)
    return folder


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """The stages that were run, as (task, folder)."""
    stages: list[tuple[str, str]] = []

    def launch(command: list[str], stop: Any) -> Ended:
        stages.append((command[0], Path(command[command.index("--config") + 1]).parent.name))
        result = CliRunner().invoke(mgm_train, command)
        return Ended(code=result.exit_code, stdout=result.stdout, reason=result.stderr)

    monkeypatch.setattr("mgm_train.ablation.runner.launcher", lambda num_gpus: launch)
    return stages


@pytest.fixture
def evidence(tmp_path: Path, corpus: Path) -> Callable[..., Result]:
    def run(grid: str, *more: object) -> Result:
        arguments = [grid, tmp_path / "out", "--corpus", corpus, "--dry-run", *more]
        return CliRunner().invoke(cli.main, [str(argument) for argument in arguments], catch_exceptions=False)

    return run


def test_the_reduced_grid_continues_and_holds_a_row_for_each_run(
    evidence: Callable[..., Result], called: list[tuple[str, str]], tmp_path: Path
) -> None:
    first = evidence("small", "--seed", 1, "--table", "a help")
    assert first.exit_code == 0, first.output
    few = "finetune.label_fraction=0.05,"
    expected: list[tuple[str, str]] = []
    for labels in ("", few):
        expected += [(task, f"{labels}pretrain_on=none,seed=1") for task in ("finetune", "evaluate")]
        for mask in ("mask=tube,", "mask=tube,mask_ratio=0.9,", ""):
            # The pretraining and its probe are those of the row with more labels.
            expected += [("pretrain", f"{mask}seed=1")] * (not labels)
            expected += [(task, f"{labels}{mask}seed=1") for task in ("finetune", "evaluate")]
            expected += [("probe", f"{mask}seed=1")] * (not labels)
    assert called == expected
    called.clear()
    assert evidence("small", "--seed", 0, "--seed", 1, "--table", "a help").exit_code == 0
    assert {folder[-1] for _, folder in called} == {"0"}, "what is finished is not run again"
    found = json.loads((tmp_path / "out/small/rows.json").read_text())
    assert found["made"].keys() == {"commit", "device", "torch"}
    starts = ["scratch", "tube 0.75", "tube 0.9", "MGM"]
    # At toy size, rows of other tables are the same runs.
    rows = [row for row in found["rows"] if row["table"] == "a help"]
    assert [(row["seed"], row["labels"]["labels"], row["labels"]["pretraining"]) for row in rows] == [
        (seed, share, start) for seed in (0, 1) for share in ("20 %", "5 %") for start in starts
    ]
    for row in rows:
        assert 0 <= row["evaluate_top1"] <= 1
        assert row["finetune_num_steps"] == {"20 %": 6, "5 %": 3}[row["labels"]["labels"]]
        assert row["evaluate_scored"] == 12
        assert ("probe_knn_top1" in row) == (row["labels"]["pretraining"] != "scratch")


def test_no_video_of_the_test_is_trained_on(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []
    monkeypatch.setattr(data, "run", lambda arguments: calls.append([str(word) for word in arguments]))
    data.small_store(corpus, tmp_path, data.TOY)
    (made,) = [call for call in calls if call[0].endswith("make_motion_clips.py")]
    cut = made.index("--test-backgrounds")

    def videos(words: list[str]) -> set[str]:
        return {Path(word).stem.split("-")[0] for word in words if word.endswith(".mp4")}

    train, test = videos(made[:cut]), videos(made[cut:])
    assert train | test == {f"video{k}" for k in range(4)}
    assert train
    assert test
    assert not train & test
    assert made[made.index("--seed") + 1] == str(data.MOTION6_SEED)


def test_clips_are_taken_evenly_from_each_video() -> None:
    whole = [Path(f"a-film-{number:04d}.mp4") for number in range(10)]
    crops = [Path(f"a-film-crop1-{number:04d}.mp4") for number in range(10)]
    only_crops = [Path(f"b-crop2-{number:04d}.mp4") for number in range(2)]
    assert data.whole_clips(whole + crops + only_crops) == [whole[0], whole[4], whole[8], *only_crops]


@pytest.mark.parametrize("name", ["small", "full"])
def test_every_row_of_a_grid_has_a_dry_run(name: str, tmp_path: Path) -> None:
    stores = {"mixed": tmp_path / "mixed.store", "corpus": tmp_path / "corpus.store"}
    real, dry = (
        read_grid(write_grid(name, tmp_path / kind, 3, stores=stores, boxes=tmp_path / "boxes", is_dry_run=is_dry))
        for kind, is_dry in (("real", False), ("dry", True))
    )
    assert [(table.name, [row.labels for row in table.rows]) for table in real] == [
        (table.name, [row.labels for row in table.rows]) for table in dry
    ]
    for run in runs_of(dry):
        configs: dict[str, Any] = dict(run.configs)
        assert (configs["pretrain"].epochs, configs["finetune"].epochs, run.seed) == (1, 1, 3)
        assert configs["finetune"].image_px == 32
    guided = [config for run in runs_of(real) for config in run.configs.values() if isinstance(config, PretrainConfig)]
    assert {config.boxes for config in guided if config.guidance == "boxes"} <= {str(tmp_path / "boxes")}
    if name == "full":
        # The paper's seven rows, and the tube at VideoMAE's own ratio among them.
        assert len(real[0].rows) == 7
        assert {"vectors", "clean", "boxes", "flow"} == {config.guidance for config in guided}


def test_cheaper_steps_have_the_compute_of_mgm(tmp_path: Path) -> None:
    """By the operations that the loop counts for each epoch."""
    stores = {"mixed": tmp_path / "mixed.store", "corpus": tmp_path / "corpus.store"}
    tables = read_grid(write_grid("full", tmp_path, 0, stores=stores, boxes=tmp_path / "boxes"))
    (table,) = [table for table in tables if table.name.startswith("cheaper steps")]
    costs, kinds = {}, set()
    for run in runs_of([table]):
        config: Any = run.configs["pretrain"]
        costs[run.names["pretrain"]] = sum(epoch_flops(config))
        kinds.add((config.mask, config.decoder, config.decode_ratio, config.drop, len(config.stages)))
    assert len(costs) == len(kinds) + 1 == 11, "the schedules of size and of frames are of the same kind"
    (mgm,) = [cost for name, cost in costs.items() if "epochs=40" in name or "epochs" not in name]
    assert list(costs.values()) == pytest.approx([mgm] * len(costs), rel=0.01)


def test_shared_pretrainings_cost_once(tmp_path: Path) -> None:
    settings = {"model": "vit_tiny", "num_frames": 4, "image_px": 32, "warmup_epochs": 0, "pretrain.epochs": 3}
    settings |= {"finetune.epochs": 5, "finetune.repeats": 2}
    axes = {"finetune.label_fraction": [0.5, 1.0], "from": {"same": {}, "scratch": {"pretrain_on": "none"}}}
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump({"settings": settings, "tables": {"t": axes}}))
    runs = runs_of(read_grid(tmp_path / "grid.yaml"))
    shape = PretrainConfig(model="vit_tiny", num_frames=4, image_px=32).shape
    # 3 of 4 patches of 2 slices are masked.
    expected = 40 * 3 * pretrain_flops(shape, 6) + 2 * (20 + 40) * 5 * 2 * finetune_flops(shape, 7)
    assert planned_flops(runs, 40, 7, {"": 40}) == expected


@pytest.fixture
def motion50(tmp_path: Path) -> Path:
    """Clips of two classes, and boxes of what moves in them."""
    folder = tmp_path / "motion50"
    for split, count in (("train", 4), ("test", 1)):
        for label, step in (("go", 2), ("come", -2)):
            for number in range(count):
                pan_clip(folder / f"videos/{split}/{label}/{number:04d}.mp4", seed=number, step=step)
                box = folder / f"boxes/{split}/{label}/{number:04d}.txt"
                box.parent.mkdir(parents=True, exist_ok=True)
                box.write_text("".join(f"{t + 1},1,8,8,24,24,1\n" for t in range(20)))
    return folder


def _full_rows(evidence: Callable[..., Result], motion50: Path, *more: str) -> list[dict[str, Any]]:
    result = evidence("full", "--motion50", motion50, *more)
    assert result.exit_code == 0, result.output
    rows: list[dict[str, Any]] = json.loads((motion50.parent / "out/full/rows.json").read_text())["rows"]
    return rows


def test_a_table_of_the_full_grid_runs_dry(
    evidence: Callable[..., Result], called: list[tuple[str, str]], motion50: Path
) -> None:
    (row,) = _full_rows(evidence, motion50, "--table", "jitter")
    assert (row["table"], row["evaluate_scored"]) == ("jitter", 2)
    assert open_store(motion50.parent / "out/motion50.store").digest


@pytest.mark.slow
def test_the_full_grid_runs_dry(evidence: Callable[..., Result], called: list[tuple[str, str]], motion50: Path) -> None:
    assert len(_full_rows(evidence, motion50)) == 7 + 2 + 4 + 11 + 3 + 9 + 1
