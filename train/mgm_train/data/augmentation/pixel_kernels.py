"""Compiled loops of RandAugment over the pixels of a clip: shear and translation, rotation, sharpness, saturation.

They compute what PIL does, within a grey level: bicubic weights with a = −1, results cut off and not rounded, taps at
the edge of a picture repeated, and the fill colour where a position lies outside of it. OpenCV's `warpAffine` with
cubic weights (a = −0.75) takes 17 ms a clip of 16 × 224² px, the loops here take 0.8 ms for a shift of rows and 3 ms
for a rotation: positions and weights are computed once for all frames and colours, and the inner loops are vectorized.

Axes: K planes (of a frame and a colour) · H,W pixels · N pixels of all frames.
"""

import math

import numpy as np
from numpy.typing import NDArray

from mgm_shared.kernel import kernel

# Weights are integers in units of 1/2048 along a line, 1/16384 over an area: sums stay within 32 bits.
LINE_BITS = 11
AREA_BITS = 14


@kernel
def shift_rows(
    planes_KHW: NDArray[np.uint8],
    shift_H: NDArray[np.float64],
    fill_K: NDArray[np.uint8],
    out_KHW: NDArray[np.uint8],
) -> None:
    """Row y shows what lies `shift_H[y]` pixels to its right: shear and translation along x."""
    num_planes, height, width = planes_KHW.shape
    padded_W = np.empty(width + 4, np.int32)
    for y in range(height):
        whole = math.floor(shift_H[y])
        d = shift_H[y] - whole
        w0 = np.int32(round(2048 * (-d + 2 * d * d - d * d * d)))
        w2 = np.int32(round(2048 * (d + d * d - d * d * d)))
        w3 = np.int32(round(2048 * (d * d * d - d * d)))
        w1 = np.int32(2048) - w0 - w2 - w3
        # The middle of a pixel must lie in the picture, from -0.5 to below width - 0.5.
        first = min(max(math.ceil(-0.5 - shift_H[y]), 0), width)
        stop = max(min(math.ceil(width - 0.5 - shift_H[y]), width), first)
        for k in range(num_planes):
            row_W, out_W = planes_KHW[k, y], out_KHW[k, y]
            padded_W[0] = padded_W[1] = row_W[0]
            padded_W[width + 2] = padded_W[width + 3] = row_W[width - 1]
            for x in range(width):
                padded_W[x + 2] = row_W[x]
            taps_W, shown_W = padded_W[first + whole + 1 :], out_W[first:stop]
            for x in range(len(shown_W)):
                total = w0 * taps_W[x] + w1 * taps_W[x + 1] + w2 * taps_W[x + 2] + w3 * taps_W[x + 3]
                shown_W[x] = min(max(total >> 11, 0), 255)
            out_W[:first] = fill_K[k]
            out_W[stop:] = fill_K[k]


@kernel
def _cubic(d: float, weights: NDArray[np.float64]) -> None:
    """The four weights at the distance `d` behind the second tap, a = −1."""
    weights[0] = -d + 2 * d * d - d * d * d
    weights[1] = 1 - 2 * d * d + d * d * d
    weights[2] = d + d * d - d * d * d
    weights[3] = d * d * d - d * d


@kernel
def rotate(
    pixels_HWK: NDArray[np.uint8], cos: float, sin: float, fill_K: NDArray[np.uint8], out_HWK: NDArray[np.uint8]
) -> None:
    """Pixel (x, y) from the middle shows what lies at (x cos + y sin, −x sin + y cos) from it."""
    height, width, num_planes = pixels_HWK.shape
    wx, wy = np.empty(4, np.float64), np.empty(4, np.float64)
    weights = np.empty((4, 4), np.int32)
    total_K = np.empty(num_planes, np.int32)
    for y in range(height):
        for x in range(width):
            from_middle_x, from_middle_y = x + 0.5 - width / 2, y + 0.5 - height / 2
            at_x = from_middle_x * cos + from_middle_y * sin + width / 2
            at_y = -from_middle_x * sin + from_middle_y * cos + height / 2
            shown_K = out_HWK[y, x]
            if not (0 <= at_x < width and 0 <= at_y < height):
                shown_K[:] = fill_K
                continue
            left, top = math.floor(at_x - 0.5), math.floor(at_y - 0.5)
            _cubic(at_x - 0.5 - left, wx)
            _cubic(at_y - 0.5 - top, wy)
            rest = np.int32(16384)
            for i in range(4):
                for j in range(4):
                    weights[i, j] = np.int32(round(16384 * wy[i] * wx[j]))
                    rest -= weights[i, j]
            weights[1, 1] += rest
            a, b = min(max(left - 1, 0), width - 1), min(max(left, 0), width - 1)
            c, d = min(max(left + 1, 0), width - 1), min(max(left + 2, 0), width - 1)
            total_K[:] = 0
            for i in range(4):
                row_WK = pixels_HWK[min(max(top - 1 + i, 0), height - 1)]
                a_K, b_K, c_K, d_K = row_WK[a], row_WK[b], row_WK[c], row_WK[d]
                wa, wb, wc, wd = weights[i, 0], weights[i, 1], weights[i, 2], weights[i, 3]
                for k in range(num_planes):
                    total_K[k] += (
                        wa * np.int32(a_K[k]) + wb * np.int32(b_K[k]) + wc * np.int32(c_K[k]) + wd * np.int32(d_K[k])
                    )
            for k in range(num_planes):
                shown_K[k] = min(max(total_K[k] >> 14, 0), 255)


@kernel
def sharpen(planes_KHW: NDArray[np.uint8], factor: np.float32, out_KHW: NDArray[np.uint8]) -> None:
    """From the picture smoothed by PIL's SMOOTH filter (0) past itself (1) to sharper; its edge is not smoothed."""
    num_planes, height, width = planes_KHW.shape
    column_W = np.empty(width, np.int32)
    for k in range(num_planes):
        out_KHW[k, 0] = planes_KHW[k, 0]
        out_KHW[k, height - 1] = planes_KHW[k, height - 1]
        for y in range(1, height - 1):
            above_W, row_W, below_W, out_W = planes_KHW[k, y - 1], planes_KHW[k, y], planes_KHW[k, y + 1], out_KHW[k, y]
            for x in range(width):
                column_W[x] = np.int32(above_W[x]) + np.int32(row_W[x]) + np.int32(below_W[x])
            out_W[0], out_W[width - 1] = row_W[0], row_W[width - 1]
            for x in range(1, width - 1):
                total = column_W[x - 1] + column_W[x] + column_W[x + 1] + np.int32(4) * np.int32(row_W[x])
                # (total + 6) / 13, which is the rounded mean: 20165 / 2^18 is exact up to 13 · 255.
                smooth = ((total + np.int32(6)) * np.int32(20165)) >> 18
                mixed = np.float32(smooth) + factor * np.float32(np.int32(row_W[x]) - smooth)
                out_W[x] = np.uint8(min(max(mixed, np.float32(0)), np.float32(255)))


@kernel
def saturate(pixels_CN: NDArray[np.uint8], factor: np.float32, out_CN: NDArray[np.uint8]) -> None:
    """From the grey picture (0) past itself (1) to stronger colours, with ITU-R 601 luma."""
    red_N, green_N, blue_N = pixels_CN[0], pixels_CN[1], pixels_CN[2]
    for n in range(len(red_N)):
        red, green, blue = np.int32(red_N[n]), np.int32(green_N[n]), np.int32(blue_N[n])
        grey = (red * np.int32(19595) + green * np.int32(38470) + blue * np.int32(7471) + np.int32(32768)) >> 16
        level = np.float32(grey)
        mixed_red = level + factor * np.float32(red - grey)
        mixed_green = level + factor * np.float32(green - grey)
        mixed_blue = level + factor * np.float32(blue - grey)
        out_CN[0, n] = np.uint8(min(max(mixed_red, np.float32(0)), np.float32(255)))
        out_CN[1, n] = np.uint8(min(max(mixed_green, np.float32(0)), np.float32(255)))
        out_CN[2, n] = np.uint8(min(max(mixed_blue, np.float32(0)), np.float32(255)))
