"""Convert the raw motion array of a part, as zarr and dask read it, to pixels."""

from typing import Any

import numpy as np

from mgm_shared.errors import UserError
from mgm_shared.schema import unpack_motion

# What describes the raw integers, and is wrong for the converted array.
RAW_ATTRIBUTES = ("scale_factor", "_FillValue")


def motion_from(raw: Any) -> Any:
    """Convert raw motion to px per frame.

    Args:
        raw: The array `motion` or `flow` of a part: int16 in units of 1/16 px, where -32768 means that there is no
            vector. A numpy, zarr or dask array, or an xarray.DataArray that was opened with `mask_and_scale=False`.

    Returns:
        float32 in px per frame, NaN where there is no vector. A dask array stays one and is read lazily, an
        xarray.DataArray stays one with its axes, and of everything else a numpy array is made.

    Raises:
        UserError: The array is not int16, so it is not raw: xarray has decoded it, or it is another array.
    """
    if getattr(raw, "dtype", None) != np.int16:
        kind = getattr(raw, "dtype", type(raw).__name__)
        raise UserError(
            f"raw motion is int16, and this is {kind}; arrays of `video.motion` and xarray are in px already"
        )
    if hasattr(raw, "dims"):
        attributes = {name: value for name, value in raw.attrs.items() if name not in RAW_ATTRIBUTES}
        converted = raw.copy(data=motion_from(raw.data))
        converted.attrs, converted.encoding = attributes, {}
        return converted
    if hasattr(raw, "map_blocks"):
        return raw.map_blocks(unpack_motion, dtype=np.float32)
    return unpack_motion(np.asarray(raw))
