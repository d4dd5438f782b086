"""The same weights here, in transformers, in timm and in onnxruntime: the largest difference of the outputs, by size.

`out` is a model of ours that was exported; `in` is a model of theirs, made and saved by their library, that
`mgm_train.load` read. All weights are random, biases and norms too, so that a forgotten one shows. `std` is the
standard deviation of the outputs, which the differences are to be compared with.
"""

import gc
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnxruntime
import timm
import torch
import transformers
from torch import Tensor, nn

import mgm_train
from mgm_train.checkpoint.sources import load_source
from mgm_train.checkpoint.transformers import transformers_config
from mgm_train.checkpoint.weights import save_weights
from mgm_train.model_config import MODEL_SIZES, ModelConfig
from mgm_train.models.videomae import VideoClassifier, VideoMAE, build, normalise

NUM_CLASSES, SEED, NOISE = 10, 0, 0.02
# VideoMAE's epsilon of the norms that transformers leaves at PyTorch's.
EPSILON = 1e-6


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    size: str
    what: str
    difference: float
    std: float


@contextmanager
def folder() -> Iterator[Path]:
    """A folder for one export; ViT-L takes 1.2 GB."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)
    gc.collect()


def randomised(model: nn.Module) -> Any:
    """Noise on every parameter, so that no bias is zero and no norm is one."""
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * NOISE)
    return model.eval()


def frames(config: ModelConfig, num_clips: int) -> Tensor:
    shape = (num_clips, 3, config.num_frames, config.image_px, config.image_px)
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(SEED), dtype=torch.uint8)


def row(config: ModelConfig, what: str, ours: Tensor, theirs: Tensor) -> Row:
    return Row(config.name, what, float((ours - theirs).abs().max()), float(theirs.std()))


def classifier_file(file: Path, config: ModelConfig) -> Any:
    model = randomised(build(lambda: VideoClassifier(config, NUM_CLASSES), SEED))
    labels = json.dumps([f"class {number}" for number in range(NUM_CLASSES)])
    save_weights(file, model.state_dict(), config, {"labels": labels})
    return model


def exported_classifier(config: ModelConfig, clips_BCTHW: Tensor) -> Iterator[Row]:
    """Ours in transformers, timm and onnxruntime."""
    with folder() as place:
        ours_BK = classifier_file(place / "a.safetensors", config)(clips_BCTHW)
        mgm_train.export(place / "a.safetensors", place / "hf", "transformers")
        theirs: Any = transformers.VideoMAEForVideoClassification.from_pretrained(place / "hf")
        theirs.eval()
        theirs.fc_norm.eps = EPSILON
        yield row(config, "classifier to transformers", ours_BK, theirs(normalise(clips_BCTHW).transpose(1, 2)).logits)
        del theirs
        mgm_train.export(place / "a.safetensors", place / "timm", "timm")
        model = timm.create_model(f"local-dir:{place / 'timm'}", pretrained=True).eval()
        yield row(config, "classifier to timm", ours_BK, model(normalise(clips_BCTHW)))
        del model
        mgm_train.export(place / "a.safetensors", place / "onnx", "onnx")
        session = onnxruntime.InferenceSession(place / "onnx" / "classifier.onnx", _one_thread())
        (logits_BK,) = session.run(None, {"frames": clips_BCTHW.numpy()})
        yield row(config, "classifier to ONNX", ours_BK, torch.from_numpy(np.asarray(logits_BK)))


def exported_autoencoder(config: ModelConfig, clips_BCTHW: Tensor) -> Iterator[Row]:
    """Ours in transformers: the predicted pixels of masked tokens."""
    with folder() as place:
        ours = randomised(build(lambda: VideoMAE(config), SEED))
        save_weights(place / "a.safetensors", ours.state_dict(), config, {})
        mask_BN = (torch.arange(config.grid.num_tokens) % 4 != 0)[None].expand(len(clips_BCTHW), -1)
        ours_BMP = ours(clips_BCTHW, mask_BN)
        del ours
        mgm_train.export(place / "a.safetensors", place / "hf", "transformers")
        theirs: Any = transformers.VideoMAEForPreTraining.from_pretrained(place / "hf")
        theirs.eval()
        theirs.decoder.norm.eps = EPSILON
        pixels_BMP = theirs(normalise(clips_BCTHW).transpose(1, 2), bool_masked_pos=mask_BN).logits
        yield row(config, "autoencoder to transformers", ours_BMP, pixels_BMP)


def read_from_transformers(config: ModelConfig, clips_BCTHW: Tensor) -> Iterator[Row]:
    """Theirs, made and saved by transformers with its own settings, read here."""
    settings = transformers_config(config, is_classifier=True) | {"num_labels": NUM_CLASSES}
    inputs_BTCHW = normalise(clips_BCTHW).transpose(1, 2)
    with folder() as place:
        torch.manual_seed(SEED)
        theirs: Any = transformers.VideoMAEForVideoClassification(transformers.VideoMAEConfig(**settings))
        randomised(theirs).save_pretrained(place)
        theirs.fc_norm.eps = EPSILON
        theirs_BK = theirs(inputs_BTCHW).logits
        yield row(config, "classifier from transformers", mgm_train.load(place)(clips_BCTHW), theirs_BK)
        del theirs
    with folder() as place:
        torch.manual_seed(SEED)
        encoder: Any = transformers.VideoMAEModel(transformers.VideoMAEConfig(**settings | {"use_mean_pooling": False}))
        randomised(encoder).save_pretrained(place)
        theirs_BND = encoder(inputs_BTCHW).last_hidden_state
        del encoder
        tokens_BND = mgm_train.load(place).encoder.encoder(clips_BCTHW)
        yield row(config, "encoder from transformers", tokens_BND, theirs_BND)


def read_from_timm(config: ModelConfig, clips_BCTHW: Tensor) -> Iterator[Row]:
    """A model that timm made, its weights saved as timm's training does, read here."""
    with folder() as place:
        shape: dict[str, Any] = {
            "num_frames": config.num_frames,
            "img_size": config.image_px,
            "num_classes": NUM_CLASSES,
        }
        model: Any = randomised(timm.create_model(f"mgm_{config.name}_patch16_224", **shape))
        torch.save({"state_dict": model.state_dict(), "arch": f"mgm_{config.name}_patch16_224"}, place / "a.pth.tar")
        theirs_BK = model(normalise(clips_BCTHW))
        found = load_source(place / "a.pth.tar")
        ours = VideoClassifier(
            replace(found.model, num_frames=config.num_frames, image_px=config.image_px), NUM_CLASSES
        )
        ours.load_state_dict(found.state, strict=True)
        yield row(config, "classifier from timm", ours.eval()(clips_BCTHW), theirs_BK)


def _one_thread() -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return options


CHECKS = (exported_classifier, exported_autoencoder, read_from_transformers, read_from_timm)


@click.command()
@click.option("--size", "sizes", multiple=True, type=click.Choice(list(MODEL_SIZES)), help="All but vit_huge if unset.")
@click.option("--num-frames", default=16, help="Frames of a clip.")
@click.option("--image-px", default=224, help="Side of the frames in pixels.")
@click.option("--num-clips", default=1, help="Clips of a batch.")
@torch.inference_mode()
def main(sizes: tuple[str, ...], num_frames: int, image_px: int, num_clips: int) -> None:
    """Print a table of the differences."""
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    click.echo("| size | outputs | largest difference | std of the outputs |\n|---|---|---|---|")
    for size in sizes or [name for name in MODEL_SIZES if name != "vit_huge"]:
        config = replace(MODEL_SIZES[size], num_frames=num_frames, image_px=image_px)
        for check in CHECKS:
            for found in check(config, frames(config, num_clips)):
                click.echo(f"| {found.size} | {found.what} | {found.difference:.1e} | {found.std:.2f} |")


if __name__ == "__main__":
    main()
