r"""File names as text: which names are videos, which folders are splits, and how a name becomes a video id.

A POSIX file name is bytes; ids are stored in JSON and Parquet, which hold Unicode text. So a byte that is not UTF-8 is
written as `\xNN` in the id: `caf<E9>.mp4` has the id `caf\xe9.mp4`.
"""

import os
import re
from collections.abc import Iterable
from pathlib import PurePosixPath
from posixpath import splitext

# Names of what FFmpeg's allowed demuxers (decoding/formats.py) read. Other files are counted and named, never opened.
VIDEO_SUFFIXES = frozenset(
    ".3g2 .3gp .asf .avi .dav .divx .dv .f4v .flv .h264 .h265 .hevc .ivf .m1v .m2ts .m2v .m4v .mkv .mov .mp4 .mpeg "
    ".mpg .mts .mxf .nut .ogm .ogv .pmp .rm .rmvb .ts .vob .webm .wmv .xmv".split()
)
# Names of image files, which `--images` takes. What a file holds decides how it is read.
IMAGE_SUFFIXES = frozenset(".gif .jfif .jpe .jpeg .jpg .png .webp".split())
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validate", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
NEEDS_NORMALIZING = re.compile(r"//|(?:^|/)\.(?:/|$)|./$")
ESCAPED_BYTE = re.compile(r"\\x([89a-f][0-9a-f])")


def has_video_suffix(name: str) -> bool:
    """Whether the name ends in a suffix of a video file, in any case."""
    return splitext(name)[1].lower() in VIDEO_SUFFIXES


def has_image_suffix(name: str) -> bool:
    """Whether the name ends in a suffix of an image file, in any case."""
    return splitext(name)[1].lower() in IMAGE_SUFFIXES


def has_media_suffix(name: str) -> bool:
    """Whether the name ends in a suffix of a video or image file, in any case."""
    return has_video_suffix(name) or has_image_suffix(name)


def without_media_suffix(name: str) -> str:
    """The name without the suffix of a video or image file."""
    return splitext(name)[0] if has_media_suffix(name) else name


def normalized(name: str) -> str:
    """The path without `.`, doubled and final slashes, so that one file has one path. `..` stays."""
    # Lists have hundreds of thousands of paths, and pathlib is slow.
    return str(PurePosixPath(name)) if NEEDS_NORMALIZING.search(name) else name


def split_of(name: str) -> str | None:
    """The split that the first folder of a path stands for; None when it is not a split's name."""
    first, separator, _ = normalized(name).partition("/")
    return SPLITS.get(first.lower()) if separator else None


def text_of(name: str) -> str:
    r"""The name as Unicode text: bytes that are not UTF-8 become `\xNN`. A name that is text stays as it is."""
    try:
        content = name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        # Other surrogates, which JSON can hold and a file name cannot.
        content = name.encode("utf-8", "backslashreplace")
    return content.decode("utf-8", "backslashreplace")


def bytes_name(name: str) -> str:
    r"""The file name that `text_of` wrote as `name`, with surrogate escapes in place of `\xNN`."""
    return ESCAPED_BYTE.sub(lambda match: chr(0xDC00 + int(match[1], 16)), name) if "\\x" in name else name


def unique_ids(names: Iterable[str]) -> dict[str, str]:
    r"""Each name's id: its `text_of`, or where another file has that very name, the same with a second backslash."""
    ordered = sorted(names, key=os.fsencode)
    ids = {name: name for name in ordered if text_of(name) == name}
    taken = set(ids)
    for name in ordered:
        if name not in ids:
            video_id = text_of(name)
            while video_id in taken:
                video_id = video_id.replace("\\x", "\\\\x", 1)
            ids[name] = video_id
            taken.add(video_id)
    return ids
