"""Class lists: files that give the name of each class number.

UCF101's classInd.txt has a number and a name on each line; Something-Something's labels.json maps names to numbers;
Diving48's vocabulary is a JSON list of names, numbered from 0.
"""

import re
from pathlib import Path
from typing import Any

from mgm_shared.errors import UserError
from mgm_shared.text_files import is_text, read_lines

CLASS_LIST_NAME = re.compile(r"class_?(es|ind|ids|index|list|names)", re.IGNORECASE)


def read_class_list(file: Path) -> dict[str, str] | None:
    """Number → name of a text file; None when its name is not that of a class list. UserError for any other line."""
    if not CLASS_LIST_NAME.match(file.name):
        return None
    pairs = [line.split(maxsplit=1) for line in read_lines(file).values()]
    if all(len(pair) == 2 and pair[0].isdigit() and is_text(pair[1]) for pair in pairs):
        return {number: name.strip() for number, name in pairs}
    raise UserError(f"{file}: want a number and a class name on each line, as UTF-8 text")


def parse_class_list(content: Any) -> dict[str, str] | None:
    """Number → name of JSON: an object of names to numbers, or a list of names. None when it is neither."""
    if isinstance(content, dict) and content and all(str(number).isdigit() for number in content.values()):
        return {str(number): name for name, number in content.items()}
    if isinstance(content, list) and content and all(isinstance(entry, str | list) for entry in content):
        names = [entry if isinstance(entry, str) else " ".join(map(str, entry)) for entry in content]
        return {str(number): name for number, name in enumerate(names)}
    return None
