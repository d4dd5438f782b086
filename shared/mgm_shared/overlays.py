"""Draw over a frame: arrows, colours and hatching for its motion, masked patches, boxes, heat maps.

People who are blind to red or green can tell the colours apart, and colour never carries information alone.

Axes: T frames · H,W pixels · C = RGB · Y,X cells of 8×8 px · 2 = (dx, dy) px a frame · t,h,w tubelets of 2×16×16 ·
S ends of line segments.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mgm_shared.geometry import CELL_PX, Box, Patch

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Right, down, left, up: after Okabe and Ito's palette. Of its colours these four stay furthest apart for the red-blind
# and the green-blind, and the commonest directions, left and right, have the pair that all eyes see best.
WHEEL_RGB = np.array([(236, 200, 20), (213, 94, 0), (0, 114, 178), (0, 158, 115)], np.float32)
# The share of a clip's cells that is slower than the full colour.
FULL_COLOUR_QUANTILE = 0.99
# Arrows along the longer side; those shorter than this, in their distances, are left out.
MAX_ARROWS = 26
MIN_ARROW_SHARE = 0.25
# Stripes of the hatching along the longer side.
NUM_STRIPES = 100

# A masked patch is blended with this grey: it darkens a bright picture and lightens a dark one.
FOG_SHARE = 0.75
FOG_GREY = 110
BOX_COLOUR, RING_COLOUR = "#F0E442", "#56B4E9"
# Perceptually uniform, and its lightness alone tells its order.
HEAT_COLOURS = "inferno"
HEAT_ALPHA = 0.85


def motion_colours(motion_YX2: NDArray[np.float32], full_px: float) -> NDArray[np.uint8]:
    """The vectors as colours (…, 3) of the wheel: its hue the direction, white no motion, full from `full_px` on.

    A missing vector is grey.
    """
    dx, dy = np.nan_to_num(motion_YX2[..., 0]), np.nan_to_num(motion_YX2[..., 1])
    quarter, share = np.divmod(np.arctan2(dy, dx) / (np.pi / 2) % 4, 1)
    first = quarter.astype(int) % 4
    hue_YXC = WHEEL_RGB[first] + share[..., None] * (WHEEL_RGB[(first + 1) % 4] - WHEEL_RGB[first])
    strength_YX1 = np.minimum(np.hypot(dx, dy) / full_px, 1)[..., None]
    rgb_YXC = 255 + strength_YX1 * (hue_YXC - 255)
    rgb_YXC[np.isnan(motion_YX2).any(-1)] = 128
    rounded_YXC: NDArray[np.uint8] = rgb_YXC.round().astype(np.uint8)
    return rounded_YXC


def full_speed(motion_TYX2: NDArray[np.float32]) -> float:
    """The speed, px a frame, that a picture of this motion should show in full; never below 1."""
    speed = np.hypot(motion_TYX2[..., 0], motion_TYX2[..., 1])
    known = speed[~np.isnan(speed)]
    return float(max(1.0, np.quantile(known, FULL_COLOUR_QUANTILE))) if known.size else 1.0


def draw_colours(axis: "Axes", motion_YX2: NDArray[np.float32], full_px: float) -> None:
    """The motion of a frame in colours, at the frame's size."""
    num_rows, num_columns = motion_YX2.shape[:2]
    extent = (-0.5, num_columns * CELL_PX - 0.5, num_rows * CELL_PX - 0.5, -0.5)
    axis.imshow(motion_colours(motion_YX2, full_px), extent=extent, interpolation="nearest")
    # White means no motion, so the panel needs a border of its own.
    for spine in axis.spines.values():
        spine.set(visible=True, linewidth=0.4, edgecolor="0.6")


def draw_wheel(axis: "Axes", full_px: float, font_points: float) -> None:
    """The colour wheel as a legend: a disc whose rim is `full_px` px a frame."""
    y, x = np.mgrid[-1:1:129j, -1:1:129j].astype(np.float32)
    rgb_HWC = motion_colours(np.stack([x, y], -1), 1.0)
    alpha_HW1 = 255 * (np.hypot(x, y) <= 1)[..., None].astype(np.uint8)
    # Within the axes: axes that shrink to a circle would make the layout shrink the panels beside them.
    disc = axis.inset_axes((0.1, 0.4, 0.8, 0.6))
    disc.imshow(np.concatenate([rgb_HWC, alpha_HW1], -1))
    disc.axis("off")
    text = f"rim: {full_px:.1f} px\na frame"
    axis.text(0.5, 0.38, text, ha="center", va="top", fontsize=font_points, transform=axis.transAxes)


def draw_arrows(axis: "Axes", motion_YX2: NDArray[np.float32], full_px: float) -> None:
    """Arrows of the mean motion of cells, on axes that show the frame: few enough to be seen one by one.

    The arrow of a motion of `full_px` px a frame is as long as the arrows are apart, twice.
    """
    side_px = arrow_spacing(motion_YX2.shape[:2])
    y, x, mean_K2 = pooled(motion_YX2, side_px // CELL_PX)
    length_K2 = mean_K2 * (2 * side_px / full_px)
    is_moving_K = np.hypot(*length_K2.T) > MIN_ARROW_SHARE * side_px
    x_px, y_px = ((place[is_moving_K] + 0.5) * side_px - 0.5 for place in (x, y))
    axis.quiver(
        x_px, y_px, *length_K2[is_moving_K].T,
        angles="xy", scale_units="xy", scale=1, color="white", edgecolor="black", linewidth=0.25,
        units="xy", width=side_px / 6, headwidth=3.5, headlength=3.5, headaxislength=3, minlength=0,
    )  # fmt: skip


def arrow_spacing(cells_YX: tuple[int, ...]) -> int:
    """How far the arrows of `draw_arrows` are apart, in pixels of the frame."""
    return -(-max(cells_YX) // MAX_ARROWS) * CELL_PX


def draw_arrow_scale(
    axis: "Axes", full_px: float, cells_YX: tuple[int, int], panel_share: float, font_points: float
) -> None:
    """The arrow of `full_px` px a frame, as `draw_arrows` draws it, on axes that are `panel_share` panels wide."""
    side_px, (height_px, width_px) = arrow_spacing(cells_YX), (CELL_PX * side for side in cells_YX)
    axis.set(xlim=(0, panel_share * width_px), ylim=(height_px, 0), aspect="auto")
    middle_px = panel_share * width_px / 2
    axis.quiver(
        middle_px - side_px, 0.42 * height_px, 2 * side_px, 0.0,
        angles="xy", scale_units="xy", scale=1, color="white", edgecolor="black", linewidth=0.25,
        units="xy", width=side_px / 6, headwidth=3.5, headlength=3.5, headaxislength=3, minlength=0,
    )  # fmt: skip
    text = f"{full_px:.1f} px\na frame"
    axis.text(middle_px, 0.5 * height_px, text, ha="center", va="top", fontsize=font_points)


def pooled(motion_YX2: NDArray[np.float32], step: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.float32]]:
    """Row, column and mean motion of the squares of step×step cells, of those where at least half are known."""
    num_rows, num_columns = (side // step for side in motion_YX2.shape[:2])
    cells_YX2 = motion_YX2[: num_rows * step, : num_columns * step].reshape(num_rows, step, num_columns, step, 2)
    is_known_YX = ~np.isnan(cells_YX2[..., 0])
    y, x = np.nonzero(is_known_YX.mean((1, 3)) >= 0.5)
    mean_YX2 = np.nan_to_num(cells_YX2).sum((1, 3)) / np.maximum(is_known_YX.sum((1, 3)), 1)[..., None]
    return y, x, mean_YX2[y, x]


def draw_missing(axis: "Axes", motion_YX2: NDArray[np.float32]) -> None:
    """Hatching over the cells that have no vector, on axes that show the frame."""
    is_missing_HW = np.isnan(motion_YX2).any(-1).repeat(CELL_PX, 0).repeat(CELL_PX, 1)
    y, x = np.indices(is_missing_HW.shape)
    stripe_px = max(is_missing_HW.shape) // NUM_STRIPES
    hatch_HWC = np.zeros((*is_missing_HW.shape, 4), np.float32)
    hatch_HWC[..., :3] = ((x + y) // max(stripe_px, 1) % 2)[..., None]
    hatch_HWC[..., 3] = 0.25 * is_missing_HW
    axis.imshow(hatch_HWC, interpolation="nearest")


def shade_masked(
    frames_THWC: NDArray[np.uint8], mask_thw: NDArray[np.bool_], patch: Patch, fog: float = FOG_SHARE
) -> Any:
    """The clip with its masked tubelets blended with grey; 1 covers them completely."""
    is_masked_THW1 = pixels_of(mask_thw, patch)[..., None]
    fogged_THWC = np.round((1 - fog) * frames_THWC + fog * FOG_GREY).astype(np.uint8)
    return np.where(is_masked_THW1, fogged_THWC, frames_THWC)


def pixels_of(tokens_thw: NDArray[Any], patch: Patch) -> NDArray[Any]:
    """Expand one value per tubelet to one value per pixel, (T, H, W)."""
    return tokens_thw.repeat(patch.frames, 0).repeat(patch.px, 1).repeat(patch.px, 2)


def draw_outline(axis: "Axes", mask_hw: NDArray[np.bool_], patch_px: int) -> None:
    """A line round the masked patches of a slice, on axes that show the frame."""
    across, up = _edges(mask_hw), _edges(mask_hw.T)[:, ::-1]
    ends_S2 = np.concatenate([across, up]) * patch_px - 0.5
    for width, colour in ((1.6, "black"), (0.8, "white")):
        axis.plot(*ends_S2.T, color=colour, linewidth=width, solid_capstyle="projecting", scalex=False, scaley=False)


def _edges(mask_hw: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Ends (x, y) of the horizontal segments between masked and visible patches, a NaN after each pair, (S, 2)."""
    padded_hw = np.pad(mask_hw, ((1, 1), (0, 0)))
    y, x = np.nonzero(padded_hw[1:] != padded_hw[:-1])
    gap = np.full(len(x), np.nan)
    return np.stack([np.stack([x, y], 1), np.stack([x + 1, y], 1), np.stack([gap, gap], 1)], 1).reshape(-1, 2)


def draw_boxes(axis: "Axes", boxes: Iterable[Box]) -> None:
    """Boxes, in pixels of the frame that the axes show; what lies outside is cut off."""
    for box in boxes:
        x = np.array([box.x, box.x + box.width, box.x + box.width, box.x, box.x]) - 0.5
        y = np.array([box.y, box.y, box.y + box.height, box.y + box.height, box.y]) - 0.5
        for width, colour in ((1.9, "black"), (1.0, BOX_COLOUR)):
            axis.plot(x, y, color=colour, linewidth=width, scalex=False, scaley=False)


def draw_heat(axis: "Axes", frame_HWC: NDArray[np.uint8], heat_YX: NDArray[np.float32], full: float) -> None:
    """Draw a heat map of patches or cells over the grey frame; the frame shows through where the map is low."""
    height, width = frame_HWC.shape[:2]
    axis.imshow(frame_HWC.mean(-1), cmap="gray", vmin=0, vmax=255)
    share_YX = np.clip(heat_YX / full, 0, 1)
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    axis.imshow(share_YX, cmap=HEAT_COLOURS, vmin=0, vmax=1, alpha=HEAT_ALPHA * share_YX**0.5, extent=extent)


def draw_heat_scale(axis: "Axes", full: float, unit: str, font_points: float) -> None:
    """What the colours of `draw_heat` mean, from 0 to `full`."""
    share_Y1 = np.linspace(1, 0, 64)[:, None]
    axis.imshow(np.full((1, 1), 128), cmap="gray", vmin=0, vmax=255, extent=(0, 0.12, 0, 1))
    axis.imshow(share_Y1, cmap=HEAT_COLOURS, vmin=0, vmax=1, alpha=HEAT_ALPHA * share_Y1**0.5, extent=(0, 0.12, 0, 1))
    for y, text in ((0, "0"), (1, f"≥ {full:.3g}")):
        axis.text(0.2, y, text, va="center", fontsize=font_points)
    axis.text(0.2, 0.5, unit, va="center", fontsize=font_points)
    axis.set(xlim=(-0.15, 1.1), ylim=(-0.15, 1.15), aspect="auto")


def draw_ring(axis: "Axes", x: float, y: float) -> None:
    """A ring round a place, in pixels of the frame that the axes show."""
    for width, colour in ((2.4, "black"), (1.2, RING_COLOUR)):
        line: dict[str, Any] = {"markeredgecolor": colour, "markeredgewidth": width, "scalex": False, "scaley": False}
        axis.plot(x - 0.5, y - 0.5, "o", markersize=8, markerfacecolor="none", **line)
