"""Checkpoints of the VideoMAE and VideoMAEv2 programs: pickles, of which only tensors and plain values are read.

`torch.load(weights_only=True)` builds nothing but tensors, containers and numbers; `argparse.Namespace`, in which these
programs keep their options, is allowed besides. A file that names anything else is refused before any of it runs.
"""

import argparse
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mgm_shared.errors import UserError
from mgm_train.checkpoint.foreign import Clip, joined_biases

# Where the weights are in what the programs save, and wrappers in front of their names.
STATE_KEYS = ("model", "module", "state_dict", "model_ema", "state_dict_ema")
WRAPPERS = ("module.", "_orig_mod.", "backbone.", "model.")
# Where a whole classifier has the prefix of the encoder.
OF_CLASSIFIER = re.compile(r"encoder\.((?:fc_norm|head)\.\w+)")
# In a fine-tuned model the encoder is the model itself.
OF_ENCODER = re.compile(r"(patch_embed|blocks|norm|pos_embed)\b")
# What the last.pt of a run of ours has, among others; see `checkpoint.resume`.
OF_RUN = {"task", "config", "position"}
REFUSED = re.compile(r"GLOBAL (\S+)")


def read_official(path: Path) -> tuple[dict[str, Tensor], Clip]:
    """The weights under our names, and the clips of their training. UserError for a file that cannot be trusted."""
    content = read_pickle(path)
    options = content.get("args")
    state = next((content[key] for key in STATE_KEYS if isinstance(content.get(key), Mapping)), content)
    tensors = {str(name): tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}
    if content.keys() >= OF_RUN:
        raise UserError(f"{path} is the state of a training; give the folder of the run, or weights of its checkpoints")
    if not tensors:
        raise UserError(f"{path} holds no weights: there is no tensor under {', '.join(STATE_KEYS)}")
    return official_names(tensors), _clip(options)


def official_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of VideoMAE's pretraining or fine-tuning model under our names."""
    bare = {unwrapped(name): tensor for name, tensor in state.items()}
    if len(bare) < len(state):
        raise UserError("two tensors have the same name without their prefixes: the file holds several models")
    is_pretraining = any(name.startswith("encoder.") for name in bare)
    if not is_pretraining:
        bare = {f"encoder.{name}" if OF_ENCODER.match(name) else name: tensor for name, tensor in bare.items()}
    return joined_biases({OF_CLASSIFIER.sub(r"\1", name): tensor for name, tensor in bare.items()})


def unwrapped(name: str) -> str:
    """The name of a tensor without the prefixes of DistributedDataParallel, torch.compile and the like."""
    while wrapper := next((wrapper for wrapper in WRAPPERS if name.startswith(wrapper)), ""):
        name = name.removeprefix(wrapper)
    return name


def read_pickle(path: Path) -> Mapping[Any, Any]:
    """The dictionary in a file of `torch.save`. UserError for anything else, before any code of it runs."""
    try:
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            # About pickles that PyTorch did not write, which are refused below.
            warnings.simplefilter("ignore", UserWarning)
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = REFUSED.search(str(error))
        named = (
            f"it names {found[1]}, and unpickling that could run code" if found else "it is no checkpoint of PyTorch"
        )
        raise UserError(f"{path} is refused: {named}") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{path} is no checkpoint of PyTorch, or only a part of one") from error
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds no weights but a {type(content).__name__}")
    return content


def _clip(options: object) -> Clip:
    """From the options of the program; VideoMAE's defaults where there are none."""
    values = vars(options) if isinstance(options, argparse.Namespace) else options
    values = values if isinstance(values, Mapping) else {}
    default = Clip()
    return Clip(
        num_frames=_number(values.get("num_frames"), default.num_frames),
        image_px=_number(values.get("input_size"), default.image_px),
    )


def _number(value: object, default: int) -> int:
    return value if isinstance(value, int) and value > 0 else default
