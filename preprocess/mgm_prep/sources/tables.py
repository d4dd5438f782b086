"""Split the lines of a list or table of videos into columns.

A line without a header can often be read in several ways: `a,b.mp4 7` is the path `a` with the label `b.mp4 7`, or the
path `a,b.mp4` with the label 7. All readings are returned, the most likely one first; `discover` takes the first that
names a file, `labels` the first that names a video of the store.

A line that begins with `#` is a comment unless one of its readings names a file or video: HMDB51 has videos such as
`#122_April_…avi`.
"""

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from mgm_prep.sources.names import IMAGE_SUFFIXES, SPLITS, VIDEO_SUFFIXES, has_media_suffix
from mgm_shared.errors import UserError
from mgm_shared.text_files import read_lines

# Column names as they occur, without case, spaces and punctuation; of several that occur the first counts.
NAME_COLUMNS = (
    "path filepath videopath file filename video videoid videoname vidname clip clipid clipname "
    "youtubeid youtubeidentifier image imagepath imagename name id".split()
)
LIST_COLUMNS = ("path", "label", "split")
COMMENT_SIGN = "#"
# A quoted value may hold line breaks; one that is not closed after so many lines is a quotation mark in a name.
MAX_QUOTED_LINES = 16

_SUFFIXES = "|".join(map(re.escape, sorted(VIDEO_SUFFIXES | IMAGE_SUFFIXES)))
AFTER_SUFFIX = re.compile(rf"(?<=\S)(?:{_SUFFIXES})(?=[\s,;])", re.IGNORECASE)
# Spaces of other alphabets may belong to a name.
ASCII_SPACE = " \t\r\n\v\f"
QUOTED_PATH = re.compile(r'"((?:[^"]|"")+)"\s+(.*)', re.DOTALL)
QUOTED_VALUE = re.compile(r'(^|[\t;,])\s*"(?:[^"]|"")*"(?=\s*(?:[\t;,]|$))')
OPENING_QUOTE = re.compile(r'(?:^|[\t;,])\s*"')
SEVERAL_NUMBERS = re.compile(r"-?\d+(\s+-?\d+)+")


@dataclass(frozen=True, kw_only=True)
class Line:
    """One entry of a list or table."""

    where: str
    """File and line number, for messages."""
    text: str
    readings: tuple[dict[str, str], ...]
    """Column name → value, the most likely reading first."""
    is_optional: bool
    """Whether it begins with `#`, and so is a comment unless it names a video."""


def read_table(file: Path) -> Iterator[Line]:
    """The lines of a delimited file with or without a header, or of a list that is split at white space.

    UserError for a line that fits neither the header nor `path,label,split`, and for a file that is not text.
    """
    texts = list(_logical_lines(read_lines(file)))
    entries = [(number, text) for number, text in texts if not _is_marked(text)]
    delimiter = _common_delimiter([text for _, text in entries])
    header = [column_name(cell) for cell in _cells(entries[0][1], delimiter)] if entries else []
    if not set(header) & set(NAME_COLUMNS):
        header = []
    for number, text in texts:
        if header and number == entries[0][0]:
            continue
        where = f"{file}, line {number}"
        found = _under_header(text, delimiter, header, where) if header else _without_header(text, delimiter, where)
        yield Line(where=where, text=text, readings=found, is_optional=_is_marked(text))


def header_columns(file: Path) -> list[str]:
    """The columns of a table with a header, as `column_name` writes them; empty for a file without one."""
    first = next((text for text in read_lines(file).values() if not _is_marked(text)), "")
    for delimiter in "\t;,":
        columns = [column_name(cell) for cell in _delimited(first.strip(ASCII_SPACE), delimiter)]
        if len(columns) > 1 and set(columns) & set(NAME_COLUMNS):
            return columns
    return []


@cache
def column_name(name: str) -> str:
    """The name in lower case, without spaces and punctuation."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _is_marked(text: str) -> bool:
    return text.lstrip(ASCII_SPACE).startswith(COMMENT_SIGN)


def _under_header(text: str, delimiter: str | None, header: list[str], where: str) -> tuple[dict[str, str], ...]:
    cells = _cells(text, delimiter)
    if len(cells) == len(header):
        return (dict(zip(header, cells, strict=True)),)
    if _is_marked(text):
        return ({"path": text.strip(ASCII_SPACE)},)
    raise UserError(f"{where}: {len(cells)} values under a header of {len(header)}")


def _without_header(text: str, delimiter: str | None, where: str) -> tuple[dict[str, str], ...]:
    """The readings of a line as path, label and split. UserError when none of them makes sense."""
    likely, *others = _readings(text, delimiter)
    good = [likely] if _is_good(likely) else []
    good += [cells for cells in others if _is_good(cells) and has_media_suffix(cells[0])]
    if not good and _is_marked(text):
        good = [[text.strip(ASCII_SPACE)]]
    if good:
        return tuple(dict(zip(LIST_COLUMNS, cells, strict=False)) for cells in _distinct(good))
    if len(likely) > 1 and SEVERAL_NUMBERS.fullmatch(likely[1]):
        raise UserError(f"{where}: want `path label`, and several numbers follow the path")
    raise UserError(f"{where}: want `path,label,split` with split train, val or test")


def _distinct(rows: list[list[str]]) -> list[list[str]]:
    return [cells for number, cells in enumerate(rows) if cells not in rows[:number]]


def _readings(text: str, delimiter: str | None) -> Iterator[list[str]]:
    """Cells of the line, the most likely reading first; those with white space at an end of the path come last."""
    line = text.strip(ASCII_SPACE)
    delimiter = delimiter or ("," if "," in line else None)
    if delimiter:
        yield _delimited(line, delimiter)
        yield [cell.strip(ASCII_SPACE) for cell in line.split(delimiter)]
    yield _path_and_label(line)
    yield from _paths_at_suffixes(line)
    yield [line]
    if text != line:
        yield from _paths_at_suffixes(text.rstrip(ASCII_SPACE))
        yield [text.rstrip(ASCII_SPACE)]


def _is_good(cells: list[str]) -> bool:
    """Whether the cells can be a path, a label and a split."""
    is_split = len(cells) < 3 or (len(cells) == 3 and cells[2].lower() in ("", *SPLITS))
    return is_split and not (len(cells) > 1 and SEVERAL_NUMBERS.fullmatch(cells[1]))


def _common_delimiter(lines: list[str]) -> str | None:
    """The delimiter that divides each line into the same number of values, more than one."""
    for delimiter in "\t;,":
        if any(delimiter not in line for line in lines):
            continue
        widths = {len(_delimited(line, delimiter)) for line in lines}
        if len(widths) == 1 and widths != {1}:
            return delimiter
    return None


def _cells(line: str, delimiter: str | None) -> list[str]:
    return next(_readings(line, delimiter))


def _delimited(line: str, delimiter: str) -> list[str]:
    try:
        (row,) = csv.reader([line], delimiter=delimiter, skipinitialspace=True)
    except csv.Error:
        # A value of more than 128 KiB.
        row = line.split(delimiter)
    return [cell.strip(ASCII_SPACE) for cell in row]


def _path_and_label(line: str) -> list[str]:
    """`a b.mp4 7` is the path `a b.mp4` and label 7: a path may hold spaces, and so may a label."""
    if quoted := QUOTED_PATH.fullmatch(line):
        return [quoted[1].replace('""', '"'), quoted[2].strip(ASCII_SPACE)]
    ends = [match.end() for match in AFTER_SUFFIX.finditer(line) if line[match.end()].isspace()]
    if ends:
        return [line[: ends[-1]], line[ends[-1] :].strip(ASCII_SPACE)]
    return [line] if has_media_suffix(line) else line.split(maxsplit=1)


def _paths_at_suffixes(line: str) -> Iterator[list[str]]:
    """The line as a path up to a media suffix, and what a delimiter divides behind it; the longest path first."""
    for end in reversed([match.end() for match in AFTER_SUFFIX.finditer(line)]):
        path, delimiter, rest = line[:end], line[end], line[end + 1 :].strip(ASCII_SPACE)
        yield [path, *([rest] if delimiter.isspace() else _delimited(rest, delimiter))]


def _logical_lines(text_of_line: dict[int, str]) -> Iterator[tuple[int, str]]:
    """The lines, those joined that a quoted value spans."""
    numbers = list(text_of_line)
    index = 0
    while index < len(numbers):
        number = numbers[index]
        num_joined = _num_joined([text_of_line[n] for n in numbers[index : index + MAX_QUOTED_LINES]])
        yield number, "\n".join(text_of_line[n] for n in numbers[index : index + num_joined])
        index += num_joined


def _num_joined(lines: list[str]) -> int:
    """How many of the lines make one, because a quoted value goes on over their ends; 1 when none does."""
    if '"' not in lines[0] or not _is_open(lines[0]):
        return 1
    joined = lines[0]
    for count, line in enumerate(lines[1:], 2):
        joined += f"\n{line}"
        if not _is_open(joined):
            return count
    return 1


def _is_open(text: str) -> bool:
    """Whether a value begins with a quotation mark that is not closed."""
    return bool(OPENING_QUOTE.search(QUOTED_VALUE.sub(r"\1", text)))
