"""Motion in px → stored integers; `schema.unpack_motion` is the way back. Compiled: extraction does it for every frame.

Axes: C cells · Y,X cells of 8×8 px · 2 = (dx, dy).
"""

import numpy as np
from numpy.typing import NDArray

from mgm_shared.kernel import kernel
from mgm_shared.schema import MISSING, MOTION_UNITS_PER_PX

# The value below is the mark of a missing cell.
LARGEST = np.float32(-(MISSING + 1))
UNITS_PER_PX = np.float32(MOTION_UNITS_PER_PX)


@kernel
def _pack(motion_C2: NDArray[np.float32], packed_C2: NDArray[np.int16]) -> None:
    for cell in range(len(motion_C2)):
        is_missing = np.isnan(motion_C2[cell, 0]) or np.isnan(motion_C2[cell, 1])
        for axis in range(2):
            units = np.rint(motion_C2[cell, axis] * UNITS_PER_PX)
            packed_C2[cell, axis] = MISSING if is_missing else np.int16(min(max(units, -LARGEST), LARGEST))


def pack_motion(motion_YX2: NDArray[np.float32]) -> NDArray[np.int16]:
    """Convert motion (…, 2) in px per frame, NaN for missing, to stored integers. A cell is missing as a whole."""
    packed_YX2 = np.empty(motion_YX2.shape, np.int16)
    _pack(np.ascontiguousarray(motion_YX2, np.float32).reshape(-1, 2), packed_YX2.reshape(-1, 2))
    return packed_YX2
