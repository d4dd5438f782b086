"""What to run after each command of mgm-train, for the last line that it prints."""

from collections.abc import Mapping
from typing import Any

from mgm_shared.cli import NextStep, quoted


def _after_recipe(options: Mapping[str, Any]) -> str:
    action, name = options["action"], options["name"]
    if action == "list":
        return "mgm-train recipe show NAME, or --config NAME with any command"
    if action == "show":
        return f"--config {quoted(name)} with any command, or mgm-train recipe copy {quoted(name)} FILE to change it"
    return f"edit {options['file']}, then --config {quoted(options['file'])} with any command"


def _after_doctor(options: Mapping[str, Any]) -> str:
    store = options["store"]
    if store is None:
        return "mgm-train doctor STORE, which measures how fast a store is read"
    return f"mgm-train pretrain {quoted(store)} --run runs/NAME"


def _after_evaluate(options: Mapping[str, Any]) -> str:
    folder = options["out"] or options["weights"]
    return f"the accuracy of each class and the prediction of each video are in the CSV files of {folder}"


def _after_export(options: Mapping[str, Any]) -> str:
    return f"read {quoted(options['out'] / 'README.md')}, which says how to load the model"


def _after_embed(options: Mapping[str, Any]) -> str:
    command = "mgm-train probe" if options["knn"] else "mgm-train embed"
    words = [command, quoted(options["store"])]
    # A recipe may have given the model.
    words += ["--run runs/NAME"] if options["knn"] else ["-o", quoted(options["out"]), "--knn"]
    words += ["--init", quoted(options["init"])] if options["init"] else ["--init RUN"]
    return " ".join(words)


NEXT_STEPS: dict[str, NextStep] = {
    "pretrain": "mgm-train finetune {store} --run {run}-ft --init {run}, or mgm-train visualize {store} --run {run}",
    "finetune": "mgm-train evaluate {store} {run}",
    "detect": "mgm-train evaluate {store} {run}, or mgm-train visualize {store} --run {run}",
    "probe": "mgm-train finetune {store} --run runs/NAME --init RUN, if the features are good enough",
    "evaluate": _after_evaluate,
    "export": _after_export,
    "embed": _after_embed,
    "visualize": "open the pictures, then mgm-train finetune {store} --run {run}-ft --init {run}",
    "ablate": "open results.md and results.png in the folder of the runs",
    "recipe": _after_recipe,
    "doctor": _after_doctor,
    "report": "open {out}",
}
