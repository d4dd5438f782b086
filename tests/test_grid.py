"""Grid files: which runs they make, what they share, and what is refused."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from mgm_shared.errors import UserError
from mgm_train.ablation.grid import Table, choose, read_grid, runs_of

PIPELINES = Path(__file__).parent.parent / "pipelines"
RECIPE = {
    "extract": {"short_side": 128},
    "mgm-train": {"model": "vit_tiny", "num_frames": 8, "image_px": 96, "stride": 2},
    "pretrain": {"mask": "mgm", "epochs": 40, "warmup_epochs": 0},
    "finetune": {"epochs": 7, "warmup_epochs": 0},
}


@pytest.fixture
def grid_of(tmp_path: Path) -> Callable[..., list[Table]]:
    """Writes a grid and its recipe; its tables."""
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))

    def read(tables: Any, **more: Any) -> Any:
        file = tmp_path / "grid.yaml"
        file.write_text(yaml.safe_dump({"recipe": "recipe.yaml", "tables": tables, **more}, sort_keys=False))
        return read_grid(file)

    return read


def test_a_table_is_all_combinations_of_its_axes(grid_of: Callable[..., list[Table]]) -> None:
    axes = {"mask": ["tube", "mgm"], "mask_ratio": [0.5, 0.9]}
    (table,) = grid_of({"both": axes}, seeds=[3, 4])
    assert [row.labels for row in table.rows] == [("tube", "0.5"), ("tube", "0.9"), ("mgm", "0.5"), ("mgm", "0.9")]
    assert [bool(axis.numbers) for axis in table.axes] == [False, True]
    for row in table.rows:
        assert [run.seed for run in row.runs] == [3, 4]
        for run in row.runs:
            configs: Mapping[str, Any] = run.configs
            pretrain = configs["pretrain"]
            assert (pretrain.mask, str(pretrain.mask_ratio), pretrain.seed) == (*row.labels, run.seed)
            assert configs["finetune"].seed == run.seed
            # The rest is the recipe's.
            assert (pretrain.epochs, pretrain.stride, configs["finetune"].epochs) == (40, 2, 7)
            assert configs["evaluate"].stride == 2


def test_a_key_is_of_all_sections_that_have_it_or_of_one(grid_of: Callable[..., list[Table]]) -> None:
    (table,) = grid_of(
        {"t": {"stride": [3], "pretrain.epochs": [80]}}, settings={"num_workers": 0, "finetune.mixup": 0}
    )
    (run,) = table.rows[0].runs
    configs: Mapping[str, Any] = run.configs
    assert [configs[section].stride for section in ("pretrain", "finetune", "evaluate")] == [3, 3, 3]
    assert [configs[section].num_workers for section in ("pretrain", "finetune", "evaluate")] == [0, 0, 0]
    assert (configs["pretrain"].epochs, configs["finetune"].epochs) == (80, 7)
    assert configs["finetune"].mixup == 0.0


def test_rows_may_have_names_and_set_several_fields(grid_of: Callable[..., list[Table]]) -> None:
    backbones = {"ViT": {"model": "vit_tiny"}, "TimeSformer": {"model": "vit_small", "attention": "divided"}}
    named, several = grid_of({"a": {"mask_jitter": {"no": 0, "yes": 0.15}}, "b": {"backbone": backbones}})
    assert [row.labels for row in named.rows] == [("no",), ("yes",)]
    pretraining: list[Any] = [row.runs[0].configs["pretrain"] for row in named.rows]
    assert [config.mask_jitter for config in pretraining] == [0.0, 0.15]
    assert not named.axes[0].numbers
    other: Mapping[str, Any] = several.rows[1].runs[0].configs
    assert [(other[name].model, other[name].attention) for name in ("pretrain", "finetune")] == [
        ("vit_small", "divided")
    ] * 2


def test_rows_that_set_several_fields_may_be_named_by_numbers(grid_of: Callable[..., list[Table]]) -> None:
    axis = {200: {"pretrain.epochs": 2}, 400: {"pretrain.epochs": 4, "finetune.repeats": 2}}
    (table,) = grid_of({"t": {"epochs": axis}})
    assert [row.labels for row in table.rows] == [("200",), ("400",)]
    assert table.axes[0].numbers == {"200": 200, "400": 400}
    configs: Mapping[str, Any] = table.rows[1].runs[0].configs
    assert configs["finetune"].repeats == 2


def test_what_comes_to_the_same_is_run_once(grid_of: Callable[..., list[Table]]) -> None:
    tables = grid_of({"a": {"mask": ["tube", "mgm"]}, "b": {"mask_ratio": [0.5, 0.75]}, "c": {"model": ["vit_tiny"]}})
    assert [run.name for run in runs_of(tables)] == ["mask=tube,seed=0", "seed=0", "mask_ratio=0.5,seed=0"]
    one, other = grid_of(
        {
            "a": {"mask": ["tube"], "pretrain.epochs": [2]},
            "b": {"pretrain.epochs": [2], "mask": ["tube"]},
        }
    )
    assert one.rows[0].runs[0].names == other.rows[0].runs[0].names


def test_what_varies_later_stages_shares_the_earlier_ones(grid_of: Callable[..., list[Table]]) -> None:
    (table,) = grid_of({"t": {"finetune.mixup": [0.8, 0.0], "evaluate.num_temporal_views": [5, 2]}})
    names = [row.runs[0].names for row in table.rows]
    assert {name["pretrain"] for name in names} == {"seed=0"}
    assert [name["finetune"] for name in names] == ["seed=0"] * 2 + ["finetune.mixup=0.0,seed=0"] * 2
    assert len({name["evaluate"] for name in names}) == 4


def test_a_probe_is_of_the_pretraining_alone(grid_of: Callable[..., list[Table]]) -> None:
    axes = {"finetune.label_fraction": [0.2, 1.0], "mask": ["tube"]}
    (table,) = grid_of({"t": axes}, tests=["probe", "evaluate"], settings={"probe.epochs": 3, "stride": 3})
    runs = [row.runs[0] for row in table.rows]
    assert [run.names["probe"] for run in runs] == ["mask=tube,seed=0"] * 2
    assert [run.names["evaluate"] for run in runs] == [
        "finetune.label_fraction=0.2,mask=tube,seed=0",
        "mask=tube,seed=0",
    ]
    configs: Mapping[str, Any] = runs[0].configs
    assert (configs["probe"].epochs, configs["probe"].stride, configs["probe"].seed) == (3, 3, 0)
    assert runs[0].tests == ("evaluate", "probe")
    # Without probes in the grid, their options are nobody's: an axis `label_fraction` is of fine-tuning.
    (without,) = grid_of({"t": {"label_fraction": [0.2]}})
    configs = dict(without.rows[0].runs[0].configs)
    assert (configs["finetune"].label_fraction, configs["probe"].label_fraction) == (0.2, 1.0)


def test_a_pretraining_on_another_store_or_none(grid_of: Callable[..., list[Table]]) -> None:
    choices = {"same": "", "scratch": "none", "films": "corpus"}
    (table,) = grid_of(
        {"t": {"from": {label: {"pretrain_on": name} for label, name in choices.items()}}},
        stores={"corpus": "/data/corpus.store"},
    )
    runs = [row.runs[0] for row in table.rows]
    assert [run.pretrain_on for run in runs] == ["", "none", "/data/corpus.store"]
    assert [run.is_pretrained for run in runs] == [True, False, True]
    names = ["seed=0", "pretrain_on=none,seed=0", "pretrain_on=corpus,seed=0"]
    assert [run.names["pretrain"] for run in runs] == names
    assert [run.name for run in runs] == names
    (both,) = grid_of(
        {"t": {"mask": ["tube"], "pretrain_on": {"corpus": "", "one": "one"}}},
        stores={"one": "1.store", "two": "2.store"},
        settings={"pretrain_on": "two"},
    )
    assert [row.runs[0].pretrain_on for row in both.rows] == ["", "1.store"]


def test_a_grid_that_is_cut_short_has_whole_comparisons(grid_of: Callable[..., list[Table]]) -> None:
    tables = grid_of({"a": {"mask": ["tube", "mgm"]}, "b": {"mask": ["mgm", "smm"]}}, seeds=[5, 7])
    order = ["mask=tube,seed=5", "seed=5", "mask=tube,seed=7", "seed=7", "mask=smm,seed=5", "mask=smm,seed=7"]
    assert [run.name for run in runs_of(tables)] == order


def test_some_tables_can_be_chosen(grid_of: Callable[..., list[Table]]) -> None:
    tables = grid_of({"a": {"mask": ["tube"]}, "b": {"mask": ["mgm"]}})
    assert [table.name for table in choose(tables, ["b"])] == ["b"]
    assert choose(tables, []) == tables
    with pytest.raises(UserError, match="has no c; there are: a, b"):
        choose(tables, ["c"])


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"tables": {"t": {"mask_rato": [0.5]}}}, "table `t`: mask_rato is no setting of pretrain, finetune, evaluate"),
        ({"tables": {"t": {"evaluate.mask": ["mgm"]}}}, "evaluate.mask is no setting of evaluate"),
        ({"tables": {"t": {"b": {"ViT": {"modle": "vit_tiny"}}}}}, "modle is no setting"),
        ({"tables": {"t": {"mask": ["mgm", "tubes"]}}}, "table `t`, tubes: mask is 'tubes' but must be one of mgm"),
        ({"tables": {"t": {"mask_ratio": ["much"]}}}, "mask-ratio is 'much' but must be a number"),
        ({"tables": {"t": {"mask": "tube"}}}, "mask must hold a list of values, or `label: value` lines"),
        ({"tables": {"t": {"mask": []}}}, "mask must hold a list of values"),
        ({"tables": {"t": {"seed": [0, 1]}}}, "seed cannot be varied; list them under `seeds`"),
        ({"tables": {"t": {"mask": ["mgm"]}}, "settings": {"init": "x"}}, "init cannot be varied"),
        ({"tables": {"t": {"mask": ["mgm"]}}, "seeds": ["a"]}, "`seeds` must be a list of whole numbers"),
        ({"tables": {"t": {"mask": ["mgm"]}}, "seed": 3}, "has no seed; there are: recipe, settings, seeds, tests"),
        ({"tables": {"t": {"mask": ["mgm"]}}, "recipe": "none.yaml"}, "none.yaml cannot be read"),
        ({"tables": {"t": {"randaug": ["a/b", "a;b"]}}}, "two different runs would be named randaug=a-b,seed=0"),
        ({"tables": {"t": {"probe.epochs": [1]}}}, "probe.epochs is no setting of probe"),
        ({"tables": {"t": {"mask": ["mgm"]}}, "tests": ["probes"]}, "has no probes; there are: evaluate, probe"),
        ({"tables": {"t": {"mask": ["mgm"]}}, "tests": "probe"}, "`tests` must be a list of evaluate, probe"),
        ({"tables": {"t": {"pretrain_on": ["ssv2"]}}}, "pretrain_on is 'ssv2'; it is one of none, where `stores` has"),
        ({}, "has no `tables`; see `mgm-train recipe"),
        ([], "must hold `key: value` lines"),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else "",
)
def test_what_has_no_meaning_is_refused(tmp_path: Path, grid: Any, message: str) -> None:
    file = tmp_path / "grid.yaml"
    file.write_text(yaml.safe_dump(grid))
    with pytest.raises(UserError) as error:
        read_grid(file)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_key_of_the_recipe_is_refused(tmp_path: Path) -> None:
    (tmp_path / "grid.yaml").write_text("recipe: recipe.yaml\ntables: {t: {mask: [mgm]}}\n")
    for section, message in (
        ("pretrain", "`pretrain` has no option epoch"),
        ("mgm-train", "`mgm-train` has no option epoch"),
    ):
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({section: {"epoch": 3}}))
        with pytest.raises(UserError, match=message):
            read_grid(tmp_path / "grid.yaml")


def test_the_papers_grid() -> None:
    tables = read_grid(PIPELINES / "ablation.yaml")
    rows: dict[str, dict[str, Any]] = {
        table.name: {row.labels[0]: row.runs[0].configs["pretrain"] for row in table.rows} for table in tables
    }
    assert {name: len(labels) for name, labels in rows.items()} == {
        "4(a) backbone": 3,
        "4(b) guidance": 2,
        "4(c) aspect ratio jitter": 2,
        "4(e) mask type": 7,
        "figure 4(a) mask ratio": 4,
        "figure 4(b) epochs of pretraining": 6,
    }
    assert len(runs_of(tables)) == 19
    timesformer = rows["4(a) backbone"]["TimeSformer"]
    assert (timesformer.model, timesformer.attention) == ("vit_base", "divided")
    assert [config.mask_jitter > 0 for config in rows["4(c) aspect ratio jitter"].values()] == [False, True]
    # The row that all tables have in common.
    shared = [
        rows["4(a) backbone"]["ViT-B"],
        rows["4(b) guidance"]["motion vectors"],
        rows["4(e) mask type"]["MGM (Dense)"],
    ]
    shared += [rows["figure 4(a) mask ratio"]["0.75"], rows["figure 4(b) epochs of pretraining"]["200"]]
    assert all(config == shared[0] for config in shared)
    tubes = [rows["4(e) mask type"][f"Random Tube ({ratio})"] for ratio in (0.75, 0.9)]
    assert [(config.mask, config.mask_ratio) for config in tubes] == [("tube", 0.75), ("tube", 0.9)]
    configs: list[Mapping[str, Any]] = [run.configs for run in runs_of(tables)]
    repeats = {config["pretrain"].epochs: config["finetune"].repeats for config in configs}
    assert repeats == {200: 1, 400: 2, 800: 2, 1200: 2, 1600: 2, 2400: 2}, "from 400 epochs on it is Table 1"
    assert list(tables[-1].axes[0].numbers.values()) == list(repeats), "a curve"
    assert (shared[0].epochs, shared[0].batch_size, shared[0].stride, shared[0].flip) == (200, 512, 2, False)
