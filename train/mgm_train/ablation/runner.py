"""Run an ablation: each run is pretrained, fine-tuned and tested by the same commands that a user would call.

    OUT/<run>/pretrain.yaml, finetune.yaml, evaluate.yaml   configuration of each stage; probe.yaml where asked
    OUT/<run>/pretrain/, finetune/, probe/                  its run folder
    OUT/<run>/pretrain.json, …                              record of a finished stage, which is not run again
    OUT/results.md, results.json, results.png               the tables (see results.py)

Runs that differ in fine-tuning only share a pretraining. Each stage is a subprocess: if one crashes or runs out of
memory, its row shows the reason and the other runs continue. With several GPUs, all of them work on one run at a time.
"""

import json
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from mgm_shared.cli import EXIT_INTERRUPTED, EXIT_SOME_FAILED
from mgm_shared.config import Config
from mgm_shared.errors import UserError
from mgm_shared.files import content_digest, replace_text
from mgm_shared.json_text import to_json
from mgm_shared.signals import StopRequest
from mgm_train.ablation.grid import Run
from mgm_train.config import SAMPLING_OPTIONS

POLL_S = 0.2
# Number of lines of a program's stderr that are kept, to find the reason of a failure.
MAX_LINES = 200


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a program ended: its exit code, its stdout, and the reason of a failure, taken from its stderr."""

    code: int
    stdout: str
    reason: str


Launch = Callable[[list[str], StopRequest], Ended]


# Options that a stage takes from the one before it, unless they are given.
INHERITED = {"finetune": ("positions",), "evaluate": SAMPLING_OPTIONS}


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One command of a run on a store, with its configuration, and the paths of its files."""

    task: str
    store: str
    folder: Path
    config: Config
    more: tuple[str, ...]

    @property
    def asked(self) -> Path:
        return self.folder / f"{self.task}.yaml"

    @property
    def record(self) -> Path:
        return self.folder / f"{self.task}.json"

    @property
    def options(self) -> dict[str, Any]:
        """What it is asked: all options, so that none is chosen for it, but what it takes from the stage before it."""
        inherited = set(INHERITED.get(self.task, ())) - self.config.model_fields_set
        return {name: value for name, value in self.config.to_dict().items() if name not in inherited}

    @property
    def command(self) -> list[str]:
        return [self.task, self.store, *self.more, "--config", str(self.asked), "--json"]

    def identity(self, digests: Mapping[str, str]) -> dict[str, Any]:
        """What its result depends on, as it stands in the record. `digests` has the content of each store, by path."""
        # Where its pretraining lies is not what it is; that has a record of its own.
        kept = {
            key: value for key, value in self.config.to_dict().items() if key not in self.config.changeable() | {"init"}
        }
        inputs = {name: content_digest(Path(kept[name])) for name in ("class_map", "boxes") if kept.get(name)}
        return {"store": digests[self.store], "settings": json.loads(json.dumps(kept)), "inputs": inputs}


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """The scores of a run's test, or the reason of its failure. A run that has not been reached has neither."""

    scores: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""
    records: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """What each finished stage printed, and its `wall_s`, by task."""

    @property
    def num_unscored(self) -> int:
        """Number of videos of the test that could not be read."""
        return self.scores["listed"] - self.scores["scored"] if self.scores else 0

    @property
    def is_partial(self) -> bool:
        """Whether the run failed, or some of its videos could not be read."""
        return bool(self.reason or self.num_unscored)


def stages_of(run: Run, out: Path, store: str) -> list[Stage]:
    """The stages of a run on a store, in their order: pretraining, fine-tuning, its test, and the probe."""
    folders = {task: out / name for task, name in run.names.items()}
    pretrained, finetuned, probed = (folders[task] / task for task in ("pretrain", "finetune", "probe"))
    init = {"init": str(pretrained.absolute())} if run.is_pretrained else {}
    # Not `--run`, because torchrun's parser takes that for an option of its own.
    calls: dict[str, tuple[Config, tuple[str, ...]]] = {}
    if run.is_pretrained:
        calls["pretrain"] = run.configs["pretrain"], ("--run-dir", str(pretrained))
    if "evaluate" in run.tests:
        calls["finetune"] = run.configs["finetune"].replace(**init), ("--run-dir", str(finetuned))
        calls["evaluate"] = run.configs["evaluate"], (str(finetuned),)
    if "probe" in run.tests and run.is_pretrained:
        calls["probe"] = run.configs["probe"].replace(**init), ("--run-dir", str(probed))
    stores = {"pretrain": run.pretrain_on or store}
    return [
        Stage(task=task, store=stores.get(task, store), folder=folders[task], config=config, more=more)
        for task, (config, more) in calls.items()
    ]


def check_records(runs: Iterable[Run], out: Path, store: str, digests: Mapping[str, str]) -> None:
    """UserError if a finished stage was run with other settings, inputs, or another store than now."""
    for stage in [stage for run in runs for stage in stages_of(run, out, store)]:
        record = read_record(stage)
        if record is None:
            continue
        now, then = stage.identity(digests), record["identity"]
        if then["store"] != now["store"]:
            raise UserError(f"{stage.record} is of another store; take another --run folder")
        then_inputs = then.get("inputs", {})
        for key in now["inputs"].keys() & then_inputs.keys():
            if now["inputs"][key] != then_inputs[key]:
                path = now["settings"][key]
                raise UserError(f"{stage.record}: the content of {path} is not what it was; take another --run folder")
            # The same content in another place is the same.
            then["settings"][key] = now["settings"][key]
        # A record of an earlier version had the defaults of options that are new.
        then["settings"] = json.loads(json.dumps(type(stage.config)().to_dict())) | then["settings"]
        changed = [key for key, value in now["settings"].items() if then["settings"].get(key) != value]
        if changed:
            key = changed[0]
            was, shall = then["settings"].get(key), now["settings"][key]
            raise UserError(f"{stage.record}: {key} was {was!r} and is now {shall!r}; take another --run folder")


def read_record(stage: Stage) -> dict[str, Any] | None:
    """The record of a finished stage; None if it is not finished."""
    return json.loads(stage.record.read_text()) if stage.record.exists() else None


def progress_of(run: Run, out: Path, store: str) -> str:
    """The progress of a run: `evaluate done`, `finetune begun`, … or `new`."""
    progress = "new"
    for stage in stages_of(run, out, store):
        if stage.record.exists():
            progress = f"{stage.task} done"
        elif stage.asked.exists():
            return f"{stage.task} begun"
    return progress


class Ablation:
    """Run the stages that are not finished, one after the other. `launch` runs a command of mgm-train."""

    def __init__(
        self, out: Path, store: str, digests: Mapping[str, str], launch: Launch, say: Callable[[str], None]
    ) -> None:
        self.out, self.store, self.digests, self.launch, self.say = out, store, digests, launch, say
        self.failed: dict[Path, str] = {}
        self.stop = StopRequest()

    def run(self, runs: list[Run]) -> None:
        """Run each one until it ends or fails, or until a stop is requested."""
        with self.stop.listening():
            for number, run in enumerate(runs, 1):
                self._run(run, f"[{number}/{len(runs)}] {run.name}")

    def _run(self, run: Run, title: str) -> None:
        for stage in stages_of(run, self.out, self.store):
            if read_record(stage) is None and not self.stop.is_asked and stage.record not in self.failed:
                self.say(f"{title}: {stage.task}")
                self._start(stage)
            if read_record(stage) is None:
                return

    def outcome(self, run: Run) -> RunResult:
        """The result of a run so far. Its scores are those of the fine-tuned model, or of the probe without one."""
        records: dict[str, Mapping[str, Any]] = {}
        reason = ""
        for stage in stages_of(run, self.out, self.store):
            record = read_record(stage)
            if record is None:
                reason = self.failed.get(stage.record, "")
                break
            records[stage.task] = record["result"] | {"wall_s": record.get("wall_s")}
        scores = records.get(run.tests[0], {})
        return RunResult(scores=scores, reason=reason, records=records)

    def _start(self, stage: Stage) -> None:
        """Run a stage. It leaves a record, or a reason in `failed`, or a request to stop."""
        stage.folder.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump({stage.task: stage.options}, sort_keys=False)
        replace_text(stage.asked, text)
        start_s = time.monotonic()
        ended = self.launch(stage.command, self.stop)
        wall_s = round(time.monotonic() - start_s, 1)
        if ended.code == EXIT_INTERRUPTED or (ended.code and self.stop.is_asked):
            self.stop.is_asked = True
        elif ended.code not in (0, EXIT_SOME_FAILED):
            self.failed[stage.record] = f"{stage.task}: {ended.reason}"
            self.say(f"failed: {self.failed[stage.record]}")
        else:
            # The time of the last start, where the stage was interrupted.
            record = {
                "identity": stage.identity(self.digests),
                "result": json.loads(ended.stdout),
                "wall_s": wall_s,
                "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            }
            replace_text(stage.record, to_json(record, indent=2) + "\n")


def launcher(num_gpus: int) -> Launch:
    """Make a function that runs mgm-train in a subprocess, with several GPUs by torchrun."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_gpus)]
    program = [sys.executable, *(torchrun if num_gpus > 1 else []), "-m", "mgm_train"]
    return lambda command, stop: launch([*program, *command], stop)


def launch(command: list[str], stop: StopRequest) -> Ended:
    """Run a program until it ends. Its stderr is passed on, and a request to stop is passed on to it."""
    lines: list[str] = []
    is_told = False
    with (
        tempfile.TemporaryFile("w+") as out,
        subprocess.Popen(command, stdout=out, stderr=subprocess.PIPE, text=True, errors="replace") as child,
    ):
        listener = threading.Thread(target=_pass_on, args=(child.stderr, lines))
        listener.start()
        while child.poll() is None:
            if stop.is_asked and not is_told:
                # A Ctrl-C in a terminal reaches it too; a second signal does no harm.
                child.send_signal(signal.SIGTERM)
                is_told = True
            with suppress(subprocess.TimeoutExpired):
                child.wait(POLL_S)
        listener.join()
        out.seek(0)
        return Ended(code=child.returncode, stdout=out.read(), reason=_reason(child.returncode, lines))


def _pass_on(stream: Any, lines: list[str]) -> None:
    for line in stream:
        sys.stderr.write(line)
        sys.stderr.flush()
        if line.strip():
            lines.append(line.strip())
            del lines[:-MAX_LINES]


def _reason(code: int, lines: list[str]) -> str:
    """The reason why a program failed: its one-line error, otherwise its last exception, otherwise its last line."""
    if code < 0:
        return f"ended by {signal.Signals(-code).name}"
    for pattern in (
        r"(?:python -m mgm_train|mgm-train): (.+)",
        # torchrun ends with an exception of its own, which says only that another program failed.
        r"(?:\[rank\d+\]: )?(?!torch\.distributed\.elastic\.)((?:\w+\.)*\w*(?:Error|Exception)\b.*)",
        r"traceback : Signal \d+ \((\w+)\) received by PID \d+",
    ):
        found = [match[1] for line in lines if (match := re.fullmatch(pattern, line))]
        if found:
            return f"ended by {found[-1]}" if found[-1] in signal.Signals.__members__ else found[-1]
    return lines[-1] if lines else f"exit code {code}"
