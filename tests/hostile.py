"""Files that try to make their reader open another file or a connection, and a watch that sees it when one does."""

import ctypes
import os
import struct
from pathlib import Path

HLS = "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{url}\n#EXT-X-ENDLIST\n"
CONCAT = "ffconcat version 1.0\nfile '{url}'\n"
IN_OPEN = 0x20


class OpenWatch:
    """Linux's inotify: whether anybody opened the file since the last call."""

    def __init__(self, path: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = libc.inotify_init1(os.O_NONBLOCK)
        assert libc.inotify_add_watch(self._descriptor, os.fsencode(path), IN_OPEN) > 0

    def was_opened(self) -> bool:
        try:
            return bool(os.read(self._descriptor, 4096))
        except BlockingIOError:
            return False


def _box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", 8 + len(content)) + kind + content


def with_data_reference(mp4: bytes, target: Path) -> bytes:
    """The MP4 with QuickTime's alias to `target` in its data reference: its samples are said to lie there."""
    name = os.fsencode(target)
    item = struct.pack(">HH", 2, len(name)) + name + b"\0" * (len(name) % 2)  # 2 = the absolute path
    alias = struct.pack(">I", 0) + b"\0" * 10 + b"\x04disk".ljust(28, b"\0") + b"\0" * 12 + b"\x01x".ljust(64, b"\0")
    alias += b"\0" * 16 + struct.pack(">hh", 1, 1) + b"\0" * 16 + item + struct.pack(">h", -1) + b"\0" * 2
    return _replaced(mp4, [b"moov", b"trak", b"mdia", b"minf", b"dinf", b"dref"], _box(b"alis", alias))


def _replaced(content: bytes, way: list[bytes], entry: bytes) -> bytes:
    """The only entry of the box at the end of the way replaced, and all sizes above it made right."""
    position = 0
    while content[position + 4 : position + 8] != way[0]:
        position += struct.unpack_from(">I", content, position)[0]
    (size,) = struct.unpack_from(">I", content, position)
    inner = content[position + 8 : position + size]
    inner = inner[:8] + entry if len(way) == 1 else _replaced(inner, way[1:], entry)
    return content[:position] + _box(way[0], inner) + content[position + size :]
