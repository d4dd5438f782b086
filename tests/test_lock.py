"""A store has one writer; one that died is told from one that lives."""

import json
import threading
import time
from pathlib import Path

import pytest
from recording import Recording

from mgm_prep.runtime import lock
from mgm_prep.runtime.lock import locked
from mgm_shared import objects, storage
from mgm_shared.errors import UserError
from mgm_shared.lock import LOCK_FILE
from mgm_shared.objects import Url


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path | Url:
    monkeypatch.setattr(lock, "BEAT_S", 0.1)
    return tmp_path if request.param == "local" else request.getfixturevalue("bucket") / "a.store"


def test_a_second_writer_is_refused_until_the_first_has_ended(store: Path | Url) -> None:
    for _ in range(2):
        with locked(store) as check_lock:
            with (
                pytest.raises(UserError, match=r"another command .*is writing to .*; wait for it, or stop it"),
                locked(store),
            ):
                raise AssertionError
            check_lock()
        assert storage.file_sizes(store) == {}


def test_a_lock_is_given_free_after_an_error(store: Path | Url) -> None:
    with pytest.raises(RuntimeError), locked(store):
        raise RuntimeError
    with locked(store):
        pass


@pytest.fixture
def remote(bucket: Url, monkeypatch: pytest.MonkeyPatch) -> Url:
    monkeypatch.setattr(lock, "BEAT_S", 0.1)
    return bucket / "a.store"


def test_a_lock_that_nobody_rewrites_is_taken(remote: Url) -> None:
    objects.put(remote / LOCK_FILE, json.dumps({"token": "x", "beat": 3, "owner": "process 7 on node4"}).encode())
    progress = Recording()
    with locked(remote, progress) as check_lock:
        time.sleep(0.3)
        check_lock()
    (line,) = progress.lines
    assert "belongs to process 7 on node4; waiting 1 s to see whether it is alive" in line
    assert storage.file_sizes(remote) == {}


def test_a_lock_that_ends_while_one_waits_is_taken_at_once(remote: Url, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "SILENT_BEATS", 1000)
    objects.put(remote / LOCK_FILE, b'{"token": "x"}')
    ending = threading.Timer(0.3, objects.delete, [remote / LOCK_FILE])
    ending.start()
    with locked(remote):
        pass
    ending.join()


def test_who_was_cut_off_and_replaced_stops(remote: Url) -> None:
    other = b'{"token": "of the other"}'
    with locked(remote) as check_lock:
        objects.put(remote / LOCK_FILE, other)
        time.sleep(0.5)
        with pytest.raises(UserError, match=r"has locked .*; run this one again when that is done"):
            check_lock()
    assert storage.read_bytes(remote / LOCK_FILE) == other


def test_a_network_that_is_away_for_a_while_costs_nothing(remote: Url, monkeypatch: pytest.MonkeyPatch) -> None:
    with locked(remote) as check_lock:
        with monkeypatch.context() as patched:
            patched.setattr(objects, "_fetch", lambda ranges: (_ for _ in ()).throw(UserError("away")))
            time.sleep(0.3)
        time.sleep(0.2)
        check_lock()
