"""Exports against the programs that they are for: transformers, timm, onnxruntime, safetensors."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from synthetic import pan, write_video
from torch import Tensor

import mgm_train
from mgm_shared.errors import UserError
from mgm_train import export, load
from mgm_train.checkpoint.weights import load_weights, save_weights
from mgm_train.cli import main
from mgm_train.model_config import MODEL_SIZES, ModelConfig
from mgm_train.models.action_detector import ActionDetector
from mgm_train.models.videomae import VideoClassifier, VideoMAE, build, normalise

CLASSES = ["left", "right", "up – »high«"]
TINY = dataclasses.replace(MODEL_SIZES["vit_tiny"], num_frames=4, image_px=32)
# Depth, heads and their ratio of S, B and L, at a width for a test.
NARROW = {
    name: dataclasses.replace(
        MODEL_SIZES[name],
        name=f"narrow_{name}",
        width=8 * MODEL_SIZES[name].num_heads,
        decoder_width=8 * MODEL_SIZES[name].decoder_num_heads,
        num_frames=4,
        image_px=32,
    )
    for name in ("vit_small", "vit_base", "vit_large")
}


def _frames(config: ModelConfig, num_clips: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (num_clips, 3, config.num_frames, config.image_px, config.image_px)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def _saved(path: Path, config: ModelConfig, *, is_classifier: bool, **metadata: str) -> Path:
    """Weights whose biases and norms are random too, so that a forgotten one shows."""
    make = (lambda: VideoClassifier(config, 3)) if is_classifier else (lambda: VideoMAE(config))
    model: torch.nn.Module = build(make, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    texts = {"labels": json.dumps(CLASSES)} if is_classifier else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_weights(path, model.state_dict(), config, texts | metadata)
    return path


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    return _saved(tmp_path / "classifier.safetensors", TINY, is_classifier=True)


@pytest.fixture
def autoencoder(tmp_path: Path) -> Path:
    return _saved(tmp_path / "autoencoder.safetensors", TINY, is_classifier=False)


@pytest.mark.parametrize("size", NARROW)
def test_a_classifier_in_transformers_and_back(tmp_path: Path, size: str) -> None:
    transformers = pytest.importorskip("transformers")
    config = NARROW[size]
    path = _saved(tmp_path / "weights.safetensors", config, is_classifier=True)
    export(path, tmp_path / "out", "transformers")
    theirs = transformers.VideoMAEForVideoClassification.from_pretrained(tmp_path / "out").eval()
    theirs.fc_norm.eps = 1e-6
    ours = load(path)
    with torch.no_grad():
        expected_BK = theirs(normalise(_frames(config)).transpose(1, 2)).logits
        torch.testing.assert_close(ours(_frames(config)), expected_BK, atol=1e-4, rtol=0)
        assert expected_BK.std() > 0.01
        torch.testing.assert_close(load(tmp_path / "out")(_frames(config)), ours(_frames(config)), atol=1e-5, rtol=0)
    assert theirs.config.id2label == dict(enumerate(CLASSES))
    assert load(tmp_path / "out").classes == CLASSES


@pytest.mark.parametrize("size", NARROW)
def test_an_autoencoder_in_transformers_and_back(tmp_path: Path, size: str) -> None:
    transformers = pytest.importorskip("transformers")
    config = NARROW[size]
    path = _saved(tmp_path / "weights.safetensors", config, is_classifier=False)
    export(path, tmp_path / "out", "transformers")
    theirs = transformers.VideoMAEForPreTraining.from_pretrained(tmp_path / "out").eval()
    theirs.decoder.norm.eps = 1e-6
    model = VideoMAE(config).eval()
    model.load_state_dict(load_weights(path).state)
    mask_BN = (torch.arange(config.grid.num_tokens) % 4 != 0)[None].expand(2, -1)
    with torch.no_grad():
        expected_BMP = theirs(normalise(_frames(config)).transpose(1, 2), bool_masked_pos=mask_BN).logits
        torch.testing.assert_close(model(_frames(config), mask_BN), expected_BMP, atol=1e-4, rtol=0)
    encoder = transformers.VideoMAEModel.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        expected_BND = encoder(normalise(_frames(config)).transpose(1, 2)).last_hidden_state
    features_BD = load(tmp_path / "out")(_frames(config))
    torch.testing.assert_close(features_BD, expected_BND.mean(1), atol=1e-4, rtol=0)


def test_the_pipeline_of_transformers_classifies_frames(tmp_path: Path, classifier: Path) -> None:
    transformers = pytest.importorskip("transformers")
    export(classifier, tmp_path / "out", "transformers")
    classify = transformers.pipeline("video-classification", model=str(tmp_path / "out"), device="cpu")
    frames_THWC = _frames(TINY, 1)[0].permute(1, 2, 3, 0).numpy()
    found = {entry["label"]: entry["score"] for entry in classify(frames_THWC)}
    assert found == pytest.approx(dict(load(classifier).predict(frames_THWC)), abs=1e-4)


def test_the_pipeline_of_transformers_classifies_a_file(tmp_path: Path, classifier: Path) -> None:
    """torchcodec, which transformers decodes files with, needs FFmpeg's libraries on the machine."""
    transformers = pytest.importorskip("transformers")
    if not transformers.utils.import_utils.is_torchcodec_usable(decode="video"):
        pytest.skip("torchcodec does not find FFmpeg's libraries")
    write_video(tmp_path / "clip.mp4", pan((2, 0), num_frames=12, height=64, width=96))
    export(classifier, tmp_path / "out", "transformers")
    classify = transformers.pipeline("video-classification", model=str(tmp_path / "out"), device="cpu")
    found = classify(str(tmp_path / "clip.mp4"))
    assert {entry["label"] for entry in found} == set(CLASSES)
    assert sum(entry["score"] for entry in found) == pytest.approx(1, abs=1e-4)


def test_the_processor_normalises_as_the_model_does(tmp_path: Path, classifier: Path) -> None:
    transformers = pytest.importorskip("transformers")
    export(classifier, tmp_path / "out", "transformers")
    processor = transformers.VideoMAEImageProcessor.from_pretrained(tmp_path / "out")
    frames_CTHW = _frames(TINY)[0]
    pixels = processor([frame.numpy() for frame in frames_CTHW.permute(1, 2, 3, 0)], return_tensors="pt").pixel_values
    torch.testing.assert_close(pixels[0].transpose(0, 1), normalise(frames_CTHW[None])[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("is_classifier", [True, False])
def test_onnx_gives_the_outputs_of_torch_for_any_batch(tmp_path: Path, is_classifier: bool) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    path = _saved(tmp_path / "weights.safetensors", TINY, is_classifier=is_classifier)
    result = export(path, tmp_path / "out", "onnx")
    assert result.max_difference is not None
    assert result.max_difference < 1e-4
    ours = load(path)
    for num_clips in (1, 5):
        frames_BCTHW = _frames(TINY, num_clips)
        clips = [clip.permute(1, 2, 3, 0).numpy() for clip in frames_BCTHW]
        encoder = onnxruntime.InferenceSession(str(tmp_path / "out" / "encoder.onnx"))
        tokens_BND, features_BD = encoder.run(["tokens", "features"], {"frames": frames_BCTHW.numpy()})
        np.testing.assert_allclose(tokens_BND, ours.features(clips, tokens=True), atol=1e-4)
        np.testing.assert_allclose(features_BD, ours.features(clips), atol=1e-4)
        if is_classifier:
            session = onnxruntime.InferenceSession(str(tmp_path / "out" / "classifier.onnx"))
            (logits_BK,) = session.run(None, {"frames": frames_BCTHW.numpy()})
            np.testing.assert_allclose(logits_BK, ours(frames_BCTHW).numpy(), atol=1e-4)
    assert (tmp_path / "out" / "classifier.onnx").exists() == is_classifier


@pytest.mark.parametrize("is_classifier", [True, False])
def test_timm_loads_the_folder(tmp_path: Path, is_classifier: bool) -> None:
    import timm

    path = _saved(tmp_path / "weights.safetensors", TINY, is_classifier=is_classifier)
    export(path, tmp_path / "out", "timm")
    model: Any = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    with torch.no_grad():
        torch.testing.assert_close(model(_frames(TINY)), load(path)(_frames(TINY)), atol=1e-5, rtol=0)
    other: Any = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True, num_classes=7).eval()
    with torch.no_grad():
        tokens_BND = other.forward_features(_frames(TINY))
        assert other.forward_head(tokens_BND).shape == (2, 7)
        torch.testing.assert_close(tokens_BND, model.forward_features(_frames(TINY)), atol=0, rtol=0)


def test_the_safetensors_file_is_the_same_model(tmp_path: Path, classifier: Path) -> None:
    export(classifier, tmp_path / "out", "safetensors")
    expected = load_file(classifier)
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert load(tmp_path / "out" / "model.safetensors").classes == CLASSES


def test_the_card_tells_data_recipe_masks_metrics_licence(tmp_path: Path) -> None:
    run = tmp_path / "run"
    _saved(run / "checkpoints" / "epoch-0002.safetensors", TINY, is_classifier=True)
    (run / "config.yaml").write_text(yaml.safe_dump({"pretrain": {"mask": "mgm", "mask_ratio": 0.75, "seed": 7}}))
    (run / "environment.json").write_text(json.dumps({"store": "0123abc"}))
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 0.5}\n')
    (run / "classes-test.csv").write_text("class,scored,right,accuracy\nleft,4,3,0.75\nup,4,1,0.25\n")
    export(run, tmp_path / "out", "safetensors", dataset="SSv2", license="cc-by-nc-4.0")
    _, front, body = (tmp_path / "out" / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(front)["license"] == "cc-by-nc-4.0"
    assert yaml.safe_load(front)["datasets"] == ["SSv2"]
    for text in ("0123abc", "mask ratio | 0.75", "seed: 7", "training loss | 0.5000", "accuracy on test | 0.5000"):
        assert text in body, text
    for code in ("mgm_train.load(", "## License\n\ncc-by-nc-4.0"):
        assert code in body


@pytest.mark.parametrize("to", ["timm", "safetensors", "transformers"])
@pytest.mark.parametrize("is_classifier", [True, False])
def test_an_exported_folder_is_loaded_again(tmp_path: Path, to: Any, is_classifier: bool) -> None:
    path = _saved(tmp_path / "weights.safetensors", TINY, is_classifier=is_classifier)
    export(path, tmp_path / "out", to)
    ours, again = load(path), load(tmp_path / "out")
    assert again.classes == ours.classes
    assert (again.config.num_frames, again.config.image_px) == (4, 32)
    torch.testing.assert_close(again(_frames(TINY)), ours(_frames(TINY)), atol=1e-6, rtol=0)


def test_a_detector_is_an_encoder_elsewhere(tmp_path: Path) -> None:
    model = build(lambda: ActionDetector(TINY, 2), seed=0)
    path = tmp_path / "detector.safetensors"
    save_weights(path, model.state_dict(), TINY, {"labels": json.dumps(["walk", "sit"])})
    expected_BD = model.eval().encoder(_frames(TINY)).mean(1)
    torch.testing.assert_close(load(path)(_frames(TINY)), expected_BD, atol=1e-6, rtol=0)
    assert load(path).classes == []
    with pytest.raises(UserError, match="holds a detector"):
        export(path, tmp_path / "out", "transformers")
    assert export(path, tmp_path / "out", "safetensors").kind == "action detector"


def test_what_cannot_be_exported_is_one_line(tmp_path: Path, autoencoder: Path) -> None:
    separable = _saved(
        tmp_path / "s.safetensors", dataclasses.replace(TINY, positions="separable"), is_classifier=False
    )
    odd = _saved(tmp_path / "o.safetensors", NARROW["vit_small"], is_classifier=False)
    whole = autoencoder.read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    save_file({"conv1.weight": torch.zeros(3)}, tmp_path / "resnet.safetensors")
    (tmp_path / "unfinished" / "checkpoints").mkdir(parents=True)
    (tmp_path / "unfinished" / "checkpoints" / "last.pt").write_bytes(b"")
    (tmp_path / "there").mkdir()
    cases = {
        (separable, "transformers"): "sinusoid positions",
        (odd, "timm"): "there is no narrow_vit_small",
        (tmp_path / "cut.safetensors", "onnx"): "cut.safetensors is damaged",
        (tmp_path / "resnet.safetensors", "onnx"): "no patch embedding of tubelets",
        (tmp_path / "unfinished", "onnx"): "unfinished and has no weights yet",
        (tmp_path / "nowhere", "onnx"): "there is no file or folder",
    }
    for (source, to), message in cases.items():
        result = CliRunner().invoke(main, ["export", str(source), str(tmp_path / "out"), "--to", to])
        assert result.exit_code == 2, result.output
        assert message in result.stderr
        assert len(result.stderr.splitlines()) == 1
        assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="exists"):
        export(autoencoder, tmp_path / "there", "safetensors")
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".part")]


def test_an_older_export_is_moved_aside(tmp_path: Path, autoencoder: Path) -> None:
    arguments = ["export", str(autoencoder), str(tmp_path / "out"), "--to", "safetensors", "--json"]
    first = CliRunner().invoke(main, arguments)
    assert first.exit_code == 0, first.stderr
    assert json.loads(first.stdout)["kind"] == "masked video autoencoder"
    assert CliRunner().invoke(main, arguments).exit_code == 2
    assert CliRunner().invoke(main, [*arguments, "--force"]).exit_code == 0
    assert (tmp_path / "out.old-1" / "model.safetensors").is_file()


@pytest.mark.parametrize("order", ["import timm, mgm_train", "import mgm_train, timm", "import mgm_train.cli, timm"])
def test_timm_knows_the_models_whichever_is_imported_first(order: str) -> None:
    code = f"""{order}
model = timm.create_model("mgm_vit_tiny_patch16_224", num_classes=5, num_frames=4, img_size=32)
assert model.num_classes == 5 and "mgm_vit_base_patch16_224" in timm.list_models("mgm_*")
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_importing_mgm_train_imports_neither_torch_nor_timm() -> None:
    code = "import sys, mgm_train; assert not {'torch', 'timm', 'numba'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_timms_protocol() -> None:
    import timm
    from timm.optim import param_groups_layer_decay

    assert mgm_train.__all__
    model: Any = timm.create_model(
        "mgm_vit_tiny_patch16_224", num_classes=5, num_frames=4, img_size=32, drop_path_rate=0.1, drop_rate=0.1
    )
    model.eval()
    assert [info["module"] for info in model.feature_info] == [f"encoder.blocks.{number}" for number in range(6)]
    assert all(model.get_submodule(info["module"]) for info in model.feature_info)
    assert {info["num_chs"] for info in model.feature_info} == {192}
    scales = [group["lr_scale"] for group in param_groups_layer_decay(model, 0.05, layer_decay=0.5)]
    assert len(set(scales)) == TINY.depth + 2
    assert model.no_weight_decay() == set()
    tokens_BND = model.forward_features(_frames(TINY))
    assert tokens_BND.shape == (2, 8, 192)
    pooled_BD = model.forward_head(tokens_BND, pre_logits=True)
    model.reset_classifier(0)
    torch.testing.assert_close(model(_frames(TINY)), pooled_BD)
    model.reset_classifier(3)
    assert model(_frames(TINY)).shape == (2, 3)
    assert (model.num_classes, model.get_classifier().out_features) == (3, 3)
    with pytest.raises(UserError, match="no weights of mgm_vit_tiny are published"):
        timm.create_model("mgm_vit_tiny_patch16_224", pretrained=True)
    with pytest.raises(UserError, match="has no argument wdith"):
        timm.create_model("mgm_vit_tiny_patch16_224", wdith=3)
