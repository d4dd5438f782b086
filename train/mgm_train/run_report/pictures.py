"""What a pretrained model sees, playing: masks of all strategies, reconstructions, attention.

The rows are those of `figures/paper_figures.py`; each becomes a film of its own.
"""

from collections.abc import Sequence
from dataclasses import replace

from mgm_shared.figures import Row, row_pictures
from mgm_shared.report.blocks import Block, Gallery, Reel
from mgm_shared.report.reels import data_url
from mgm_shared.store import Video
from mgm_train.checkpoint.run_folder import read_config
from mgm_train.checkpoint.weights import find_weights
from mgm_train.config import PretrainConfig
from mgm_train.figures.paper_figures import (
    Subject,
    attention_picture,
    mask_picture,
    reconstruction_picture,
    target_picture,
)
from mgm_train.figures.pretrained import pretrained
from mgm_train.figures.reconstruct import can_reconstruct
from mgm_train.run_report.records import RunRecord

SIDE_PX = 224


def mask_blocks(run: RunRecord, video: Video) -> list[Block]:
    """The clip with its vectors, and its mask by each strategy; that of the run is named."""
    subject = Subject.of(video, read_config(run.root, "pretrain", PretrainConfig))
    picture = mask_picture(subject)
    reels = _reels(picture.rows, subject, video)
    return [Gallery(reels=reels, caption=f"{picture.caption}.")]


def model_blocks(run: RunRecord, video: Video) -> list[Block]:
    """What the encoder sees, what the decoder predicts, and where the last block attends. UserError without weights."""
    config = read_config(run.root, "pretrain", PretrainConfig)
    subject = Subject.of(video, config)
    model = pretrained(run.root)
    rebuilt = reconstruction_picture(subject, model) if can_reconstruct(model) else target_picture(subject, model)
    attention = attention_picture(subject, model)
    last = replace(attention.rows[-1], name=f"attention, {attention.rows[-1].name}")
    # The clip of the attention has a ring round the patch that attends.
    rows = [attention.rows[0], *rebuilt.rows[1:], last]
    caption = f"{rebuilt.caption}; {attention.caption.split(' · ')[-1]}."
    title = f"{run.name}, {find_weights(run.root).stem}"
    return [Gallery(reels=_reels(rows, subject, video), title=title, caption=caption)]


def _reels(rows: Sequence[Row], subject: Subject, video: Video) -> list[Reel]:
    frames_per_s = video.fps / subject.config.stride
    return [
        Reel(
            title=" ".join(row.name.split()),
            remark=" ".join(row.scale.split()),
            picture=data_url(row_pictures(row, subject.config.num_frames, (SIDE_PX, SIDE_PX))),
            num_frames=subject.config.num_frames,
            width=SIDE_PX,
            height=SIDE_PX,
            frames_per_s=frames_per_s,
        )
        for row in rows
    ]
