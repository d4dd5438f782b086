"""The report of runs: its numbers against the files of small real runs, an ablation, bad folders, a real browser."""

import csv
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from browser import Outline, launched, opened
from click.testing import CliRunner, Result

import mgm_train
from mgm_shared.errors import UserError
from mgm_shared.store import Store
from mgm_train.cli import main
from mgm_train.run_report.records import RunRecord, short_names

CPU: dict[str, Any] = {"num_workers": 0, "device": "cpu"}
CLIP: dict[str, Any] = {"model": "vit_tiny", "num_frames": 4, "image_px": 32, "stride": 2, "flip": False}
TRAINING: dict[str, Any] = {**CPU, **CLIP, "batch_size": 2, "epochs": 2, "warmup_epochs": 0, "log_every_steps": 1}
VIEWS: dict[str, Any] = {**CPU, "stride": 2, "num_temporal_views": 1, "num_spatial_views": 1}
PAIRS = "label,class\nleft,across\nright,across\nup,along\ndown,along\n"


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    yield from launched()


@pytest.fixture(scope="module")
def runs(pan_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two pretrainings, a fine-tuning that was tested, and a probe."""
    folder, store = tmp_path_factory.mktemp("runs"), pan_store.path
    (folder / "pairs.csv").write_text(PAIRS)
    mgm_train.pretrain(store, folder / "mgm", mgm_train.PretrainConfig(**TRAINING))
    mgm_train.pretrain(store, folder / "tube", mgm_train.PretrainConfig(**TRAINING, mask="tube", seed=3))
    tuning: dict[str, Any] = {"init": str(folder / "mgm"), "repeats": 1, "eval_every_epochs": 1, "eval_split": "test"}
    mgm_train.finetune(store, folder / "ft", mgm_train.FinetuneConfig(**TRAINING, **tuning))
    mgm_train.evaluate(store, folder / "ft", mgm_train.EvaluateConfig(**VIEWS))
    probing: dict[str, Any] = {"learning_rates": (1e-3,), "epochs": 2, "class_map": str(folder / "pairs.csv")}
    mgm_train.probe(store, folder / "probe", mgm_train.ProbeConfig(**VIEWS, **probing, init=str(folder / "mgm")))
    return folder


@pytest.fixture(scope="module")
def page(runs: Path) -> Path:
    result = _run(
        "report", *(runs / name for name in ("mgm", "tube", "ft", "probe")), "-o", runs / "all.html", "--json"
    )
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == {
        "report": str(runs / "all.html"), "runs": ["mgm", "tube", "ft", "probe"], "ablations": 0, "has_store": True,
    }  # fmt: skip
    return runs / "all.html"


def _rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as opened_file:
        return list(csv.DictReader(opened_file))


def test_its_numbers_are_those_of_the_run_folders(page: Path, runs: Path) -> None:
    outline = Outline.of(page.read_text())
    metrics = [json.loads(line) for line in (runs / "tube/metrics.jsonl").read_text().splitlines()]
    (row,) = [row for row in outline.rows if row[:2] == ["tube", "pretrain"]]
    assert row[2:6] == ["4", "2 of 2", f"{metrics[0]['loss']:.4g}", f"{metrics[-1]['loss']:.4g}"]
    predictions = _rows(runs / "ft/predictions-test.csv")
    right = sum(row["label"] == row["predicted"] for row in predictions)
    (row,) = [row for row in outline.rows if row[:3] == ["ft", "finetune", "test"]]
    assert row[3:] == [f"{right / 4:.1%}", f"{right / 4:.1%}", "25.0%", "4"]
    for label in ("down", "left", "right", "up"):
        hits = sum(row["label"] == row["predicted"] == label for row in predictions)
        assert [label, f"{hits} of 1"] in [found[:2] for found in outline.rows]
    for wrong in (row for row in predictions if row["label"] != row["predicted"]):
        shown = f"{wrong['label']} ({float(wrong['p(' + wrong['label'] + ')']):.0%}), taken for {wrong['predicted']}"
        assert shown in outline.text
    assert "a blind guess: 1" in outline.text
    assert f"a blind guess: {math.log(4):.3g}" in outline.text


def test_options_that_differ_are_shown_and_others_are_not(page: Path, runs: Path) -> None:
    rows = Outline.of(page.read_text()).rows
    configs = [yaml.safe_load((runs / name / "config.yaml").read_text())["pretrain"] for name in ("mgm", "tube")]
    differing = {key for key in configs[0] if configs[0][key] != configs[1][key]}
    assert differing == {"mask", "seed"}
    start = rows.index(["option", "mgm", "tube"])
    assert sorted(rows[start + 1 : start + 3]) == [["mask", "mgm", "tube"], ["seed", "0", "3"]]
    assert rows[start + 3][0] == "option", "the next table begins"


def test_it_is_one_file_without_a_script(page: Path) -> None:
    outline = Outline.of(page.read_text())
    assert outline.outside == []
    assert not {"script", "link", "iframe", "object"} & outline.tags
    for words in (
        "MGM (this run)",
        "seen by the encoder (MGM)",
        "attention, block 6 of 6",
        "error of the masked patches",
    ):
        assert words in outline.text
    # Eight rows of masks, seven of each model, and the wrong videos of two tests.
    assert len([url for url in outline.fetched if url.startswith("data:image/webp")]) >= 8 + 2 * 7


def test_a_run_recorded_where_its_store_is(runs: Path, pan_store: Store) -> None:
    for name in ("mgm", "ft", "probe"):
        environment = json.loads((runs / name / "environment.json").read_text())
        assert environment["store_path"] == str(Path(str(pan_store.path)).absolute())


def test_a_single_run_without_a_store_says_so(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "mgm", tmp_path / "moved")
    environment = json.loads((tmp_path / "moved/environment.json").read_text())
    environment["store_path"] = str(tmp_path / "gone.store")
    (tmp_path / "moved/environment.json").write_text(json.dumps(environment))
    result = mgm_train.report(tmp_path / "moved", tmp_path / "report.html")
    assert not result.has_store
    text = Outline.of((tmp_path / "report.html").read_text()).text
    assert "No store is at hand" in text
    assert "vit_tiny" in text
    assert "pretrain: options that are not the default" in text


def test_what_may_be_wrong_is_said(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "mgm", tmp_path / "odd")
    rows = [
        {"step": 1, "epoch": 1, "loss": 1.5, "lr": 1e-3, "grad_norm": None, "num_clips": 2, "data_wait": 0.5},
        {"step": 1, "unreadable": "a<b>.mp4", "reason": "gone"},
    ]  # fmt: skip
    (tmp_path / "odd/metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 2, "lo')
    shutil.rmtree(tmp_path / "odd/checkpoints")
    mgm_train.report([tmp_path / "odd"], tmp_path / "new/report.html")
    text = Outline.of((tmp_path / "new/report.html").read_text()).text
    for words in (
        "odd: unfinished; the command that began it continues it",
        "its last loss, 1.500, is not below a blind guess, 1.000",
        "waits for data 50% of the time",
        "1 unreadable videos were left out, such as a<b>.mp4",
        "No pictures of odd",
    ):
        assert words in text


def test_an_ablation_counts_with_its_runs(runs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "grid"
    for row, name in (("mask=mgm-seed=0", "mgm"), ("mask=tube-seed=0", "tube")):
        shutil.copytree(runs / name, folder / row / "pretrain")
    rows = [
        {"labels": {"mask": name}, "mean": mean, "std": std, "values": values, "failures": failures, "not_run": 0}
        for name, mean, std, values, failures in (
            ("MGM", 62.5, 3.5, {"0": 60.0, "1": 65.0}, {}),
            ("tube", 40.0, None, {"0": 40.0}, {"1": "boom <b>"}),
        )
    ]
    (folder / "results.json").write_text(json.dumps({"tables": [{"table": "mask type", "rows": rows}]}))
    result = mgm_train.report(folder, tmp_path / "report.html")
    assert result.runs == ["mask=mgm-seed=0/pretrain", "mask=tube-seed=0/pretrain"]
    outline = Outline.of((tmp_path / "report.html").read_text())
    assert ["MGM", "62.5 ± 3.5", "2", ""] in outline.rows
    assert ["tube", "40.0", "1", "seed 1: boom <b>"] in outline.rows
    assert "Mean ± standard deviation, n = 1 to 2 (seeds 0, 1)." in outline.text


def test_many_classes_have_a_list_of_mistakes(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "ft", tmp_path / "many")
    names = [f"class {k}" for k in range(60)]
    counts = [
        [9 if row == column else int(column == (row + 1) % 60) * row for column in range(60)] for row in range(60)
    ]
    with (tmp_path / "many/confusion-test.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [["class", *names], *([name, *row] for name, row in zip(names, counts, strict=True))]
        )
    with (tmp_path / "many/classes-test.csv").open("w", newline="") as file:
        rows = [[name, 9 + row, 9, "", "", 0] for row, name in enumerate(names)]
        csv.writer(file).writerows([["class", "scored", "right", "accuracy", "taken_for", "times"], *rows])
    mgm_train.report(tmp_path / "many", tmp_path / "report.html", num_clips=0)
    outline = Outline.of((tmp_path / "report.html").read_text())
    assert ["class 59", "class 0", "59"] in outline.rows
    assert ["class 30", "class 31", "30"] in outline.rows
    assert ["class 29", "class 30", "29"] not in outline.rows
    assert "30 more classes" in outline.text
    assert outline.text.index("9 of 68") < outline.text.index("9 of 9 "), "the worst class comes first"


def test_bad_folders_are_one_line(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/config.yaml").write_text("pretrain: [\n")
    cases = {
        "gone": "is not a folder",
        "other": "is neither the folder of a run nor that of an ablation",
        "broken": "is not the folder of a run",
    }
    for name, message in cases.items():
        result = _run("report", runs / "mgm", tmp_path / name, "-o", tmp_path / "report.html")
        assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
        assert message in result.stderr
    with pytest.raises(UserError, match="is not an mgm store"):
        mgm_train.report(runs / "mgm", tmp_path / "report.html", store=tmp_path)
    with pytest.raises(UserError, match="is a folder; give the HTML file"):
        mgm_train.report(runs / "mgm", tmp_path)
    with pytest.raises(UserError, match="at least one run folder"):
        mgm_train.report([], tmp_path / "report.html")


def test_runs_of_the_same_name_are_told_apart(tmp_path: Path) -> None:
    assert short_names([Path("a/run"), Path("b/run")]) == ["a/run", "b/run"]
    assert short_names([Path("a/x"), Path("b/y")]) == ["x", "y"]
    assert short_names([tmp_path]) == [tmp_path.name]


def test_a_blind_guess_of_a_classifier_is_that_of_its_classes(runs: Path) -> None:
    assert RunRecord.of(runs / "ft", "ft").blind_guess == pytest.approx(-math.log(1 / 4))
    assert RunRecord.of(runs / "mgm", "mgm").blind_guess == 1


@pytest.mark.parametrize("width", [1280, 400])
def test_a_browser_shows_it(browser: Any, page: Path, width: int) -> None:
    shown = opened(browser, page, width, java_script_enabled=width == 1280)
    assert (shown.requests, shown.complaints) == ([], [])
    assert not shown.is_wider_than_the_window()
    for selector in ("h1", ".chart svg", ".curve", ".rule-name", ".matrix td", "table", ".reel img"):
        assert shown.shows(selector), selector
    assert shown.page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
