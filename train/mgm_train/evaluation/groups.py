"""Groups of videos that were cut from the same recording, found by their names.

UCF101's 25 groups a class and HMDB51's clips of one film share actors, background and camera. A classifier that has
seen one of them knows the others, so they belong on the same side of a hold-out, as in the official splits.
"""

import re
from collections.abc import Iterable, Sequence

from mgm_shared.errors import UserError

AUTO, NONE = "auto", "none"

# The group is what the parentheses match; a folder in front and suffixes do not matter.
KNOWN_PATTERNS = {
    # v_HandStandPushups_g01_c04.avi: class, group, clip.
    "UCF101": r"(?:^|/)(v_[^/]+_g\d+)_c\d+(?:\.\w+)*$",
    # April_09_brush_hair_u_nm_np1_ba_goo_0.avi: source, class, then body parts, camera motion, number of people,
    # viewpoint, quality, and the number of the clip.
    "HMDB51": r"(?:^|/)([^/]+)_[fhlu]_[cn]m_np\d_(?:ba|fr|le|ri)_(?:bad|goo|med)_\d+(?:\.\w+)*$",
}


def video_groups(video_ids: Sequence[str], pattern: str = AUTO) -> list[str]:
    """The group of each video.

    Args:
        video_ids: Names of the videos, with folders.
        pattern: `auto`: the names of UCF101 and HMDB51; `none`: no groups; otherwise a regular expression, whose first
            pair of parentheses, or without one its whole match, is the name of the group.

    Returns:
        A name for each video. A video whose name does not match is a group of its own.

    Raises:
        UserError: A regular expression matches no name.
    """
    if pattern == NONE:
        return list(video_ids)
    expressions = list(KNOWN_PATTERNS.values()) if pattern == AUTO else [pattern]
    found = [_first_match(expressions, video_id) for video_id in video_ids]
    if pattern != AUTO and video_ids and not any(found):
        raise UserError(f"group-pattern {pattern!r} matches no training video, such as {video_ids[0]!r}")
    return [group or video_id for group, video_id in zip(found, video_ids, strict=True)]


def recordings_of(sample_ids: Sequence[str], video_ids: Sequence[str], pattern: str) -> Sequence[str]:
    """The names to group samples by: those of their videos, or with the pattern `none` their own.

    Segments of one video share its recording. `video_ids` is empty where the samples are whole videos.
    """
    return sample_ids if pattern == NONE or not video_ids else video_ids


def _first_match(expressions: Iterable[str], video_id: str) -> str:
    """What the first expression that matches says; empty when none does."""
    match = next(filter(None, (re.search(expression, video_id) for expression in expressions)), None)
    if match is None:
        return ""
    return (match[1] if match.re.groups else match[0]) or ""
