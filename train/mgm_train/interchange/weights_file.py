"""One safetensors file with the configuration of the model in its metadata, and a model card."""

from pathlib import Path

from mgm_train.checkpoint.weights import save_weights
from mgm_train.interchange.export_source import ExportSource
from mgm_train.interchange.model_card import model_card

WEIGHTS = "model.safetensors"
LOADING = """\
import mgm_train

model = mgm_train.load("THIS_FOLDER/model.safetensors")
feature_D = model.features("clip.mp4")"""


def write_safetensors(source: ExportSource, folder: Path) -> None:
    """Write the file, which `mgm_train.load`, `--init` and any reader of safetensors take."""
    weights = source.weights
    save_weights(folder / WEIGHTS, weights.state, weights.model, _texts(source))
    (folder / "README.md").write_text(model_card(source, LOADING, library="mgm"), encoding="utf-8")


def _texts(source: ExportSource) -> dict[str, str]:
    """The metadata of the weights, without what their file says of itself."""
    of_file = ("mgm_model", "mgm_format", "mgm_sha256", "format")
    return {name: text for name, text in source.weights.metadata.items() if name not in of_file}
