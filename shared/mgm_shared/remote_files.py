"""The files of a store behind a URL such as s3://bucket/ssv2.store, by way of fsspec."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from mgm_shared import objects
from mgm_shared.objects import Url
from mgm_shared.store_files import METADATA_FILE, ByteRange


class RemoteFiles:
    """`StoreFiles` on an object store. See there what each method does."""

    def read_ranges(self, ranges: Sequence[ByteRange]) -> Iterator[bytes]:
        return objects.fetch_ranges(ranges)

    def read_tail(self, path: str, length: int) -> bytes:
        return objects.fetch_tail(path, length)

    def read_files(self, paths: Sequence[Url]) -> list[bytes]:
        return objects.fetch_files(paths)

    def write_bytes(self, path: Url, content: bytes) -> None:
        objects.put(path, content)

    def is_file(self, path: Url) -> bool:
        return objects.is_file(path)

    def names(self, path: Url, kind: Literal["directory", "file"]) -> list[str]:
        return objects.names(path, kind)

    def group_names(self, path: Url) -> list[str]:
        """A folder without metadata of its own is an upload that has not ended, or never will."""
        found = (name.split("/") for name in objects.file_sizes(path))
        return sorted(name for name, *rest in found if rest == [METADATA_FILE])

    def version(self, path: Url) -> int:
        """0: asking would double the requests of a clip."""
        return 0

    def file_sizes(self, path: Url) -> dict[str, int]:
        return objects.file_sizes(path)

    def remove(self, path: Url) -> None:
        objects.delete(path)

    @contextmanager
    def scratch_folder(self, beside: Url) -> Iterator[Path]:
        """A temporary folder of this machine (TMPDIR)."""
        with tempfile.TemporaryDirectory(prefix="mgm-") as folder:
            yield Path(folder)

    def publish(self, folder: Path, place: Url) -> None:
        """Upload the group's own metadata last: without it a group is not there.

        The next upload overwrites what an upload that was stopped has left.
        """
        if not objects.is_file(place / METADATA_FILE):
            objects.upload(folder, place, last=METADATA_FILE)

    def withdraw(self, place: Url, aside: Url) -> None:
        self.remove(place / METADATA_FILE)
        self.remove(place)
