"""Person boxes of a detector, in the three forms that are published for AVA.

| form | file | row |
|---|---|---|
| CSV (SlowFast) | ava_val_predicted_boxes.csv | `video,time,x1,y1,x2,y2,,score`, shares of the picture |
| JSON (AlphAction) | ava_val_det_person_bbox.json | `{image_id, bbox: [x, y, width, height] px, score}` |
| pickle (mmaction2) | ava_dense_proposals_val.pkl | `{"video,0902": array (n, 5)}`, shares of the picture and score |

The JSON form names its pictures by number. A file beside it, or in the folder of annotations, has their list:
`{"images": [{id, movie, timestamp, width, height}]}`.
"""

import hashlib
import io
import pickle
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mgm_shared.errors import UserError
from mgm_shared.text_files import read_json
from mgm_train.detection.box_tables import BoxTable, read_box_csv

# The parts of numpy that a pickle of arrays names, under their old and their new module.
ARRAY_PARTS = {
    (f"numpy.{module}", name)
    for module in ("core.multiarray", "_core.multiarray", "core.numeric", "_core.numeric")
    for name in ("_reconstruct", "_frombuffer")
} | {("numpy", "ndarray"), ("numpy", "dtype")}


@dataclass(frozen=True, kw_only=True)
class Proposals:
    """The boxes of a file whose score reaches a threshold, and what to report of them."""

    boxes: BoxTable
    description: str


def read_proposals(file: Path, min_score: float, image_lists: Iterable[Path] = ()) -> Proposals:
    """Read a file of proposals, and keep the boxes with a score of at least `min_score`.

    `image_lists` are folders that may hold the list of pictures of a JSON file. UserError for anything else.
    """
    read = {".csv": _read_csv, ".json": _read_json, ".pkl": _read_pickle, ".pickle": _read_pickle}.get(file.suffix)
    if read is None:
        raise UserError(f"{file} must be a .csv, .json or .pkl file of person boxes")
    if not file.is_file():
        raise UserError(f"{file} does not exist; give a file of person boxes with --proposals")
    table = read(file, [file.parent, *image_lists])
    kept = table.where(table.score_B >= min_score)
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    description = (
        f"proposals: {file} (sha256 {digest[:12]}): {len(kept)} of {len(table)} boxes have a score of at least "
        f"{min_score:g}, in {len(set(kept.moments))} key frames"
    )
    return Proposals(boxes=kept, description=description)


def _read_csv(file: Path, folders: list[Path]) -> BoxTable:
    return read_box_csv(file, last="score")


def _read_json(file: Path, folders: list[Path]) -> BoxTable:
    content = read_json(file)
    rows = content.get("annotations") if isinstance(content, dict) else content
    if not isinstance(rows, list):
        raise UserError(f"{file} is no list of objects with image_id, bbox and score")
    image_of = _images(file, content, folders)
    names, times, boxes, scores = [], [], [], []
    for number, row in enumerate(rows, 1):
        try:
            name, time_s, width, height = image_of[row["image_id"]]
            x, y, box_width, box_height = map(float, row["bbox"])
            scores.append(float(row["score"]))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{file}, row {number}: no image_id, bbox and score of a listed picture ({error})"
            ) from None
        names.append(name)
        times.append(time_s)
        boxes.append((x / width, y / height, (x + box_width) / width, (y + box_height) / height))
    return BoxTable.of(file, names, np.array(times, float), np.array(boxes, float), score_B=np.array(scores, float))


def _images(file: Path, content: Any, folders: list[Path]) -> dict[Any, tuple[str, float, float, float]]:
    """Number of a picture → video, time, width and height. UserError when no file lists the pictures."""
    beside = {found for folder in folders for found in folder.glob("*.json")} - {file}
    image_of: dict[Any, tuple[str, float, float, float]] = {}
    for source in [content, *map(_json_or_none, sorted(beside))]:
        for image in _listed(source):
            try:
                size = float(image["width"]), float(image["height"])
                image_of[image["id"]] = (str(image["movie"]), float(image["timestamp"]), *size)
            except (KeyError, TypeError, ValueError):
                continue
    if not image_of:
        raise UserError(
            f"{file} numbers its pictures; put the JSON file with their list beside it: "
            '{"images": [{"id", "movie", "timestamp", "width", "height"}]}'
        )
    return image_of


def _json_or_none(file: Path) -> Any:
    try:
        return read_json(file)
    except UserError:
        return None


def _listed(content: Any) -> list[Any]:
    images = content.get("images") if isinstance(content, dict) else None
    return images if isinstance(images, list) else []


def _read_pickle(file: Path, folders: list[Path]) -> BoxTable:
    try:
        content = _ArraysOnly(io.BytesIO(file.read_bytes())).load()
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    except Exception as error:
        # A damaged file can fail anywhere in the unpickler.
        raise UserError(f"{file} is damaged, or no pickle of arrays: {type(error).__name__}") from None
    if not isinstance(content, dict):
        raise UserError(f'{file} is no pickled dict of "video,0902" → array (n, 5)')
    names, times, arrays = [], [], []
    for key, value in content.items():
        name, time_s, array_B5 = _of_pickle(file, key, value)
        names += [name] * len(array_B5)
        times += [time_s] * len(array_B5)
        arrays.append(array_B5)
    table_B5 = np.concatenate([np.zeros((0, 5)), *arrays])
    return BoxTable.of(file, names, np.array(times, float), table_B5[:, :4], score_B=table_B5[:, 4])


def _of_pickle(file: Path, key: Any, value: Any) -> tuple[str, float, NDArray[np.float64]]:
    try:
        name, _, time = key.rpartition(",")
        array_B5 = np.asarray(value, np.float64)
        return name, float(time), array_B5.reshape(len(array_B5), 5)
    except (AttributeError, TypeError, ValueError):
        raise UserError(f'{file}: {key!r} is no entry "video,0902" → array (n, 5)') from None


class _ArraysOnly(pickle.Unpickler):
    """Loads dicts, lists, text, numbers and numpy arrays. Nothing else that a pickle may name is imported or called."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in ARRAY_PARTS:
            return super().find_class(module, name)
        if (module, name) == ("_codecs", "encode"):
            # Python 2's strings, and the bytes of an array under protocol 2.
            return _encode
        raise UserError(f"it names {module}.{name}; only dicts of arrays are read")


def _encode(text: str, encoding: str = "utf-8") -> bytes:
    return text.encode("latin1" if encoding == "latin1" else "utf-8")
