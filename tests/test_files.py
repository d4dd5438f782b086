"""A file is whole or not there, and a full disk is said to be one, whoever writes."""

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from mgm_shared.files import append_line, content_digest, os_error_in, replace_file, replace_text


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    replace_file(path, lambda beside: beside.write_text("old"))

    def fail(beside: Path) -> None:
        beside.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        replace_file(path, fail)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


class _RustError(Exception):
    pass


def _rust(path: Path) -> None:
    raise _RustError("Error while serializing: I/O error: No space left on device (os error 28)")


def _wrapped(path: Path) -> None:
    try:
        raise OSError(errno.ENOSPC, "No space left on device")
    except OSError:
        raise RuntimeError("unexpected pos 2401024 vs 2400976")  # noqa: B904


@pytest.mark.parametrize("write", [_rust, _wrapped])
def test_a_full_disk_that_a_library_hides_is_an_os_error_of_the_file(tmp_path: Path, write: object) -> None:
    with pytest.raises(OSError, match="No space left on device") as caught:
        replace_file(tmp_path / "file", write)  # type: ignore[arg-type]
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path / "file"))


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    def fail(beside: Path) -> None:
        raise ValueError("no such format")

    with pytest.raises(ValueError, match="no such format"):
        replace_file(tmp_path / "file", fail)
    assert os_error_in(ValueError("a text (28)")) is None


def test_a_line_is_added_whole_or_not_at_all(tmp_path: Path) -> None:
    """The second line reaches the limit of the size of a file in its middle, as it would fill a disk."""
    script = """if True:
        import resource, sys
        from pathlib import Path
        from mgm_shared.files import append_line
        path = Path(sys.argv[1])
        append_line(path, "\\u00fc" * 1000)
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
        try:
            append_line(path, "b" * 2000)
        except OSError as error:
            print(error.errno, error.filename)
    """
    path = tmp_path / "lines"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "LC_ALL": "C", "PYTHONUTF8": "0"}
    said = subprocess.run(
        [sys.executable, "-c", script, str(path)], env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert said == f"{errno.EFBIG} {path}\n"
    assert path.read_text(encoding="utf-8") == "ü" * 1000 + "\n"
    append_line(path, "c")
    assert path.read_text(encoding="utf-8").splitlines()[1:] == ["c"]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


def test_texts_are_utf_8(tmp_path: Path) -> None:
    replace_text(tmp_path / "file", "höher\n")
    assert (tmp_path / "file").read_bytes() == b"h\xc3\xb6her\n"


def test_a_digest_is_of_names_and_contents(tmp_path: Path) -> None:
    folder = tmp_path / "boxes"
    (folder / "sub").mkdir(parents=True)
    (folder / "a").write_text("1")
    (folder / "sub" / "b").write_text("2")
    before = content_digest(folder)
    assert content_digest(tmp_path / "." / "boxes") == before
    assert content_digest(folder / "a") == "6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b", (
        "sha256sum"
    )
    (folder / "a").rename(folder / "c")
    assert content_digest(folder) != before
    (folder / "c").rename(folder / "a")
    assert content_digest(folder) == before
    (folder / "sub" / "b").write_text("3")
    assert content_digest(folder) != before
