"""Safetensors files whose damage is noticed, and whose bytes depend on nothing but their content.

The format has no checksum, and the library writes the texts of the metadata in a random order. So after the library
has written a file, the texts are sorted, and `mgm_sha256` among them becomes the SHA-256 of the whole file, with zeros
in the place of the digest itself. Any reader of safetensors reads such a file.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mgm_shared.errors import UserError
from mgm_shared.files import replace_file

DIGEST_KEY = "mgm_sha256"
# Says that there must be a digest: without it the file is one of an earlier version, which had none.
FORMAT_KEY, FORMAT = "mgm_format", "2"
_NO_DIGEST = "0" * 64
# The header starts after its length, eight bytes, little-endian.
_LENGTH_BYTES = 8
_CHUNK_BYTES = 2**20


@dataclass(frozen=True, kw_only=True)
class TensorFile:
    """What a file holds, on the CPU."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors and texts; the file is whole or not there. OSError when the disk is full."""
    kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    texts = {"format": "pt", **metadata, FORMAT_KEY: FORMAT, DIGEST_KEY: _NO_DIGEST}

    def write(beside: Path) -> None:
        save_file(kept, beside, metadata=texts)
        with beside.open("r+b") as file:
            _sign(file)

    replace_file(path, write)


def load_tensors(path: Path) -> TensorFile:
    """Read what `save_tensors` wrote. UserError when it is no such file, or damaged."""
    try:
        with path.open("rb") as file:
            _verify(path, file)
        with safe_open(path, framework="pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            return TensorFile(tensors=tensors, metadata=opened.metadata() or {})
    except SafetensorError as error:
        raise UserError(f"{path} is no safetensors file, or only a part of one") from error


def _sign(file: BinaryIO) -> None:
    """Sort the texts and put the digest in."""
    length = file.read(_LENGTH_BYTES)
    num_bytes = int.from_bytes(length, "little")
    header = json.loads(file.read(num_bytes))
    header = {"__metadata__": dict(sorted(header.pop("__metadata__").items())), **dict(sorted(header.items()))}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(num_bytes)
    if len(text) != num_bytes:
        raise ValueError(f"the header of a safetensors file has {num_bytes} bytes, but {len(text)} when it is sorted")
    digest = _digest(length + text, file)
    file.seek(_LENGTH_BYTES)
    file.write(text.replace(_NO_DIGEST.encode(), digest.encode(), 1))


def _verify(path: Path, file: BinaryIO) -> None:
    """UserError unless the digest is right, or the file is of an earlier version."""
    length = file.read(_LENGTH_BYTES)
    # A length that is nonsense is refused by the library.
    text = file.read(min(int.from_bytes(length, "little"), path.stat().st_size))
    found = re.search(rf'"{DIGEST_KEY}":"([0-9a-f]{{64}})"'.encode(), text)
    if found is None:
        if f'"{FORMAT_KEY}":"{FORMAT}"'.encode() in text:
            raise _damaged(path)
        return
    if _digest(length + text.replace(found[1], _NO_DIGEST.encode(), 1), file) != found[1].decode():
        raise _damaged(path)


def _digest(start: bytes, rest: BinaryIO) -> str:
    running = hashlib.sha256(start)
    while chunk := rest.read(_CHUNK_BYTES):
        running.update(chunk)
    return running.hexdigest()


def _damaged(path: Path) -> UserError:
    return UserError(f"{path} is damaged: its content does not match its checksum")
