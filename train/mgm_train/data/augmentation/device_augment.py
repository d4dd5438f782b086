"""RandAugment and random erasing of a whole batch by torch, on the device of the batch.

What is done to a clip was drawn by its data loading worker, as for the CPU (operations.py), so a resumed run does the
same again, and both places differ by a grey level at most, erased boxes aside: their noise is drawn on the device, with
a seed of the clip. Clips that have the same operation at the same place of their lists are changed together.

Axes: B clips of a batch, n of a group · C = RGB · T frames · H,W pixels · K = C·T planes · P = H·W · V grey levels.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mgm_shared.geometry import Box
from mgm_train.data.augmentation.operations import (
    BY_HISTOGRAM,
    FILL_C,
    GEOMETRIC,
    LUMA_C,
    POINTWISE,
    Operation,
    apply_operations,
    point_table,
)


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What is to be done to the pixels of a clip: operations in their order, then perhaps a box to erase."""

    operations: tuple[Operation, ...] = ()
    erased: Box | None = None
    noise_seed: int = 0


def change_batch(batch: dict[str, Any], noise_levels: Callable[[], Any]) -> dict[str, Any]:
    """The batch with the changes that its workers left to the device done to `frames_BCTHW`; others as they are.

    `noise_levels` returns the grey level of each 16-bit random number, (3, 65536), for erasing.
    """
    changes: Sequence[Changes] | None = batch.get("changes_B")
    if changes is None:
        return batch
    frames_BCTHW = batch["frames_BCTHW"].clone()
    for place in range(max((len(change.operations) for change in changes), default=0)):
        _change_place(frames_BCTHW, [change.operations[place : place + 1] for change in changes])
    for b, change in enumerate(changes):
        if change.erased is not None:
            _erase(frames_BCTHW[b], change.erased, change.noise_seed, torch.from_numpy(noise_levels()))
    return batch | {"frames_BCTHW": frames_BCTHW}


def _change_place(frames_BCTHW: Tensor, operations_B: Sequence[Sequence[Operation]]) -> None:
    groups: dict[str, list[tuple[int, Operation]]] = {}
    for b, operations in enumerate(operations_B):
        for operation in operations:
            groups.setdefault(operation.kind, []).append((b, operation))
    for kind, members in groups.items():
        index = torch.tensor([b for b, _ in members], device=frames_BCTHW.device)
        frames_BCTHW[index] = _changed(kind, frames_BCTHW[index], [operation for _, operation in members])


def _changed(kind: str, frames_nCTHW: Tensor, operations: Sequence[Operation]) -> Tensor:
    device = frames_nCTHW.device
    amounts = [operation.arguments[0] if operation.arguments else 0.0 for operation in operations]
    amount_n = torch.tensor(amounts, dtype=torch.float32, device=device)
    if kind in POINTWISE:
        tables = torch.stack([torch.from_numpy(point_table(operation).copy()) for operation in operations]).to(device)
        return _mapped(frames_nCTHW, tables[:, None].expand(-1, _num_planes(frames_nCTHW), -1))
    if kind in BY_HISTOGRAM:
        return _mapped(frames_nCTHW, _tables(kind, frames_nCTHW, amount_n))
    if kind in GEOMETRIC:
        return _warped(frames_nCTHW, [_matrix(kind, amount, frames_nCTHW.shape) for amount in amounts])
    if kind == "Sharpness":
        return _mixed(_smoothed(frames_nCTHW), frames_nCTHW, amount_n)
    if kind in ("Color", "Desaturate"):
        factor_n = (1 - amount_n).clamp(0, 1) if kind == "Desaturate" else amount_n
        return _mixed(_grey(frames_nCTHW), frames_nCTHW, factor_n)
    # GaussianBlur of other sets of timm.
    pairs = zip(frames_nCTHW.cpu().numpy(), operations, strict=True)
    return torch.stack([torch.from_numpy(apply_operations(clip, [operation])) for clip, operation in pairs]).to(device)


def _num_planes(frames_nCTHW: Tensor) -> int:
    return frames_nCTHW.shape[1] * frames_nCTHW.shape[2]


def _mapped(frames_nCTHW: Tensor, tables_nKV: Tensor) -> Tensor:
    """Each grey level replaced by the entry of its plane's table."""
    levels_nKP = frames_nCTHW.flatten(3).flatten(1, 2).long()
    return tables_nKV.gather(2, levels_nKP).view_as(frames_nCTHW)


def _tables(kind: str, frames_nCTHW: Tensor, amount_n: Tensor) -> Tensor:
    """The table of each plane for an operation that depends on its histogram, uint8 (n, K, V)."""
    levels_nKP = frames_nCTHW.flatten(3).flatten(1, 2).long()
    counts_nKV = torch.zeros((*levels_nKP.shape[:2], 256), dtype=torch.int32, device=levels_nKP.device)
    # Whole numbers: their sum does not depend on the order.
    counts_nKV.scatter_add_(2, levels_nKP, torch.ones_like(levels_nKP, dtype=torch.int32))
    level_V = torch.arange(256, device=levels_nKP.device)
    if kind == "Contrast":
        mean_nCT = (counts_nKV * level_V).sum(2).double().div(levels_nKP.shape[2]).unflatten(1, (3, -1))
        luma_C = torch.from_numpy(LUMA_C).to(mean_nCT.device)
        mean_nT = torch.einsum("c,nct->nt", luma_C, mean_nCT).add(0.5).floor().float()
        mean_nK1 = mean_nT.repeat(1, 3)[..., None]
        return (mean_nK1 + amount_n[:, None, None] * (level_V - mean_nK1)).clamp(0, 255).byte()
    is_there_nKV = counts_nKV > 0
    low_nK1 = is_there_nKV.int().argmax(2, keepdim=True)
    high_nK1 = 255 - is_there_nKV.flip(2).int().argmax(2, keepdim=True)
    if kind == "AutoContrast":
        scale_nK1 = 255.0 / (high_nK1 - low_nK1).clamp(min=1).double()
        stretched_nKV = (level_V * scale_nK1 - low_nK1 * scale_nK1).clamp(0, 255).byte()
        return torch.where(high_nK1 > low_nK1, stretched_nKV, level_V.byte())
    step_nK1 = (counts_nKV.sum(2, keepdim=True) - counts_nKV.gather(2, high_nK1)) // 255
    below_nKV = counts_nKV.cumsum(2) - counts_nKV
    equal_nKV = ((step_nK1 // 2 + below_nKV) // step_nK1.clamp(min=1)).clamp(0, 255).byte()
    return torch.where(step_nK1 > 0, equal_nKV, level_V.byte())


def _matrix(kind: str, amount: float, shape: torch.Size) -> list[list[float]]:
    """From the middles of the pixels shown to the places that they show, (2, 3)."""
    height, width = shape[-2:]
    if kind == "Rotate":
        cos, sin = math.cos(math.radians(amount)), -math.sin(math.radians(amount))
        x, y = width / 2, height / 2
        return [[cos, sin, x - cos * x - sin * y], [-sin, cos, y + sin * x - cos * y]]
    is_along_x = "X" in kind
    shift = 0.0 if "Shear" in kind else amount * (width if is_along_x else height) if kind.endswith("Rel") else amount
    shear = amount if "Shear" in kind else 0.0
    return [[1, shear, shift], [0, 1, 0]] if is_along_x else [[1, 0, 0], [shear, 1, shift]]


def _warped(frames_nCTHW: Tensor, matrices: Sequence[list[list[float]]]) -> Tensor:
    """Bicubic with a = −1, as PIL's; the fill colour where a place lies outside."""
    device, (height, width) = frames_nCTHW.device, frames_nCTHW.shape[-2:]
    matrix_n23 = torch.tensor(matrices, dtype=torch.float64, device=device)
    y_HW, x_HW = torch.meshgrid(
        torch.arange(height, dtype=torch.float64, device=device) + 0.5,
        torch.arange(width, dtype=torch.float64, device=device) + 0.5,
        indexing="ij",
    )
    shown = torch.stack([x_HW, y_HW, torch.ones_like(x_HW)])
    place_n2HW = torch.einsum("nij,jhw->nihw", matrix_n23, shown)
    limit = torch.tensor([width, height], device=device)[:, None, None]
    is_inside_nHW = ((place_n2HW >= 0) & (place_n2HW < limit)).all(1)
    corner_n2HW = (place_n2HW - 0.5).floor()
    x_weights, y_weights = (_cubic((place_n2HW - 0.5 - corner_n2HW)[:, axis].float()) for axis in (0, 1))
    left_nHW, top_nHW = corner_n2HW.long().unbind(1)
    planes_nKP = frames_nCTHW.flatten(3).flatten(1, 2)
    total_nKP = torch.zeros(planes_nKP.shape, device=device)
    for i, y_weight in enumerate(y_weights):
        row_nHW = (top_nHW + i - 1).clamp(0, height - 1) * width
        for j, x_weight in enumerate(x_weights):
            index_n1P = (row_nHW + (left_nHW + j - 1).clamp(0, width - 1)).flatten(1)[:, None]
            taps_nKP = planes_nKP.gather(2, index_n1P.expand_as(planes_nKP))
            total_nKP.addcmul_(taps_nKP.float(), (y_weight * x_weight).flatten(1)[:, None])
    # PIL cuts off; a hundredth keeps sums that are whole but for rounding from the level below.
    bent_nCTHW = total_nKP.add_(0.01).clamp_(0, 255).byte().view_as(frames_nCTHW)
    fill_C111 = torch.tensor(FILL_C, dtype=torch.uint8, device=device)[:, None, None, None]
    return torch.where(is_inside_nHW[:, None, None], bent_nCTHW, fill_C111)


def _cubic(d: Tensor) -> list[Tensor]:
    """The four weights at the distance `d` behind the second tap, a = −1."""
    square, cube = d * d, d * d * d
    return [2 * square - d - cube, 1 - 2 * square + cube, d + square - cube, cube - square]


def _mixed(other_nCTHW: Tensor, frames_nCTHW: Tensor, factor_n: Tensor) -> Tensor:
    """From another picture (factor 0) past the frames (1)."""
    other = other_nCTHW.float()
    factor = factor_n.view(-1, 1, 1, 1, 1)
    return (other + factor * (frames_nCTHW.float() - other)).clamp(0, 255).byte()


def _grey(frames_nCTHW: Tensor) -> Tensor:
    red, green, blue = frames_nCTHW.int().unbind(1)
    return ((red * 19595 + green * 38470 + blue * 7471 + 32768) >> 16)[:, None].expand_as(frames_nCTHW)


def _smoothed(frames_nCTHW: Tensor) -> Tensor:
    """PIL's SMOOTH: the mean of 3×3 pixels, of which the middle counts five times; the edge as it is."""
    pixels = frames_nCTHW.int()
    rows = pixels[..., :-2, :] + pixels[..., 1:-1, :] + pixels[..., 2:, :]
    total = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * pixels[..., 1:-1, 1:-1]
    pixels[..., 1:-1, 1:-1] = (total + 6) // 13
    return pixels


def _erase(frames_CTHW: Tensor, box: Box, seed: int, levels: Tensor) -> None:
    """Fill a box of a clip with noise, which depends on the seed and the kind of device."""
    rows = slice(int(box.y), int(box.y + box.height))
    columns = slice(int(box.x), int(box.x + box.width))
    generator = torch.Generator(frames_CTHW.device).manual_seed(seed)
    shape = frames_CTHW[:, :, rows, columns].shape
    numbers = torch.randint(65536, shape, generator=generator, device=frames_CTHW.device)
    levels = levels.to(frames_CTHW.device)
    for c in range(3):
        frames_CTHW[c, :, rows, columns] = levels[c][numbers[c]]
