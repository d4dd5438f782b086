"""An ablation as a user sees it: every run once, resumed, failures as rows, a wish to stop; and a toy grid for real."""

import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from mgm_shared.signals import StopRequest
from mgm_shared.store import Store
from mgm_train.ablation.runner import Ended, launch, launcher
from mgm_train.cli import main

TOY = {
    **{"model": "vit_tiny", "num_frames": 4, "image_px": 64, "stride": 2, "num_workers": 0, "batch_size": 4},
    **{"epochs": 1, "warmup_epochs": 0, "repeats": 1, "num_temporal_views": 1, "num_spatial_views": 1},
}
GRID = {"settings": TOY, "seeds": [0, 1], "tables": {"type": {"mask": ["tube", "mgm"]}, "ratio": {"mask_ratio": [0.5]}}}


class Programs:
    """Stands in for the programs: notes what is called, and ends as it is told."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        self.stores: list[str] = []
        self.fail: dict[tuple[str, str], str] = {}
        self.stop_at: int | None = None
        self.unscored = 0

    def __call__(self, command: Any, stop: Any) -> Ended:
        task, place = command[0], Path(command[3] if command[0] != "evaluate" else command[2]).parent.name
        self.calls.append((task, place))
        self.stores.append(command[1])
        asked = yaml.safe_load(Path(command[command.index("--config") + 1]).read_text())
        assert list(asked) == [task]
        if self.stop_at == len(self.calls):
            return Ended(code=130, stdout="", reason="")
        if (task, place) in self.fail:
            return Ended(code=1, stdout="", reason=self.fail[task, place])
        scored = 20 - self.unscored
        scores = {"top1": 0.6 + 0.1 * ("tube" not in place) + 0.02 * int(place[-1]), "scored": scored, "listed": 20}
        return Ended(code=3 if self.unscored else 0, stdout=json.dumps(scores), reason="")


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> Programs:
    programs = Programs()
    monkeypatch.setattr("mgm_train.ablation.runner.launcher", lambda num_gpus: programs)
    return programs


@pytest.fixture
def ablate(pan_store: Store, tmp_path: Path) -> Callable[..., Result]:
    def run(*options: str, grid: Any = GRID) -> Result:
        (tmp_path / "grid.yaml").write_text(yaml.safe_dump(grid, sort_keys=False))
        arguments = ["ablate", tmp_path / "grid.yaml", pan_store.path, "--run", tmp_path / "out", *options]
        return CliRunner().invoke(main, [str(argument) for argument in arguments])

    return run


def test_every_run_is_run_once_and_tabulated(ablate: Callable[..., Result], programs: Programs, tmp_path: Path) -> None:
    result = ablate("--json")
    assert result.exit_code == 0, result.stderr
    tasks = ("pretrain", "finetune", "evaluate")
    names = [f"{mask}seed={seed}" for seed in (0, 1) for mask in ("mask=tube,", "")]
    names += [f"mask_ratio=0.5,seed={seed}" for seed in (0, 1)]
    assert programs.calls == [(task, name) for name in names for task in tasks]
    values = json.loads(result.stdout)
    tube, mgm = values["tables"][0]["rows"]
    assert (tube["labels"], tube["values"]) == ({"mask": "tube"}, {"0": 60.0, "1": 62.0})
    assert (mgm["mean"], mgm["std"]) == (pytest.approx(71), pytest.approx(2**0.5))
    text = (tmp_path / "out/results.md").read_text()
    assert "| tube | 61.0 ± 1.4 |" in text
    assert "| mgm  | 71.0 ± 1.4 |" in text
    assert (tmp_path / "out/results.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "out/results.json").read_text()) == values


def test_what_is_finished_is_not_run_again(ablate: Callable[..., Result], programs: Programs) -> None:
    programs.stop_at = 5
    stopped = ablate()
    assert stopped.exit_code == 130
    assert "stopped; run the same command again" in stopped.stderr
    assert "| mgm  | not run" in stopped.stdout
    assert "| tube | 60.0" in stopped.stdout
    assert "1 not run" in stopped.stdout
    listed = ablate("-n").stdout.splitlines()
    assert [line.split("  ")[0].strip() for line in listed[:3]] == ["evaluate done", "finetune begun", "new"]
    assert listed[-1] == "6 runs"
    programs.calls.clear()
    programs.stop_at = None
    assert ablate().exit_code == 0
    assert programs.calls[:2] == [("finetune", "seed=0"), ("evaluate", "seed=0")]
    programs.calls.clear()
    assert ablate().exit_code == 0
    assert programs.calls == []


def test_a_failure_is_a_row_with_its_reason_and_the_others_go_on(
    ablate: Callable[..., Result], programs: Programs
) -> None:
    programs.fail = {
        ("finetune", "mask=tube,seed=0"): "CUDA out of memory",
        ("pretrain", "mask_ratio=0.5,seed=0"): "boom",
    }
    programs.fail["pretrain", "mask_ratio=0.5,seed=1"] = "boom"
    result = ablate()
    assert result.exit_code == 3
    assert "| tube | 62.0       | seed 0: finetune: CUDA out of memory |" in result.stdout
    assert "| mgm  | 71.0 ± 1.4 |" in result.stdout
    assert "| 0.5        | failed | seed 0, 1: pretrain: boom |" in result.stdout
    assert ("evaluate", "mask=tube,seed=0") not in programs.calls
    programs.fail.clear()
    programs.calls.clear()
    assert ablate("--table", "type").exit_code == 0
    assert programs.calls == [("finetune", "mask=tube,seed=0"), ("evaluate", "mask=tube,seed=0")]


def test_videos_that_no_test_could_read_are_remarked(ablate: Callable[..., Result], programs: Programs) -> None:
    programs.unscored = 2
    result = ablate("--table", "ratio")
    assert result.exit_code == 3
    assert "4 videos could not be read" in result.stdout


def test_a_probe_follows_and_a_run_from_scratch_has_neither_pretraining_nor_probe(
    ablate: Callable[..., Result], programs: Programs, tmp_path: Path
) -> None:
    tables = {"t": {"from": {"scratch": {"pretrain_on": "none"}, "mgm": {}}, "finetune.label_fraction": [0.2, 1.0]}}
    result = ablate(grid={"settings": TOY, "tests": ["evaluate", "probe"], "tables": tables})
    assert result.exit_code == 0, result.stderr
    few, scratch = "finetune.label_fraction=0.2,", "pretrain_on=none,"
    assert programs.calls == [
        ("finetune", f"{few}{scratch}seed=0"),
        ("evaluate", f"{few}{scratch}seed=0"),
        ("finetune", f"{scratch}seed=0"),
        ("evaluate", f"{scratch}seed=0"),
        ("pretrain", "seed=0"),
        ("finetune", f"{few}seed=0"),
        ("evaluate", f"{few}seed=0"),
        ("probe", "seed=0"),
        ("finetune", "seed=0"),
        ("evaluate", "seed=0"),
    ]
    asked = yaml.safe_load((tmp_path / "out" / f"{scratch}seed=0" / "finetune.yaml").read_text())
    assert asked["finetune"]["init"] == ""
    rows = [json.loads(line) for line in (tmp_path / "out/rows.jsonl").read_text().splitlines()]
    assert [row["labels"] for row in rows[:2]] == [
        {"from": "scratch", "finetune.label_fraction": "0.2"},
        {"from": "scratch", "finetune.label_fraction": "1.0"},
    ]
    assert [("probe_top1" in row, "pretrain_wall_s" in row) for row in rows] == [(False, False)] * 2 + [
        (True, True)
    ] * 2


def test_another_store_to_pretrain_on(
    ablate: Callable[..., Result], programs: Programs, tmp_path: Path, pan_store: Store
) -> None:
    other = tmp_path / "other.store"
    shutil.copytree(str(pan_store.path), other)
    tables = {"t": {"pretrain_on": {"same": "", "other": "other"}}}
    grid = {"settings": TOY, "stores": {"other": str(other)}, "tables": tables}
    assert ablate(grid=grid).exit_code == 0
    stores = [str(pan_store.path)] * 3 + [str(other)] + [str(pan_store.path)] * 2
    assert programs.stores == stores
    (other / "parts").rename(other / "gone")
    changed = ablate(grid=grid)
    assert changed.exit_code == 2


def test_one_table_leaves_the_others_in_the_results(
    ablate: Callable[..., Result], programs: Programs, tmp_path: Path
) -> None:
    assert ablate("--table", "type").exit_code == 0
    assert ablate("--table", "ratio").exit_code == 0
    text = (tmp_path / "out/results.md").read_text()
    assert "| tube | 61.0 ± 1.4 |" in text
    assert "| 0.5        | 71.0 ± 1.4 |" in text


def test_finished_runs_are_not_mixed_with_others(ablate: Callable[..., Result], programs: Programs) -> None:
    assert ablate().exit_code == 0
    changed = ablate(grid={**GRID, "settings": {**TOY, "pretrain.base_lr": 0.5}})
    assert changed.exit_code == 2
    assert "pretrain.json: base_lr was 0.00015 and is now 0.5; take another --run folder" in changed.stderr
    # What only moves work around may change.
    assert ablate(grid={**GRID, "settings": {**TOY, "num_workers": 1}}).exit_code == 0


def test_finished_runs_of_an_earlier_version_had_the_defaults_of_new_options(
    ablate: Callable[..., Result], programs: Programs, tmp_path: Path
) -> None:
    assert ablate().exit_code == 0
    for file in (tmp_path / "out").glob("*/*.json"):
        record = json.loads(file.read_text())
        del record["identity"]["settings"]["short_videos"]
        file.write_text(json.dumps(record))
    programs.calls.clear()
    assert ablate().exit_code == 0
    assert not programs.calls
    changed = ablate(grid={**GRID, "settings": {**TOY, "short_videos": "repeat"}})
    assert "short_videos was 'stride' and is now 'repeat'" in changed.stderr


def test_an_edited_class_map_is_not_mixed_with_the_old_one(
    ablate: Callable[..., Result], programs: Programs, tmp_path: Path
) -> None:
    (tmp_path / "map.csv").write_text("label,class\nup,a\ndown,b\n")
    settings = {**TOY, "finetune.class_map": str(tmp_path / "map.csv")}
    assert ablate(grid={**GRID, "settings": settings}).exit_code == 0
    (tmp_path / "map.csv").rename(tmp_path / "moved.csv")
    moved = {**settings, "finetune.class_map": str(tmp_path / "moved.csv")}
    assert ablate(grid={**GRID, "settings": moved}).exit_code == 0, "the same content"
    (tmp_path / "moved.csv").write_text("label,class\nup,b\ndown,a\n")
    edited = ablate(grid={**GRID, "settings": moved})
    assert edited.exit_code == 2
    assert "finetune.json: the content of " in edited.stderr


def test_a_test_is_asked_no_sampling_that_the_grid_does_not_set(
    ablate: Callable[..., Result], programs: Programs, tmp_path: Path
) -> None:
    def asked() -> Any:
        file = sorted(tmp_path.glob("out/*/evaluate.yaml"))[0]
        return yaml.safe_load(file.read_text())["evaluate"]

    unset = {key: value for key, value in TOY.items() if "stride" not in key}
    assert ablate(grid={**GRID, "settings": unset}).exit_code == 0
    assert asked().keys().isdisjoint({"stride", "sampling"})
    assert asked()["num_temporal_views"] == 1
    shutil.rmtree(tmp_path / "out")
    assert ablate(grid={**GRID, "settings": {**unset, "evaluate.stride": 3}}).exit_code == 0
    assert asked()["stride"] == 3


def test_a_fine_tuning_is_asked_no_positions_that_the_grid_does_not_set(
    ablate: Callable[..., Result], programs: Programs, tmp_path: Path
) -> None:
    for option, is_asked in (("pretrain.positions", False), ("positions", True)):
        assert ablate(grid={**GRID, "settings": {**TOY, option: "rope3d"}}).exit_code == 0
        for task, has_positions in (("pretrain", True), ("finetune", is_asked)):
            file = sorted(tmp_path.glob(f"out/*/{task}.yaml"))[0]
            assert yaml.safe_load(file.read_text())[task].get("positions") == ("rope3d" if has_positions else None)
        shutil.rmtree(tmp_path / "out")


def test_a_dry_run_leaves_nothing(ablate: Callable[..., Result], programs: Programs, tmp_path: Path) -> None:
    result = ablate("-n", "--json")
    assert json.loads(result.stdout)["num_runs"] == 6
    assert set(json.loads(result.stdout)["runs"].values()) == {"new"}
    assert programs.calls == []
    assert not (tmp_path / "out").exists()


def test_a_toy_grid_for_real(ablate: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, pan_store: Store) -> None:
    """Pretraining, fine-tuning and test of two masks by the programs themselves, but in this process."""

    def run_here(command: Any, stop: Any) -> Ended:
        result = CliRunner().invoke(main, command)
        return Ended(code=result.exit_code, stdout=result.stdout, reason=result.stderr)

    monkeypatch.setattr("mgm_train.ablation.runner.launcher", lambda num_gpus: run_here)
    grid = {"settings": TOY, "tables": {"type": {"mask": ["tube", "mgm"]}}}
    result = ablate("--json", grid=grid)
    assert result.exit_code == 0, result.stderr
    values = json.loads(result.stdout)
    for row in values["tables"][0]["rows"]:
        # Four test videos.
        assert row["mean"] in (0, 25, 50, 75, 100)
    runs = values["runs"]
    assert [(scores["scored"], scores["listed"]) for scores in runs.values()] == [(4, 4)] * 2
    for name in runs:
        assert len(list(Path(values["folder"]).glob(f"{name}/*/checkpoints/epoch-0001.safetensors"))) == 2


def _python(code: str, *, stop: StopRequest | None = None) -> Ended:
    return launch([sys.executable, "-c", code], stop or StopRequest())


def test_a_program_that_ends_well_gives_its_output() -> None:
    ended = _python("import sys; print('{}' + ' ' * 200_000); print('noise' * 50_000, file=sys.stderr)")
    assert (ended.code, ended.stdout.strip()) == (0, "{}")


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import sys; sys.exit('step 1\\nmgm-train: no flow\\nbye')", "no flow"),
        ("raise ValueError('odd: batch')", "ValueError: odd: batch"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "ended by SIGKILL"),
        ("import sys; sys.exit('something else')", "something else"),
        ("raise SystemExit(7)", "exit code 7"),
    ],
)
def test_why_a_program_failed(code: str, reason: str, capfd: pytest.CaptureFixture[str]) -> None:
    ended = _python(code)
    assert ended.code != 0
    assert ended.reason == reason
    # It was passed on as well.
    assert reason.split()[-1] in capfd.readouterr().err or ended.code in (-9, 7)


# In place of mgm-train: notes where it runs and from when to when, and ends as its configuration or argument says.
FAKE = """
import json, os, signal, sys, time
from pathlib import Path

begin_s, rank, notes = time.time(), int(os.environ["LOCAL_RANK"]), Path(os.environ["NOTES"])


def stop(*_):
    (notes / f"told-{rank}").write_text("true")
    sys.exit(130)


task, is_last = sys.argv[1], rank == 1
if task == "wait":
    signal.signal(signal.SIGTERM, stop)
    (notes / f"ready-{rank}").write_text("true")
    time.sleep(60)
elif task == "die" and is_last:
    os.kill(os.getpid(), signal.SIGKILL)
elif task == "pretrain" and "mask=tube" in sys.argv[4] and is_last:
    raise RuntimeError("CUDA out of memory")
time.sleep(0.2)
note = [task, rank, int(os.environ["WORLD_SIZE"]), begin_s, time.time()]
(notes / f"{time.time_ns()}-{rank}").write_text(json.dumps(note))
if rank == 0:
    print(json.dumps({"top1": 0.5, "scored": 4, "listed": 4}))
"""


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], list[Any]]:
    """A program that torchrun runs twice as `-m mgm_train`; what it notes, in order of time."""
    (tmp_path / "fake/mgm_train").mkdir(parents=True)
    (tmp_path / "fake/mgm_train/__init__.py").touch()
    (tmp_path / "fake/mgm_train/__main__.py").write_text(FAKE)
    (tmp_path / "notes").mkdir()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "fake"))
    monkeypatch.setenv("NOTES", str(tmp_path / "notes"))
    return lambda: [json.loads(file.read_text()) for file in sorted((tmp_path / "notes").iterdir())]


def test_two_gpus_share_a_run_and_the_runs_follow_each_other(
    ablate: Callable[..., Result], two_gpus: Callable[[], list[Any]]
) -> None:
    grid = {"settings": TOY, "tables": {"type": {"mask": ["tube", "mgm"]}}}
    result = ablate("--gpus", "2", grid=grid)
    assert result.exit_code == 3
    assert "| tube | failed | seed 0: pretrain: RuntimeError: CUDA out of memory |" in result.stdout
    assert "| mgm  | 50.0" in result.stdout
    # Before them comes what the other half of the failed run noted, if it was not too late.
    stages = two_gpus()[-6:]
    assert [task for task, *_ in stages] == ["pretrain"] * 2 + ["finetune"] * 2 + ["evaluate"] * 2
    for first, second in zip(stages[::2], stages[1::2], strict=True):
        assert {first[1], second[1]} == {0, 1}, "each process has a device of its own"
        assert first[2] == second[2] == 2
    for before, after in zip(stages[:-2], stages[2:], strict=True):
        assert before[4] < after[3], "two at once, never more"


def test_why_one_of_two_processes_died(two_gpus: Callable[[], list[Any]]) -> None:
    ended = launcher(2)(["die"], StopRequest())
    assert (ended.code != 0, ended.reason) == (True, "ended by SIGKILL")


def test_a_wish_to_stop_goes_through_torchrun(two_gpus: Callable[[], list[Any]], tmp_path: Path) -> None:
    stop = StopRequest()

    def ask() -> None:
        while len(list((tmp_path / "notes").iterdir())) < 2:
            time.sleep(0.1)
        stop.is_asked = True

    threading.Thread(target=ask, daemon=True).start()
    assert launcher(2)(["wait"], stop).code != 0
    assert sorted(file.name for file in (tmp_path / "notes").iterdir()) == ["ready-0", "ready-1", "told-0", "told-1"]


def test_a_wish_to_stop_is_passed_on() -> None:
    code = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))
print("ready", file=sys.stderr, flush=True)
time.sleep(60)
"""
    stop = StopRequest()
    threading.Timer(1.0, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
    start_s = time.monotonic()
    with stop.listening():
        ended = _python(code, stop=stop)
    assert stop.is_asked
    # 130, or killed where it was not ready yet.
    assert ended.code in (130, -signal.SIGTERM)
    assert time.monotonic() - start_s < 30
