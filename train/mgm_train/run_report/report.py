"""Write the report of runs: curves, pictures, results of tests, options, side by side."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mgm_shared.errors import UserError
from mgm_shared.progress import SILENT, Progress
from mgm_shared.report.blocks import Block, Cell, Grid, Notes, Page, Section, Share, Table
from mgm_shared.report.page import write_page
from mgm_shared.storage import PathLike
from mgm_shared.store import Store, open_store
from mgm_train.figures.pretrained import shown_video
from mgm_train.run_report.ablations import ablation_blocks
from mgm_train.run_report.accuracy import accuracy_table, class_blocks, confusion_block, tested, worst_blocks
from mgm_train.run_report.curves import remarks, run_table, run_tiles, training_sections
from mgm_train.run_report.options import machine_table, option_blocks
from mgm_train.run_report.pictures import mask_blocks, model_blocks
from mgm_train.run_report.records import Records, RunRecord, read_records

# Runs whose pictures are drawn, and tests whose confusion is: each takes seconds, or half a megabyte.
MAX_PICTURED, MAX_TESTS = 4, 6


@dataclass(frozen=True, kw_only=True)
class ReportResult:
    """A report that was written: its file, the runs in it, and how many runs and videos play."""

    report: Path
    runs: list[str]
    ablations: int
    has_store: bool
    """Whether a store was at hand for pictures and clips."""


def report(
    runs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    store: PathLike | None = None,
    num_clips: int = 8,
    progress: Progress = SILENT,
) -> ReportResult:
    """Write one HTML file about runs of pretraining, fine-tuning, probes and ablations, side by side.

    It has no script, fetches nothing, and can be sent by mail.

    Args:
        runs: A run folder or several; the folder of an ablation counts with all its runs.
        out: The HTML file to write or replace.
        store: The store of the runs, for pictures and clips; by default the one that the runs recorded, if it is there.
        num_clips: Wrong videos of each test that play in the page.
        progress: Hears what is drawn.

    Raises:
        UserError: A folder is no run, or `store` is no store.
    """
    folders = [Path(runs)] if isinstance(runs, str | os.PathLike) else [Path(run) for run in runs]
    file = Path(out)
    if not folders:
        raise UserError("a report needs at least one run folder")
    if file.is_dir():
        raise UserError(f"{file} is a folder; give the HTML file to write, such as {file / 'report.html'}")
    records = read_records(folders)
    opened = _store(store, records.runs)
    sections = [
        *(Section(title=f"Ablation {one.root.name}", blocks=ablation_blocks(one)) for one in records.ablations),
        *training_sections(records.runs),
        *_pictures(records.runs, opened, progress),
        *_tests(records.runs, opened, num_clips),
        *_detections(records.runs),
        *_heads(records.runs),
        *_options(records.runs),
    ]
    title = ", ".join(folder.name for folder in folders[:4]) + (", …" if len(folders) > 4 else "")
    subtitle = f"{len(records.runs)} runs" if len(records.runs) != 1 else str(folders[0])
    write_page(Page(title=title, subtitle=subtitle, sections=sections, opening=_opening(records)), file)
    names = [run.name for run in records.runs]
    return ReportResult(report=file, runs=names, ablations=len(records.ablations), has_store=opened is not None)


def _opening(records: Records) -> list[Block]:
    runs = records.runs
    if not runs:
        return [Notes(lines=["The folder holds no run yet."])]
    first: Block = run_tiles(runs[0]) if len(runs) == 1 else run_table(runs)
    found = remarks(runs)
    return [first, found] if found else [first]


def _store(store: PathLike | None, runs: Sequence[RunRecord]) -> Store | None:
    """The given store, or the first that a run recorded and that is still there."""
    if store is not None:
        return open_store(store)
    for place in dict.fromkeys(run.store for run in runs if run.store):
        try:
            return open_store(place)
        except (UserError, OSError):
            continue
    return None


def _pictures(runs: Sequence[RunRecord], store: Store | None, progress: Progress) -> list[Section]:
    """Masks of one clip by all strategies, and what each pretrained model makes of it."""
    pretrained = [run for run in runs if run.task == "pretrain" and run.loss_rows]
    if not pretrained:
        return []
    if store is None:
        note = "No store is at hand, so there are no pictures; --store gives one."
        return [Section(title="Pictures", blocks=[Notes(lines=[note])])]
    chosen = pretrained[:MAX_PICTURED]
    progress.start("drawing", 1 + len(chosen), "run")
    try:
        video = shown_video(store)
        masks = mask_blocks(pretrained[0], video)
    except (UserError, OSError) as error:
        return [Section(title="Pictures", blocks=[Notes(lines=[f"No pictures: {error}"])])]
    progress.advance()
    of_runs: list[Block] = []
    for run in chosen:
        try:
            of_runs += model_blocks(run, video)
        except (UserError, OSError) as error:
            of_runs.append(Notes(lines=[f"No pictures of {run.name}: {error}"]))
        progress.advance()
    about = f"The first {len(chosen)} of {len(pretrained)} pretraining runs." if len(pretrained) > len(chosen) else ""
    return [
        Section(title="Masks", blocks=masks, about="The same clip, masked by each strategy."),
        Section(title="Reconstructions and attention", blocks=of_runs, about=about),
    ]


def _tests(runs: Sequence[RunRecord], store: Store | None, num_clips: int) -> list[Section]:
    tests = tested(runs)
    if not tests:
        return []
    shown = tests[:MAX_TESTS]
    about = f"Details of the first {len(shown)} of {len(tests)} tests." if len(tests) > len(shown) else ""
    confusions = Grid(blocks=[confusion_block(one) for one in shown])
    blocks: list[Block] = [accuracy_table(tests), *class_blocks(shown), confusions]
    worst = [block for one in shown for block in worst_blocks(one, store, num_clips)]
    return [Section(title="Accuracy", blocks=blocks, about=about), Section(title="Worst clips", blocks=worst)]


def _detections(runs: Sequence[RunRecord]) -> list[Section]:
    """The average precision of each class of action detectors, the worst with the labelled boxes at the top."""
    columns = ["class", "with the proposals", "with the labelled boxes"]
    blocks: list[Block] = []
    for run in runs:
        for split, rows in run.average_precisions.items():
            ordered = sorted(rows, key=lambda row: float(row["with_labelled_boxes"]))
            cells: list[list[Cell]] = [
                [row["class"], _share(row["average_precision"]), _share(row["with_labelled_boxes"])] for row in ordered
            ]
            blocks.append(Table(title=f"{run.name}, {split}", columns=columns, rows=cells))
    return [Section(title="Average precision by class", blocks=blocks)] if blocks else []


def _share(text: str) -> Share | None:
    return Share(share=float(text), text=f"{float(text):.1%}") if text else None


def _heads(runs: Sequence[RunRecord]) -> list[Section]:
    """The classifiers of a probe, by their settings."""
    blocks: list[Block] = []
    for run in (run for run in runs if run.heads):
        columns = [name for name in run.heads[0] if name != "counts"]
        chosen = frozenset(place for place, head in enumerate(run.heads) if head["counts"] == "yes")
        blocks.append(
            Table(
                title=run.name,
                columns=[name.replace("_", " ") for name in columns],
                rows=[[float(head[name]) for name in columns] for head in run.heads],
                marked=chosen,
                caption="The marked head counts: it was chosen on held-out training videos.",
            )
        )
    return [Section(title="Heads of the probe", blocks=blocks)] if blocks else []


def _options(runs: Sequence[RunRecord]) -> list[Section]:
    return [Section(title="Options", blocks=[*option_blocks(runs), machine_table(runs)])] if runs else []
