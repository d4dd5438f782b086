"""Names of files as one line of a terminal, whatever bytes they have."""

import os

import pytest

from mgm_shared.printable import one_line


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (b"plain name, 1.mp4", "plain name, 1.mp4"),
        ("größe 影 🎬.mp4".encode(), "größe 影 🎬.mp4"),
        (b"two\nlines\r.mp4", r"two\nlines\r.mp4"),
        (b"\x1b[2J\x07.mp4", r"\x1b[2J\x07.mp4"),
        (b"caf\xe9.mp4", r"caf\xe9.mp4"),
        ("a\u2028b\u202ec".encode(), r"a\u2028b\u202ec"),
    ],
)
def test_a_name_is_one_line(name: bytes, shown: str) -> None:
    assert one_line(os.fsdecode(name)) == shown
    shown.encode()
