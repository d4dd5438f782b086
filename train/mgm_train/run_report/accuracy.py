"""Results of tests: accuracy by class, confusion, and the clips that were furthest from right."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mgm_shared.report.blocks import Block, Cell, Details, Gallery, Matrix, Notes, Reel, Share, Table
from mgm_shared.report.video_reel import video_reel
from mgm_shared.store import Store
from mgm_train.run_report.records import RunRecord, TestRecord

OPEN_CLASSES, MAX_MATRIX, MAX_PAIRS = 30, 30, 30


@dataclass(frozen=True)
class Tested:
    """A test of a run."""

    run: RunRecord
    test: TestRecord

    @property
    def name(self) -> str:
        return f"{self.run.name}, {self.test.split}"


def tested(runs: Sequence[RunRecord]) -> list[Tested]:
    """The tests of all runs that have scored a video."""
    return [Tested(run, test) for run in runs for test in run.tests if test.num_scored]


def accuracy_table(tests: Sequence[Tested]) -> Table:
    """The accuracies of the tests side by side."""
    rows: list[list[Cell]] = [
        [
            one.run.name,
            one.run.task,
            one.test.split,
            _share(one.test.top1),
            _share(one.test.mean_class_accuracy),
            _share(1 / max(1, len(one.test.classes))),
            one.test.num_scored,
        ]
        for one in tests
    ]
    columns = ["run", "task", "split", "top-1", "mean of the classes", "by chance", "videos"]
    return Table(columns=columns, rows=rows)


def _share(share: float) -> Share | None:
    return Share(share=share, text=f"{share:.1%}") if math.isfinite(share) else None


def class_blocks(tests: Sequence[Tested]) -> list[Block]:
    """The accuracy of each class in each test, the worst of the first test at the top."""
    names = list(dict.fromkeys(name for one in tests for name in one.test.classes))
    first = tests[0].test.classes
    names.sort(key=lambda name: _ratio(first.get(name, (0, 0))))
    rows: list[list[Cell]] = []
    for name in names:
        counts = [one.test.classes.get(name, (0, 0)) for one in tests]
        cells: list[Cell] = [
            Share(share=right / scored, text=f"{right} of {scored}") if scored else None for right, scored in counts
        ]
        rows.append([name, *cells])
    columns = ["class", *(one.name for one in tests)]
    shown = Table(title="Accuracy by class, the worst first", columns=columns, rows=rows[:OPEN_CLASSES])
    if len(rows) <= OPEN_CLASSES:
        return [shown]
    rest = Table(columns=columns, rows=rows[OPEN_CLASSES:])
    return [shown, Details(summary=f"{len(rows) - OPEN_CLASSES} more classes", blocks=[rest])]


def _ratio(counts: tuple[int, int]) -> float:
    right, scored = counts
    return right / scored if scored else 2.0


def confusion_block(one: Tested) -> Block:
    """The confusion matrix, or with many classes the commonest mistakes."""
    names, counts = one.test.confusion
    if len(names) <= MAX_MATRIX:
        caption = "Rows are true classes, columns predicted ones; blue is right, red is wrong."
        return Matrix(title=f"Confusion: {one.name}", names=names, counts=counts, caption=caption)
    pairs = sorted(
        (-count, names[row], names[column])
        for row, of_row in enumerate(counts)
        for column, count in enumerate(of_row)
        if count and row != column
    )
    rows: list[list[Cell]] = [[true, predicted, -count] for count, true, predicted in pairs[:MAX_PAIRS]]
    return Table(title=f"Commonest mistakes: {one.name}", columns=["class", "taken for", "videos"], rows=rows)


def worst_blocks(one: Tested, store: Store | None, num_clips: int) -> list[Block]:
    """The videos whose true class got the lowest probability, playing where the store is at hand."""
    rows = [row for row in one.test.predictions if row["label"] and row["predicted"] != row["label"]]
    rows.sort(key=lambda row: (float(row[f"p({row['label']})"]), row["video_id"]))
    if not rows:
        return [Notes(lines=[f"{one.name}: no video was wrong."])]
    chosen = rows[:num_clips]
    caption = f"{len(chosen)} of {len(rows):,} wrong videos: those whose true class got the lowest probability."
    reels = _reels(store, chosen) if store is not None else []
    if reels:
        return [Gallery(reels=reels, title=one.name, caption=caption)]
    cells: list[list[Cell]] = [[row["video_id"], _remark(row)] for row in chosen]
    return [Table(title=one.name, columns=["video", "what was wrong"], rows=cells, caption=caption)]


def _reels(store: Store, rows: Sequence[dict[str, str]]) -> list[Reel]:
    reels: list[Reel] = []
    for row in rows:
        if row["video_id"] in store:
            try:
                reels.append(video_reel(store[row["video_id"]], _remark(row)))
            except OSError:
                continue
    return reels


def _remark(row: dict[str, str]) -> str:
    true, predicted = row["label"], row["predicted"]
    of_true, of_predicted = (float(row[f"p({name})"]) for name in (true, predicted))
    return f"{true} ({of_true:.0%}), taken for {predicted} ({of_predicted:.0%})"
