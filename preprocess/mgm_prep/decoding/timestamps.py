"""When each picture is shown, from what a container says of its packets, which may be wrong or nothing."""

from collections.abc import Sequence
from math import inf

import numpy as np
from numpy.typing import NDArray

# Where times fall back for more pictures than this, another clock has begun.
MAX_DISORDER = 3
# Where times go on within so many usual steps, the picture between them has lied.
OUTLIER_STEPS = 3
# Pictures of one time, as of a camera that writes whole seconds.
MAX_EQUAL = 256
# What is below rounds to nothing in the times of a recorder that counts from 1970.
MIN_STEP_S = 1e-6
# The ffmpeg program takes a longer step for a change of the clock: its option dts_delta_threshold for formats that
# FFmpeg marks as having such changes (AVFMT_TS_DISCONT: MPEG-TS, MPEG-PS, Ogg, …), dts_error_threshold for others.
MAX_PAUSE_DISCONTINUOUS_S, MAX_PAUSE_S = 10.0, 30 * 3600.0
# A step that is longer than this, and than so many usual ones, is a pause, and no part of the frame rate.
PAUSE_S, PAUSE_STEPS = 1.0, 10


def shown_at(
    pts_s: Sequence[float], dts_s: Sequence[float], frame_rate: float, max_pause_s: float = inf
) -> list[float]:
    """The presentation times of pictures in display order, in s; or else the decoding times; or else counted.

    NaN stands for none. As in FFmpeg's guess_correct_pts, the series that fails less often to grow is taken: AVI has no
    presentation times, and with B pictures what FFmpeg makes up for them goes back and forth. A picture that has none
    comes one usual step after the one before. The times strictly rise, see `rising`.
    """
    series = dts_s if _num_faults(dts_s) < _num_faults(pts_s) else pts_s
    steps_s = np.diff(series)
    rising_s = steps_s[steps_s > 0]
    step_s = float(np.median(rising_s)) if len(rising_s) else 1 / frame_rate
    whole: list[float] = []
    for time_s in series:
        after_s = whole[-1] + step_s if whole else 0.0
        whole.append(time_s if time_s == time_s else after_s)
    return rising(whole, step_s * _share(steps_s), max_pause_s)


def _share(steps_s: NDArray[np.float64]) -> float:
    """Steps that rise, of those that do not fall: pictures of one time share the step to the next."""
    is_rising, is_still = steps_s > 0, steps_s == 0
    if not is_rising.any():
        return 1.0
    # Behind the last ones there is no next.
    last = int(np.flatnonzero(is_rising)[-1])
    return float(is_rising.sum() / (is_rising.sum() + is_still[:last].sum()))


def rising(times_s: Sequence[float], step_s: float, max_pause_s: float = inf) -> list[float]:
    """The same times where they strictly rise, and what they most likely stand for where they do not.

    - A picture whose time lies ahead of the next, which goes on from the one before: it comes halfway between them.
    - A few pictures whose time is the same as, or before, that of the picture in front, and after which the clock goes
      on as before: their times are divided evenly over the interval.
    - A clock that falls back for good, or steps forward by more than `max_pause_s`: streams were joined. The first
      picture on the new clock comes `step_s` after the last on the old one, the others follow as that clock says.

    A step forward up to `max_pause_s` is kept: it cannot be told from a pause, which a recording of a screen may
    well have.
    """
    rising_s: list[float] = []
    shift_s = 0.0
    for number, time_s in enumerate(times_s):
        if number < len(rising_s):
            continue
        last_s = rising_s[-1] if rising_s else -inf
        if last_s < time_s + shift_s <= last_s + max_pause_s or not rising_s:
            rising_s.append(time_s + shift_s)
            continue
        before_s = rising_s[-2] if len(rising_s) > 1 else inf
        if 2 * MIN_STEP_S < time_s + shift_s - before_s <= OUTLIER_STEPS * step_s and time_s + shift_s < last_s:
            rising_s[-1:] = [(before_s + time_s + shift_s) / 2, time_s + shift_s]
            continue
        num_shared = _num_out_of_order(times_s[number : number + MAX_EQUAL], last_s - shift_s, step_s)
        end_s = times_s[number + num_shared] + shift_s
        if num_shared and MIN_STEP_S * (num_shared + 1) < end_s - last_s <= max_pause_s:
            rising_s += (last_s + (end_s - last_s) * k / (num_shared + 1) for k in range(1, num_shared + 1))
        else:
            shift_s = last_s + step_s - time_s
            rising_s.append(last_s + step_s)
    return rising_s


def _num_out_of_order(times_s: Sequence[float], last_s: float, step_s: float) -> int:
    """Pictures at the beginning that are no later than `last_s`, where one on the same clock follows; else 0."""
    for number, time_s in enumerate(times_s):
        if time_s > last_s:
            is_few = number == 1 or all(earlier_s == last_s for earlier_s in times_s[:number])
            to_old_clock_s = abs(time_s - (last_s + (number + 1) * step_s))
            to_new_clock_s = abs(time_s - (times_s[number - 1] + step_s))
            return number if is_few or to_old_clock_s < to_new_clock_s else 0
        if time_s < last_s and number >= MAX_DISORDER:
            return 0
    return 0


def _num_faults(times_s: Sequence[float]) -> int:
    steps_s = np.diff(times_s)
    return int(np.isnan(times_s).sum() + np.count_nonzero(steps_s <= 0))


def mean_rate(times_s: Sequence[float], frame_rate: float) -> float:
    """Pictures a second without the pauses, for times that rise; `frame_rate` where they tell nothing."""
    steps_s = np.diff(times_s)
    span_s = times_s[-1] - times_s[0]
    if not span_s > 0:
        return frame_rate
    is_pause = (steps_s > PAUSE_S) & (steps_s > PAUSE_STEPS * np.median(steps_s))
    if is_pause.any():
        return float((~is_pause).sum() / steps_s[~is_pause].sum())
    return (len(times_s) - 1) / span_s
