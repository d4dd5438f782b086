"""When each picture is shown, from what a container says of its packets, which may be wrong or nothing."""

from collections.abc import Sequence

import numpy as np


def shown_at(pts_s: Sequence[float], dts_s: Sequence[float], frame_rate: float) -> list[float]:
    """The presentation times of pictures in display order, in s; or else the decoding times; or else counted.

    NaN stands for none. As in FFmpeg's guess_correct_pts, the series that fails less often to grow is taken: AVI has no
    presentation times, and with B pictures what FFmpeg makes up for them goes back and forth. A picture that has none
    comes one usual step after the one before.
    """
    series = dts_s if _num_faults(dts_s) < _num_faults(pts_s) else pts_s
    steps_s = np.diff(series)
    steps_s = steps_s[steps_s > 0]
    step_s = float(np.median(steps_s)) if len(steps_s) else 1 / frame_rate
    whole: list[float] = []
    for time_s in series:
        after_s = whole[-1] + step_s if whole else 0.0
        whole.append(time_s if time_s == time_s else after_s)
    return whole


def _num_faults(times_s: Sequence[float]) -> int:
    steps_s = np.diff(times_s)
    return int(np.isnan(times_s).sum() + np.count_nonzero(steps_s <= 0))


def mean_rate(times_s: Sequence[float], frame_rate: float) -> float:
    """Pictures a second over the whole video; `frame_rate` where its times tell nothing."""
    span_s = times_s[-1] - times_s[0]
    return (len(times_s) - 1) / span_s if span_s > 0 else frame_rate
