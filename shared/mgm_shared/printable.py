"""Text for a terminal: file names may hold line breaks, control characters, and bytes that are not text."""


def one_line(text: str) -> str:
    r"""The text with escapes such as `\n` and `\x1b` for all characters that cannot be printed in a line.

    A surrogate escape, which stands for a byte that is not UTF-8, becomes `\xNN`.
    """
    return text if text.isprintable() else "".join(map(_printable, text))


def _printable(character: str) -> str:
    if character.isprintable():
        return character
    if 0xDC80 <= ord(character) <= 0xDCFF:
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()
