"""The loss of a pretraining run over its steps."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mgm_shared.figures import FONT_POINTS, panels
from mgm_train.checkpoint.run_folder import RunFolder, recorded_options
from mgm_train.target_weights import target_weights

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The loss of predicting the mean of each masked patch: its pixels are normalised to a variance of 1.
BLIND_GUESS = 1.0
# Of the targets, from Okabe and Ito's palette; the sum has its blue.
COLOURS = ("#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def loss_figure(run: Path) -> "Figure":
    """The loss of a run over its steps, and the learning rate below.

    A run of pixels has the line of a blind guess; one of several targets, the loss of each.
    """
    from matplotlib.ticker import MaxNLocator

    rows = [row for row in RunFolder(run).read_metrics() if "loss" in row]
    figure, axes = panels(2, 1, (1, 3), width_inches=4.5)
    for axis, (name, label) in zip(axes.flat, {"loss": "loss", "lr": "learning rate"}.items(), strict=True):
        axis.plot([row["step"] for row in rows], [row[name] for row in rows], linewidth=1, color="#0072B2")
        axis.set_ylabel(label, fontsize=FONT_POINTS)
        axis.xaxis.set_major_locator(MaxNLocator(8, integer=True, steps=[1, 2, 5, 10]))
        axis.yaxis.set_major_locator(MaxNLocator(6))
        axis.yaxis.set_major_formatter("{x:.5g}")
        axis.tick_params(labelsize=FONT_POINTS)
        axis.spines[["left", "bottom"]].set_visible(True)
        axis.grid(linewidth=0.3, alpha=0.6)
    weights = target_weights(str(recorded_options(run, "pretrain").get("target", "pixels")))
    if len(weights) > 1:
        _add_targets(axes.flat[0], weights, rows)
    else:
        _mark_blind_guess(axes.flat[0], weights)
    axes.flat[1].set_xlabel("step", fontsize=FONT_POINTS)
    axes.flat[0].set_title(
        f"{run.name}: loss of pretraining", fontsize=FONT_POINTS + 1, pad=16 if len(weights) > 1 else 6
    )
    return figure


def _add_targets(axis: "Axes", weights: Mapping[str, float], rows: Sequence[Mapping[str, Any]]) -> None:
    """The loss of each target, with a legend that also names the sum."""
    axis.lines[0].set_label("all, weighted")
    for place, name in enumerate(weights):
        losses = [row.get(f"loss_{name}", np.nan) for row in rows]
        colour, dashes = COLOURS[place % len(COLOURS)], (0, (4, 1 + place))
        axis.plot([row["step"] for row in rows], losses, linewidth=1, color=colour, linestyle=dashes, label=name)
    axis.legend(
        fontsize=FONT_POINTS - 1, frameon=False, ncols=len(weights) + 1, loc="lower center", bbox_to_anchor=(0.5, 0.97)
    )


def _mark_blind_guess(axis: "Axes", weights: Mapping[str, float]) -> None:
    """A line at the loss of predicting the mean of each patch, for a run of pixels."""
    if "pixels" not in weights:
        return
    guess = BLIND_GUESS * weights["pixels"]
    axis.axhline(guess, color="0.4", linewidth=0.8, linestyle=(0, (2, 3)))
    style: dict[str, Any] = {"color": "0.35", "ha": "right", "va": "bottom", "fontsize": FONT_POINTS - 1}
    axis.text(0.995, guess, "a blind guess", transform=axis.get_yaxis_transform(), **style)
