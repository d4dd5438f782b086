"""One episode of a scripted expert, as states of the simulator. Nothing is rendered here.

Axes: S steps of 12.5 ms · Q coordinates of the simulator · B bodies · T frames.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from motion50.scenes import Scene

MAX_STEPS, STEPS_AFTER_SUCCESS, MAX_TRIES = 300, 12, 20
# Travel below this (metres or radians) is no movement of the object.
MIN_TRAVEL = 0.03


@dataclass(frozen=True, kw_only=True)
class Episode:
    """States of a successful episode, cut to the object's movement.

    `progress_S` grows along the scene's forward class: it rises in an episode of the first expert and falls in one of
    the second. `body_pos_B3` and `body_quat_B4` hold the places that the task gave to its fixed bodies.
    """

    scene: Scene
    expert: int
    qpos_SQ: NDArray[np.float64]
    progress_S: NDArray[np.float64]
    body_pos_B3: NDArray[np.float64]
    body_quat_B4: NDArray[np.float64]


def make_environment(task: str) -> Any:
    """A Meta-World environment that shows its goal to the expert and draws its start from its own seed."""
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    environment = ALL_V3_ENVIRONMENTS[task]()
    # What environment.set_task does, without a benchmark's list of tasks.
    environment._partially_observable = False
    del environment.sawyer_observation_space
    environment.observation_space = environment.sawyer_observation_space
    environment._freeze_rand_vec = False
    environment.seeded_rand_vec = True
    environment._set_task_called = True
    return environment


def scene_file(task: str) -> str:
    """Path of a task's scene, which Meta-World's classes name in a property that needs no instance."""
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    return str(ALL_V3_ENVIRONMENTS[task].model_name.fget(None))


def progress(scene: Scene, environment: Any) -> float:
    """The object's coordinate along the scene's forward direction."""
    if scene.joint:
        return float(scene.sign * environment.data.qpos[scene.joint])
    names = {environment.model.body(index).name for index in range(environment.model.nbody)}
    body = next(name for name in scene.bodies if name in names)
    return float(scene.sign * environment.data.body(body).xpos[scene.axis])


def run_expert(scene: Scene, expert: int, seed: int) -> Episode | None:
    """One episode, cut to the object's movement; None when the expert fails or the object does not move its way."""
    with warnings.catch_warnings():
        # Meta-World warns of its own experts' gains.
        warnings.simplefilter("ignore")
        return _run_expert(scene, expert, seed)


def _run_expert(scene: Scene, expert: int, seed: int) -> Episode | None:
    from metaworld.policies import ENV_POLICY_MAP

    policy = ENV_POLICY_MAP[scene.experts[expert]]()
    # A new environment for each episode: one that is reset may keep something of the episode before.
    environment = make_environment(scene.experts[expert])
    environment.seed(seed)
    observation, _ = environment.reset()
    states, travelled, left = [environment.data.qpos.copy()], [progress(scene, environment)], None
    for _ in range(MAX_STEPS):
        action = np.clip(policy.get_action(observation.copy()), -1, 1)
        observation, _, _, _, info = environment.step(action)
        states.append(environment.data.qpos.copy())
        travelled.append(progress(scene, environment))
        if info["success"] and left is None:
            left = STEPS_AFTER_SUCCESS
        if left is not None:
            left -= 1
            if left < 0:
                break
    if left is None:
        return None
    kept = movement(np.array(travelled) * (1 if expert == 0 else -1))
    if kept is None:
        return None
    return Episode(
        scene=scene,
        expert=expert,
        qpos_SQ=np.array(states)[kept],
        progress_S=np.array(travelled)[kept],
        body_pos_B3=environment.model.body_pos.copy(),
        body_quat_B4=environment.model.body_quat.copy(),
    )


def movement(rising_S: NDArray[np.float64]) -> slice | None:
    """The steps in which a coordinate rises most, from its last low to its high; None when it hardly rises."""
    lowest_S = np.minimum.accumulate(rising_S)
    end = int(np.argmax(rising_S - lowest_S))
    travel = rising_S[end] - lowest_S[end]
    if travel < MIN_TRAVEL:
        return None
    low = lowest_S[end]
    start = int(np.flatnonzero(rising_S[: end + 1] <= low + 0.03 * travel)[-1])
    end = start + int(np.flatnonzero(rising_S[start : end + 1] >= low + 0.97 * travel)[0])
    return slice(start, end + 1) if end - start >= 4 else None


def find_episode(scene: Scene, expert: int, rng: Generator) -> Episode:
    """Try seeds until the expert succeeds. RuntimeError when it never does."""
    for _ in range(MAX_TRIES):
        episode = run_expert(scene, expert, int(rng.integers(2**31)))
        if episode is not None:
            return episode
    raise RuntimeError(f"the expert of {scene.experts[expert]} failed {MAX_TRIES} times")


def stretch(episode: Episode, num_frames: int, rng: Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Coordinates (T, Q) and progress (T) of a clip: a random part of the movement at a speed that varies.

    The part begins in the first fifth of the movement and ends in its last fifth.
    """
    start, end = rng.uniform(0, 0.2), rng.uniform(0.8, 1)
    time_T = np.linspace(0, 1, num_frames)
    # Slower or faster in the middle, never backwards: |amplitude| < 1.
    amplitude, phase = rng.uniform(-0.6, 0.6), rng.uniform(0, 2 * np.pi)
    warped_T = time_T + amplitude * (np.sin(2 * np.pi * time_T + phase) - np.sin(phase)) / (2 * np.pi)
    at_T = (start + (end - start) * warped_T) * (len(episode.qpos_SQ) - 1)
    steps = np.arange(len(episode.qpos_SQ))
    qpos_TQ = np.stack([np.interp(at_T, steps, column_S) for column_S in episode.qpos_SQ.T], axis=1)
    return qpos_TQ, np.interp(at_T, steps, episode.progress_S)
