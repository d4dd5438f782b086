"""Files behind a URL, against moto's S3 server over HTTP, and what is said when there is trouble."""

import os
import pickle
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mgm_shared import objects, storage
from mgm_shared.errors import UserError
from mgm_shared.objects import Url
from mgm_shared.store import Store
from mgm_shared.store_files import ByteRange


def test_a_url_is_told_from_a_path() -> None:
    assert storage.store_path("s3://bucket/a.store/") == Url("s3://bucket/a.store")
    assert storage.store_path("a.store") == storage.store_path(Path("a.store")) == Path("a.store")
    url = Url("s3://bucket/a.store") / "parts" / "8x8-000000"
    assert str(url) == "s3://bucket/a.store/parts/8x8-000000"
    assert url.name == "8x8-000000"
    assert storage.store_path(url) == url
    assert pickle.loads(pickle.dumps(url)) == url


@pytest.mark.parametrize("kind", ["local", "s3"])
def test_files_are_written_listed_read_and_removed(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    root = tmp_path / "root" if kind == "local" else request.getfixturevalue("bucket") / "root"
    assert storage.folder_names(root) == []
    assert storage.file_sizes(root) == {}
    storage.remove(root)
    if kind == "local":
        (root / "b/c").mkdir(parents=True)
    storage.write_bytes(root / "a", b"old")
    storage.write_bytes(root / "a", b"new!")
    storage.write_bytes(root / "b/c/d", b"")
    storage.write_bytes(root / "ab", b"a stays when a goes")
    assert storage.file_sizes(root) == {"a": 4, "ab": 19, "b/c/d": 0}
    assert (storage.folder_names(root), storage.file_names(root)) == (["b"], ["a", "ab"])
    assert storage.read_files([root / "b/c/d", root / "a"]) == [b"", b"new!"]
    assert storage.read_bytes(root / "a") == b"new!"
    assert [storage.is_file(root / name) for name in ("a", "b", "b/c/d", "e")] == [True, False, True, False]
    with pytest.raises(FileNotFoundError):
        storage.read_files([root / "a", root / "e"])
    with pytest.raises(FileNotFoundError):
        storage.read_tail(str(root / "e"), 3)
    assert storage.read_tail(str(root / "a"), 2) == b"w!"
    assert storage.read_tail(str(root / "a"), 9) == b"new!"
    storage.remove(root / "a")
    assert storage.file_sizes(root) == {"ab": 19, "b/c/d": 0}
    storage.remove(root)
    assert storage.file_sizes(root) == {}


@pytest.mark.parametrize("kind", ["local", "s3"])
def test_any_ranges_are_those_bytes(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests are merged and split, so small limits make every case of it happen."""
    monkeypatch.setattr(objects, "MAX_GAP_BYTES", 30)
    monkeypatch.setattr(objects, "MAX_REQUEST_BYTES", 200)
    root = tmp_path if kind == "local" else request.getfixturevalue("bucket")
    rng = np.random.default_rng(0)
    contents = [rng.integers(0, 256, 1000, np.uint8).tobytes() for _ in range(2)]
    for number, content in enumerate(contents):
        storage.write_bytes(root / f"{number}", content)
    drawn = rng.integers((0, 0, 0), (2, 1000, 260), (60, 3)).tolist()
    cases = [*sorted(drawn), *drawn, (0, 5, 10), (0, 5, 3), (0, 5, 10), (1, 2000, 5), (1, 990, 20)]
    ranges = [ByteRange(str(root / f"{number}"), offset, length) for number, offset, length in cases]
    expected = [contents[number][offset : offset + length] for number, offset, length in cases]
    assert list(storage.read_ranges(ranges)) == expected
    with pytest.raises(FileNotFoundError):
        list(storage.read_ranges([ranges[0], ByteRange(str(root / "missing"), 0, 5)]))
    assert list(storage.read_ranges([])) == []


def test_what_another_process_wrote_is_listed(bucket: Url, s3_server: str) -> None:
    storage.write_bytes(bucket / "parts/a/x", b"")
    assert storage.folder_names(bucket / "parts") == ["a"]
    address = f"{s3_server}/{bucket.name}/parts/b/x"
    urllib.request.urlopen(urllib.request.Request(address, b"1", method="PUT")).close()
    assert storage.folder_names(bucket / "parts") == ["a", "b"]
    assert set(storage.file_sizes(bucket)) == {"parts/a/x", "parts/b/x"}


def test_neighbours_come_with_one_request(bucket: Url, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = []

    def fetch(ranges: Any) -> list[bytes]:
        fetched.extend(ranges)
        return [bytes(r.length) for r in ranges]

    monkeypatch.setattr(objects, "_fetch", fetch)
    frames = [ByteRange("s3://b/x", 80_000 * k, 20_000) for k in range(16)]
    list(objects.fetch_ranges(frames))
    assert fetched == [ByteRange("s3://b/x", 0, 80_000 * 15 + 20_000)]


def test_one_of_two_creators_succeeds(bucket: Url) -> None:
    objects.create(bucket / "lock", b"first")
    with pytest.raises(FileExistsError):
        objects.create(bucket / "lock", b"second")
    assert storage.read_bytes(bucket / "lock") == b"first"


def _group(folder: Path, names: list[str]) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def test_an_upload_leaves_exactly_the_folder_s_files(bucket: Url, tmp_path: Path) -> None:
    folder = _group(tmp_path / "whole", ["zarr.json", "frames/zarr.json", "frames/c.0", "time/c.0"])
    objects.put(bucket / "part/frames/c.1", b"of an upload that was stopped")
    storage.publish(folder, bucket / "part")
    assert set(storage.file_sizes(bucket / "part")) == {"zarr.json", "frames/zarr.json", "frames/c.0", "time/c.0"}
    storage.publish(_group(tmp_path / "other", ["zarr.json", "other"]), bucket / "part")
    assert "other" not in storage.file_sizes(bucket / "part")


def test_an_upload_that_fails_is_no_group(bucket: Url, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever request it is that fails, the group's own metadata is not there."""
    import s3fs

    folder = _group(tmp_path / "whole", ["zarr.json", "frames/zarr.json", "frames/c.0", "time/c.0"])
    call = s3fs.S3FileSystem._call_s3
    for failing in ("frames/zarr.json", "frames/c.0", "time/c.0", "part/zarr.json"):

        async def fails(self: Any, method: str, *arguments: Any, failing: str = failing, **options: Any) -> Any:
            if method == "put_object" and options["Key"].endswith(failing):
                raise OSError("the network is gone")
            return await call(self, method, *arguments, **options)

        monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", fails)
        with pytest.raises(UserError, match="cannot be reached: the network is gone"):
            storage.publish(folder, bucket / "part")
        assert "zarr.json" not in storage.file_sizes(bucket / "part")
    monkeypatch.undo()


def test_a_scratch_folder_is_local_and_gone_afterwards(bucket: Url, tmp_path: Path) -> None:
    for beside in (tmp_path / "a/b", bucket / "a/b"):
        with storage.scratch_folder(beside) as folder:
            (folder / "x").write_text("x")
        assert not folder.exists()
    assert storage.file_sizes(bucket) == {}


def test_trouble_is_one_line(bucket: Url) -> None:
    with pytest.raises(UserError, match=r"^s3://no-such-bucket/x cannot be written: .*bucket does not exist"):
        storage.write_bytes(Url("s3://no-such-bucket/x"), b"")
    with pytest.raises(UserError, match="is no address that fsspec knows: Protocol not known: nonsense"):
        storage.read_bytes(Url("nonsense://x"))


@pytest.mark.parametrize(
    ("environment", "before", "message"),
    [
        ({"AWS_ACCESS_KEY_ID": "", "AWS_EC2_METADATA_DISABLED": "true"}, "", "Unable to locate credentials"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_MAX_ATTEMPTS": "1"}, "", "Could not connect to the endpoint"),
        ({}, "import sys; sys.modules['s3fs'] = None; ", "needs more than is installed; pip install '.[s3]'"),
    ],
)
def test_a_store_that_cannot_be_reached(bucket: Url, environment: Any, before: str, message: str) -> None:
    """In a process of its own, since this one has its connection already."""
    code = f"{before}from mgm_shared.storage import *; read_bytes(store_path('{bucket}/x'))"

    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "HOME": "/nonexistent", **environment}
    variables = {name: value for name, value in variables.items() if value}
    ran = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True)
    last = ran.stderr.splitlines()[-1]
    assert last.startswith(f"mgm_shared.errors.UserError: {bucket}/x ")
    assert message in last


def test_a_local_store_imports_nothing_for_the_other_kind(pan_store: Store) -> None:
    code = (
        f"import sys, mgm_shared; store = mgm_shared.open_store({str(pan_store.path)!r});"
        "video = store['test/up/0.mp4']; video.frames[::4]; video.motion[:];"
        "print(sorted({'s3fs', 'aiohttp', 'botocore'} & set(sys.modules)))"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"
