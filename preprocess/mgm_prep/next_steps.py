"""What to run after each command of mgm-prep, for the last line that it prints."""

from collections.abc import Mapping
from typing import Any

from mgm_shared.cli import NextStep, quoted


def _after_inspect(options: Mapping[str, Any]) -> str:
    store, video = quoted(options["store"]), options["video"]
    if video is None:
        return f"mgm-prep list {store}, which lists the videos; mgm-prep inspect {store} VIDEO describes one"
    if options["figure"] is None:
        return f"mgm-prep inspect {store} {quoted(video)} --figure motion.png"
    return f"open {options['figure']}"


NEXT_STEPS: dict[str, NextStep] = {
    "extract": "mgm-prep inspect {store}, then mgm-train pretrain {store} --run runs/NAME",
    "labels": "mgm-prep list {store}, then mgm-train finetune {store} --run runs/NAME --init RUN",
    "transcode": "mgm-prep extract {out} NAME.store",
    "index": "mgm-prep inspect {store}",
    "verify": "mgm-train pretrain {store} --run runs/NAME",
    "list": "mgm-prep inspect {store} VIDEO, which describes one of them",
    "inspect": _after_inspect,
    "flow": "mgm-train pretrain {store} --run runs/NAME --guidance flow",
    "codebook": "mgm-train pretrain {store} --run runs/NAME --target pixels+kmeans:0.1 --codebook {out}",
    "saliency": "mgm-train pretrain {store} --run runs/NAME",
    "report": "open {out}",
}
