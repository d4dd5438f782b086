"""The SLURM script, as far as it goes without SLURM: the job it submits, and a stand-in for sbatch that runs it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from synthetic import pan, write_video

from mgm_prep.config import ExtractSettings
from mgm_prep.extraction.extract import extract

SCRIPT = Path(__file__).parent.parent / "pipelines/slurm.py"
# The job script is a shell script, its #SBATCH lines comments; sbatch answers with the job's number.
SBATCH = """#!/bin/sh
cp "$1" "$JOBS/$$.sh"
sh "$JOBS/$$.sh" >"$JOBS/$$.out" 2>&1 &
echo $! >"$JOBS/$$.pid"
echo "Submitted batch job $$"
"""
SCANCEL = """#!/bin/sh
pkill -P $(cat "$JOBS/$1.pid") ; kill $(cat "$JOBS/$1.pid")
"""


def _run(*arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **variables}
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=180, check=False)


def test_the_job_script() -> None:
    options = ["--processes", 4, "--memory", "1500MB", "--minutes", 90, "--partition", "cpu", "--account", "me"]
    script = _run("-n", *options, "--sbatch=--qos=long", "--", "extract", "in", "out.store").stdout
    directives = {line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH")}
    assert directives >= {"-n 1", "--cpus-per-task=4", "--mem=6G", "-t 01:30:00", "-p cpu", "-A me", "--qos=long"}
    (worker,) = [line for line in script.splitlines() if "dask_worker" in line]
    assert worker.startswith(sys.executable)
    for option in ("--nthreads 1", "--nworkers 4", "--nanny", "--lifetime 5100s", "--lifetime-stagger 240s"):
        assert option in worker


def test_jobs_shorter_than_their_margin_are_refused() -> None:
    result = _run("-n", "--minutes", 5, "--", "extract", "in", "out.store")
    assert result.returncode == 1
    assert "--minutes 5 is too short" in result.stderr


@pytest.mark.slow
def test_the_whole_extraction_with_jobs_as_workers(tmp_path: Path) -> None:
    for name, text in {"sbatch": SBATCH, "scancel": SCANCEL}.items():
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "jobs").mkdir()
    (tmp_path / "in").mkdir()
    for number in range(6):
        write_video(tmp_path / f"in/{number}.mp4", pan((number, 1), num_frames=40, height=128, width=160))
    command = ["--jobs", 2, "--processes", 1, "--", "extract", tmp_path / "in", tmp_path / "out.store", "--json"]
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    result = _run(*command, PATH=path, JOBS=str(tmp_path / "jobs"))
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["done"] == 6
    assert "dask dashboard: http://" in result.stderr
    assert list((tmp_path / "jobs").glob("*.sh"))
    extract(tmp_path / "in", tmp_path / "here.store", ExtractSettings())
    for file in (tmp_path / "here.store").rglob("*"):
        if file.is_file():
            assert (
                tmp_path / "out.store" / file.relative_to(tmp_path / "here.store")
            ).read_bytes() == file.read_bytes()
