"""Frames → optical flow as motion: how far the content of each 8×8 cell moved since the frame before (Table 4b).

Each method looks from a frame back at the one before, so that its vectors lie where the content is, not where it was,
as the codec's do.

Axes: T frames · B pairs of a batch · H,W pixels · C = RGB · 2 = (dx, dy) px, right and down positive.
"""

import hashlib
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from mgm_prep.config import FlowSettings
from mgm_shared.errors import UserError
from mgm_shared.geometry import CELL_PX

if TYPE_CHECKING:
    import torch

Frames = NDArray[np.uint8]
Flow = NDArray[np.float32]
Estimate = Callable[[Frames], Flow]
"""frames_THWC → how far each pixel's content moved since the frame before, (T − 1, H, W, 2)."""

FRAMES_PER_BATCH = 9
# RAFT compares pictures at an eighth of their size, and shrinks that three times more.
MIN_RAFT_PX = 128


def estimator(settings: FlowSettings) -> Estimate:
    """The method of the settings. UserError for weights that cannot be read or are another model's."""
    if settings.method == "raft-small":
        model = _raft(settings.weights, settings.device)
        return lambda frames_THWC: raft_motion(model, frames_THWC)
    return lambda frames_THWC: opencv_motion(settings.method, frames_THWC)


def cell_motion(frames: Iterator[Frames], estimate: Estimate) -> Iterator[Flow]:
    """The motion of a video's frames, which come in stretches of any length, one (Y, X, 2) each; NaN for the first."""
    last_THWC: Frames | None = None
    for frames_THWC in frames:
        if last_THWC is None:
            num_rows, num_columns = (side // CELL_PX for side in frames_THWC.shape[1:3])
            yield np.full((num_rows, num_columns, 2), np.nan, np.float32)
        else:
            frames_THWC = np.concatenate([last_THWC, frames_THWC])
        last_THWC = frames_THWC[-1:]
        if len(frames_THWC) > 1:
            yield from map(_pooled, estimate(frames_THWC))


def _pooled(motion_HW2: Flow) -> Flow:
    """Mean of each cell."""
    height, width = motion_HW2.shape[:2]
    pooled_YX2 = cv2.resize(motion_HW2, (width // CELL_PX, height // CELL_PX), interpolation=cv2.INTER_AREA)
    return np.asarray(pooled_YX2, np.float32)


def opencv_motion(method: str, frames_THWC: Frames) -> Flow:
    """`Estimate` by OpenCV, without weights: farneback with the parameters of its documentation, or dis (medium)."""
    grey_THW = [cv2.cvtColor(frame_HWC, cv2.COLOR_RGB2GRAY) for frame_HWC in frames_THWC]
    dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    no_guess: Any = None
    flows = []
    for before_HW, now_HW in pairwise(grey_THW):
        if method == "dis":
            flows.append(dis.calc(now_HW, before_HW, no_guess))
        else:
            flows.append(cv2.calcOpticalFlowFarneback(now_HW, before_HW, no_guess, 0.5, 3, 15, 3, 5, 1.2, 0))
    return -np.stack(flows).astype(np.float32)


def raft_motion(model: "torch.nn.Module", frames_THWC: Frames) -> Flow:
    """`Estimate` by torchvision's RAFT, on the device of its weights."""
    import torch
    from torch.nn.functional import pad

    device = next(model.parameters()).device
    height, width = frames_THWC.shape[1:3]
    frames_TCHW = torch.from_numpy(np.ascontiguousarray(frames_THWC.transpose(0, 3, 1, 2))).to(device).float()
    # To whole eighths, and no smaller than the model can take.
    target_height, target_width = (max(MIN_RAFT_PX, -(-side // 8) * 8) for side in (height, width))
    frames_TCHW = pad(frames_TCHW / 127.5 - 1, (0, target_width - width, 0, target_height - height), mode="replicate")
    with torch.inference_mode():
        flow_B2HW = model(frames_TCHW[1:], frames_TCHW[:-1])[-1]
    motion_BHW2: Flow = -flow_B2HW[..., :height, :width].permute(0, 2, 3, 1).cpu().numpy()
    return motion_BHW2


@lru_cache(maxsize=1)
def _raft(weights: str, device: str) -> "torch.nn.Module":
    """RAFT-small with the user's weights; kept, because a worker computes part after part."""
    import torch
    from torchvision.models.optical_flow import raft_small

    try:
        state = torch.load(weights, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{weights} cannot be read as weights: {type(error).__name__}: {reason}") from None
    model = raft_small(weights=None, progress=False)
    try:
        model.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError):
        raise UserError(f"{weights} does not hold torchvision's raft_small (raft_small_C_T_V1 or V2)") from None
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        # Dask runs as many workers as there are cores.
        torch.set_num_threads(1)
    placed: torch.nn.Module = model.eval().to(device)
    return placed


def described(settings: FlowSettings) -> dict[str, Any]:
    """What a store records of how its flow was made; the weights by their hash. UserError for weights not there."""
    if settings.method != "raft-small":
        return {"method": settings.method}
    try:
        digest = hashlib.sha256(Path(settings.weights).read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"{settings.weights or 'no file'} cannot be read as weights: {error.strerror}") from None
    return {"method": settings.method, "weights_sha256": digest}
