"""Whether a run may continue in its folder: same task, data and options, and same content of the files they name.

What a run began with is in last.pt, and before the first one is written in config.yaml and environment.json.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mgm_shared.config import Config, flag
from mgm_shared.errors import UserError
from mgm_train.checkpoint.run_folder import RunFolder, load_last
from mgm_train.config import TrainConfig

# What `training.loop` puts into last.pt, whatever is trained.
STATE_KEYS = {"task", "config", "position", "unreadable", "model", "optimizer", "loss_sum"}


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What the results of a run depend on. `inputs` has the digest of the file or folder that an option names."""

    task: str
    store: str
    options: Mapping[str, Any]
    inputs: Mapping[str, str] = field(default_factory=dict)

    def differences(self, now: "Identity", config: Config) -> list[str]:
        """What is not as it was, in words. `config` says which options may change, and the default of a new one."""
        found = [] if self.task == now.task else [f"task was {self.task!r} and is now {now.task!r}"]
        if self.store != now.store:
            found.append(f"store was {self.store!r} and is now {now.store!r}")
        defaults = {name: option.default for name, option in type(config).model_fields.items()}
        for name in sorted((self.options.keys() | now.options.keys()) - config.changeable()):
            # An option of a later version than the run's had its default.
            was = self.options.get(name, defaults.get(name))
            new = now.options.get(name)
            if name in self.inputs and name in now.inputs:
                if self.inputs[name] != now.inputs[name]:
                    found.append(f"{flag(name)}: the content of {new} is not what it was")
            elif was != new:
                found.append(f"{flag(name)} was {was!r} and is now {new!r}")
        return found


def load_state(run: RunFolder) -> dict[str, Any] | None:
    """The last checkpoint of a run, on the CPU; None before the first. UserError when it is damaged or foreign."""
    state = load_last(run)
    if state is not None and not state.keys() >= STATE_KEYS:
        raise UserError(f"{run.last} is no checkpoint of this program; move it away to start from the beginning")
    return state


def check_resumable(
    run: RunFolder,
    state: Mapping[str, Any] | None,
    task: str,
    config: TrainConfig,
    store: str,
    inputs: Mapping[str, str] | None = None,
) -> None:
    """UserError that names what differs, unless a run that began in this folder may continue with these options.

    `state` is its last checkpoint, if there is one. A new folder may begin with any.
    """
    began = _of_folder(run) if state is None else _of_state(state)
    if began is None:
        return
    now = Identity(task=task, store=store, options=config.to_dict(), inputs=inputs or {})
    if differing := began.differences(now, config):
        raise UserError(
            f"{run.root} was begun with other settings: {'; '.join(differing)}; take another run folder, or --force, "
            "which moves this one aside"
        )


def check_task(run: RunFolder, task: str) -> None:
    """UserError when another task began in this folder."""
    began = _of_folder(run)
    if began is not None and began.task != task:
        raise UserError(f"{run.root} is the folder of a {began.task} run; take another run folder for the {task}")


def _of_state(state: Mapping[str, Any]) -> Identity:
    return Identity(
        task=state["task"],
        store=state["position"]["store"],
        options=state["config"],
        inputs=state.get("inputs", {}),
    )


def _of_folder(run: RunFolder) -> Identity | None:
    """What config.yaml and environment.json say; None where nothing began."""
    file = run.root / "config.yaml"
    if not file.exists():
        return None
    try:
        ((task, options),) = yaml.safe_load(file.read_text(encoding="utf-8")).items()
        environment = json.loads((run.root / "environment.json").read_text(encoding="utf-8"))
        return Identity(
            task=task, store=environment["store"], options=dict(options), inputs=environment.get("inputs", {})
        )
    except FileNotFoundError:
        # It was killed between the two files.
        return None
    except (ValueError, TypeError, AttributeError, KeyError, yaml.YAMLError):
        raise _unreadable(run.root) from None


def _unreadable(folder: Path) -> UserError:
    return UserError(f"{folder} has a config.yaml or environment.json of something else; take another run folder")
