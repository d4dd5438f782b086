"""Read text files that people and other programs wrote: lists, tables, box files.

Windows and spreadsheet programs write byte order marks, UTF-16 and CRLF line ends; all of these are accepted. Bytes
that are not UTF-8 are kept as surrogate escapes (PEP 383), as Python keeps them in file names: a list that was made by
`ls` names its files even where their names are Latin-1.
"""

import codecs
import json
from pathlib import Path
from typing import Any

from mgm_shared.errors import UserError

# UTF-32's mark begins with UTF-16's, so it comes first.
BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF8, "utf-8-sig"),
)


def read_text(file: Path) -> str:
    """The file's text. UserError when it cannot be read or is not text."""
    try:
        content = file.read_bytes()
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    encoding = next((name for mark, name in BYTE_ORDER_MARKS if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding, "surrogateescape" if encoding.startswith("utf-8") else "strict")
    except UnicodeDecodeError:
        raise UserError(f"{file} begins as {encoding.upper()} text but is none; save it as UTF-8") from None
    if "\0" in text:
        raise UserError(f"{file} is not UTF-8 text, it has NUL bytes; save it as UTF-8")
    return text


def read_lines(file: Path) -> dict[int, str]:
    r"""Line number, from 1, → the line without its end. Blank lines are left out.

    A line ends at \n or \r\n, or at \r in a file without \n. Other separators, such as U+2028, belong to the line.
    UserError when the file cannot be read or is not text.
    """
    text = read_text(file)
    if "\n" not in text:
        text = text.replace("\r", "\n")
    lines = {number: line.removesuffix("\r") for number, line in enumerate(text.split("\n"), 1)}
    return {number: line for number, line in lines.items() if line.strip()}


def read_json(file: Path) -> Any:
    """The value that the file holds as JSON. UserError when it cannot be read or is not JSON."""
    try:
        return json.loads(read_text(file))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is not JSON: {error}") from None


def is_text(value: str) -> bool:
    """Whether `value` can be stored as UTF-8, that is, holds no surrogate escape."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
