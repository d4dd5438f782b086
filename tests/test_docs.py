"""Every command and every Python snippet of README.md and docs/ runs, at toy size, and the references are complete."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from desk import PROGRAMS, ROOT, Desk, Results, blocks, commands_by_run, invoke, make_box_files, make_toy_video

from mgm_shared.objects import Url

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
# Blocks that carry `<!-- not run: REASON -->`. A new one is a decision: add it here.
NUM_NOT_RUN = {"clusters.md": 4, "index.md": 2}
LANGUAGES = {"console", "python", "text", "yaml", "bibtex"}
# Snippets that test_masking.py runs among what they are meant for, and commands that test_tables.py runs.
RUN_ELSEWHERE = {("CONTRIBUTING.md", "python"), ("paper-tables.md", "bash")}

# Ids of the toy data set, by label; the pages show the first one, with its size.
SHOWN_ID, SHOWN_SIZE, SHOWN_FRAMES = "train/wave/17.mp4", (256, 456), 64
VIDEOS = {
    "wave": [SHOWN_ID, "train/wave/01.mp4", "val/wave/21.mp4", "test/wave/11.mp4"],
    "jump": ["train/jump/3.mp4", "train/jump/4.mp4", "val/jump/5.mp4", "test/jump/6.mp4"],
    "push": ["train/push/7.mp4", "train/push/8.mp4", "val/push/9.mp4", "test/push/10.mp4"],
}


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path, Results]]:
    """Videos, their store, and the results that the pages share."""
    folder = tmp_path_factory.mktemp("docs")
    for number, video_id in enumerate(video_id for ids in VIDEOS.values() for video_id in ids):
        is_shown = video_id == SHOWN_ID
        num_frames, size = (SHOWN_FRAMES, SHOWN_SIZE) if is_shown else (12, (64, 80))
        make_toy_video(folder / "videos" / video_id, number, num_frames, size)
    invoke(["extract", folder / "videos", folder / "toy.store", "--workers", "0"])
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield folder / "videos", folder / "toy.store", Results()
    torch.set_num_threads(before)


@pytest.fixture
def desk(toy: tuple[Path, Path, Results], tmp_path: Path) -> Desk:
    """A desk with the files that the pages name."""
    videos, store, results = toy
    made = Desk(tmp_path / "desk", {"toy": store}, RUN_MAKERS, "toy", videos, results)
    rows = [(video_id, label) for label, ids in VIDEOS.items() for video_id in ids]
    for name, split in (("train.json", "train"), ("validation.json", "val")):
        chosen = [
            {"id": Path(video_id).stem, "template": label} for video_id, label in rows if video_id.startswith(split)
        ]
        (made.folder / name).write_text(json.dumps(chosen))
    lines = [f"{video_id},{label},{video_id.split('/')[0]}" for video_id, label in rows]
    (made.folder / "labels.csv").write_text("\n".join(["path,label,split", *lines, ""]))
    (made.folder / "classes.csv").write_text("label,class\nwave,moving\njump,moving\npush,pushing\n")
    names = [Path(video_id).stem for video_id, _ in rows]
    make_box_files(made.folder / "ava", made.folder / "person-boxes.csv", names)
    (made.folder / "images/train/cat").mkdir(parents=True)
    cv2.imwrite(str(made.folder / "images/train/cat/1.png"), np.full((32, 48, 3), 99, np.uint8))
    for video_id, _ in rows:
        boxes = made.folder / "boxes" / Path(video_id).with_suffix(".txt")
        boxes.parent.mkdir(parents=True, exist_ok=True)
        boxes.write_text("".join(f"{t},1,9,9,24,24,1\n" for t in range(1, 13)))
    return made


ALL_BLOCKS = {page.name: blocks(page.read_text()) for page in PAGES}
RUN_MAKERS = commands_by_run(
    [
        command
        for shown in ALL_BLOCKS.values()
        for block in shown
        if block.language == "console"
        for command in block.commands()
    ]
)


@pytest.mark.parametrize("page", ALL_BLOCKS)
def test_the_commands_and_snippets_of_a_page_run(
    desk: Desk, page: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    if any("s3://" in block.text for block in ALL_BLOCKS[page] if not block.reason):
        bucket: Url = request.getfixturevalue("bucket")
        desk.urls["s3://bucket"] = str(bucket)
    names: dict[str, Any] = {}
    own = [block for block in ALL_BLOCKS[page] if not block.reason]
    desk.makers = {**RUN_MAKERS, **commands_by_run([command for block in own for command in block.commands()])}
    for block in own:
        if block.file:
            (desk.folder / block.file).write_text(block.text)
        elif block.language == "console":
            for command in block.commands():
                desk.run(command)
        elif block.language == "python" and (page, "python") not in RUN_ELSEWHERE:
            desk.execute(block.text, names)


@pytest.mark.parametrize("page", ALL_BLOCKS)
def test_no_command_hides_in_another_kind_of_block(page: str) -> None:
    for block in ALL_BLOCKS[page]:
        assert block.language in LANGUAGES or (page, block.language) in RUN_ELSEWHERE
        if block.language == "console":
            assert block.commands(), block.text
        if block.language == "text":
            assert not re.search(r"^(\$ )?(mgm-|python |pip |make )", block.text, re.MULTILINE), block.text


def test_blocks_that_are_not_run_say_why() -> None:
    reasons = {page: [block.reason for block in shown if block.reason] for page, shown in ALL_BLOCKS.items()}
    assert {page: len(found) for page, found in reasons.items() if found} == NUM_NOT_RUN
    for page, found in reasons.items():
        for reason in found:
            assert len(reason.split()) >= 3, f"{page}: {reason!r}"


@pytest.mark.parametrize("page", ALL_BLOCKS)
def test_commands_that_the_prose_names_exist(page: str) -> None:
    (text,) = [file.read_text() for file in PAGES if file.name == page]
    for program, command in re.findall(r"`(mgm-prep|mgm-train) ([a-z]+)\b", text):
        assert command in PROGRAMS[program].commands, f"{program} {command}"
    for target in re.findall(r"`make ([a-z-]+)", text):
        assert f"\n{target}:" in (ROOT / "Makefile").read_text(), target
