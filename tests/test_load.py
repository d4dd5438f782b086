"""`load` against transformers: its folders, and official checkpoints, give the outputs of its models."""

import argparse
import dataclasses
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from synthetic import pan, write_video
from torch import Tensor, nn

from mgm_prep import extract
from mgm_shared.errors import UserError
from mgm_shared.store import open_store
from mgm_train import load
from mgm_train.checkpoint.foreign import Clip, shape_of
from mgm_train.checkpoint.sources import load_source
from mgm_train.checkpoint.weights import save_weights
from mgm_train.model_config import MODEL_SIZES, ModelConfig
from mgm_train.models.videomae import VideoClassifier, VideoMAE, build, normalise

transformers = pytest.importorskip("transformers")

SETTINGS: dict[str, Any] = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 192,
    "image_size": 48,
    "num_frames": 4,
    "decoder_hidden_size": 24,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 96,
    "layer_norm_eps": 1e-6,
}
TINY = ModelConfig(
    name="tiny",
    width=48,
    depth=2,
    num_heads=3,
    decoder_width=24,
    decoder_depth=1,
    decoder_num_heads=2,
    num_frames=4,
    image_px=48,
)


def _frames(num_clips: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (num_clips, 3, 4, 48, 48), generator=generator, dtype=torch.uint8)


def _theirs(name: str, **changes: Any) -> Any:
    torch.manual_seed(1)
    model = getattr(transformers, name)(transformers.VideoMAEConfig(**SETTINGS | changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.1)
    return model.eval()


def _pixels() -> Tensor:
    return normalise(_frames()).transpose(1, 2)


def test_classifier_of_transformers(tmp_path: Path) -> None:
    names = {0: "left", 1: "right", 2: "up"}
    theirs = _theirs("VideoMAEForVideoClassification", use_mean_pooling=True, num_labels=3, id2label=names)
    theirs.save_pretrained(tmp_path)
    ours = load(tmp_path)
    theirs.fc_norm.eps = 1e-6
    with torch.no_grad():
        torch.testing.assert_close(ours(_frames()), theirs(_pixels()).logits, atol=1e-4, rtol=0)
    assert ours.classes == ["left", "right", "up"]
    assert not ours.training


def test_a_classifier_of_the_first_token_is_refused(tmp_path: Path) -> None:
    _theirs("VideoMAEForVideoClassification", use_mean_pooling=False, num_labels=3).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="classifies by its first token"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["VideoMAEModel", "VideoMAEForPreTraining"])
def test_encoder_of_transformers(tmp_path: Path, name: str) -> None:
    theirs = _theirs(name, use_mean_pooling=False)
    theirs.save_pretrained(tmp_path)
    ours = load(tmp_path)
    encoder = theirs if name == "VideoMAEModel" else theirs.videomae
    with torch.no_grad():
        expected_BND = encoder(_pixels()).last_hidden_state
    clips = [clip.permute(1, 2, 3, 0).numpy() for clip in _frames()]
    torch.testing.assert_close(ours.features(clips, tokens=True), expected_BND, atol=1e-4, rtol=0)
    torch.testing.assert_close(ours.features(clips[0]), expected_BND[0].mean(0), atol=1e-4, rtol=0)
    assert (ours.config.width, ours.config.depth, ours.config.num_heads) == (48, 2, 3)


def _official(state: dict[str, Tensor], is_classifier: bool) -> dict[str, Tensor]:
    """Our weights under the names of the VideoMAE programs, with their separate biases of queries and values."""
    named: dict[str, Tensor] = {}
    for name, tensor in state.items():
        theirs = name.removeprefix("encoder.") if is_classifier else name
        if theirs.endswith("attn.qkv.bias"):
            query, _, value = tensor.chunk(3)
            named[theirs.replace("qkv.bias", "q_bias")] = query
            named[theirs.replace("qkv.bias", "v_bias")] = value
        else:
            named[theirs] = tensor
    return named


@pytest.mark.parametrize("wrapper", ["", "module.", "_orig_mod.", "backbone."])
@pytest.mark.parametrize("key", ["model", "module"])
@pytest.mark.parametrize("is_classifier", [True, False])
def test_official_checkpoint(tmp_path: Path, wrapper: str, key: str, is_classifier: bool) -> None:
    config = dataclasses.replace(TINY, width=64, num_heads=1, decoder_width=64, decoder_num_heads=1)
    torch.manual_seed(0)
    model: nn.Module = VideoClassifier(config, 3) if is_classifier else VideoMAE(config)
    state = {f"{wrapper}{name}": value for name, value in _official(model.state_dict(), is_classifier).items()}
    path = tmp_path / "checkpoint.pth"
    torch.save({key: state, "args": argparse.Namespace(num_frames=4, input_size=48, lr=1e-3), "epoch": 3}, path)
    weights = load_source(path)
    expected = model.state_dict()
    assert weights.state.keys() == expected.keys()
    for name, tensor in weights.state.items():
        torch.testing.assert_close(tensor, expected[name], atol=0, rtol=0)
    assert (weights.model.num_frames, weights.model.image_px) == (4, 48)


def test_a_named_size_is_found_by_its_tensors(tmp_path: Path) -> None:
    size = dataclasses.replace(MODEL_SIZES["vit_tiny"], image_px=48, num_frames=4)
    torch.save({"model": _official(VideoMAE(size).state_dict(), False)}, tmp_path / "a.pth")
    found = load_source(tmp_path / "a.pth").model
    assert dataclasses.replace(found, num_frames=4, image_px=48) == size


@pytest.mark.parametrize("size", MODEL_SIZES)
def test_the_heads_of_a_size_are_found(size: str) -> None:
    """Their number is in no tensor: ViT-H has 16 of 80 columns, all others have 64 columns."""
    with torch.device("meta"):
        state = VideoMAE(MODEL_SIZES[size]).state_dict()
    assert shape_of("a.pth", state, Clip()) == MODEL_SIZES[size]


@pytest.mark.parametrize("key", ["model_ema", "state_dict_ema", "state_dict", None])
def test_where_a_checkpoint_keeps_its_weights(tmp_path: Path, key: str | None) -> None:
    state = _official(VideoClassifier(TINY, 3).state_dict(), True)
    torch.save({key: state, "epoch": 1} if key else state, tmp_path / "a.pth")
    assert load_source(tmp_path / "a.pth").state.keys() == VideoClassifier(TINY, 3).state_dict().keys()


def test_the_model_is_taken_before_its_ema(tmp_path: Path) -> None:
    state = _official(VideoClassifier(TINY, 3).state_dict(), True)
    average = {name: tensor + 1 for name, tensor in state.items()}
    torch.save({"model_ema": average, "model": state}, tmp_path / "a.pth")
    torch.testing.assert_close(load_source(tmp_path / "a.pth").state["head.weight"], state["head.weight"])


@pytest.mark.parametrize("part", ["encoder.", "module.encoder.", "backbone."])
def test_a_whole_classifier_under_a_prefix(tmp_path: Path, part: str) -> None:
    state = _official(VideoClassifier(TINY, 3).state_dict(), True)
    torch.save({"module": {f"{part}{name}": tensor for name, tensor in state.items()}}, tmp_path / "a.pth")
    assert load_source(tmp_path / "a.pth").state.keys() == VideoClassifier(TINY, 3).state_dict().keys()


@pytest.mark.parametrize("suffix", [".safetensors", ""])
def test_official_names_in_safetensors(tmp_path: Path, suffix: str) -> None:
    """Any name of the file: what it is, its first bytes tell."""
    state = {f"_orig_mod.{name}": t for name, t in _official(VideoClassifier(TINY, 3).state_dict(), True).items()}
    save_file(state, tmp_path / f"weights{suffix}")
    assert len(load_source(tmp_path / f"weights{suffix}").classes) == 3


@pytest.mark.parametrize("is_compiled", [False, True])
@pytest.mark.parametrize("form", ["shards", "pickle"])
def test_other_files_of_transformers(tmp_path: Path, form: str, is_compiled: bool) -> None:
    """Shards with an index; the pickle of older versions; the names of a compiled model."""
    theirs = _theirs("VideoMAEForVideoClassification", use_mean_pooling=True, num_labels=3)
    theirs.save_pretrained(tmp_path, max_shard_size="100KB")
    expected = load_source(tmp_path).state
    files = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(files) > 1
    prefix = "_orig_mod." if is_compiled else ""
    if form == "shards":
        for file in files:
            save_file({f"{prefix}{name}": tensor for name, tensor in load_file(file).items()}, file)
    else:
        for file in tmp_path.glob("model*"):
            file.unlink()
        state = {f"{prefix}{name}": tensor for name, tensor in theirs.state_dict().items()}
        torch.save(state, tmp_path / "pytorch_model.bin")
    found = load_source(tmp_path).state
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], atol=0, rtol=0)


def test_half_precision_becomes_float32(tmp_path: Path) -> None:
    theirs = _theirs("VideoMAEModel", use_mean_pooling=False).half()
    theirs.save_pretrained(tmp_path)
    weights = load_source(tmp_path)
    assert {tensor.dtype for tensor in weights.state.values()} == {torch.float32}
    ours, half = weights.state["encoder.norm.weight"], theirs.layernorm.weight
    torch.testing.assert_close(ours, half.float(), atol=0, rtol=0)


def test_a_table_of_sines_is_dropped_and_another_one_refused(tmp_path: Path) -> None:
    from mgm_train.models.pos_embed import sinusoid_table

    config = dataclasses.replace(TINY, width=64, num_heads=1)
    state = _official(VideoClassifier(config, 3).state_dict(), True)
    options = argparse.Namespace(num_frames=4, input_size=48)
    torch.save({"model": state | {"pos_embed": sinusoid_table(18, 64)}, "args": options}, tmp_path / "a.pth")
    load_source(tmp_path / "a.pth")
    torch.save({"model": state | {"pos_embed": torch.zeros(1, 18, 64)}, "args": options}, tmp_path / "a.pth")
    with pytest.raises(UserError, match="learnt positions"):
        load_source(tmp_path / "a.pth")


class Evil:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return Path.touch, (Path("must-not-exist"),)  # type: ignore[return-value]


def test_a_pickle_with_code_is_refused_and_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": {"a": torch.zeros(1)}, "args": Evil()}, "evil.pth")
    with pytest.raises(UserError, match=r"evil.pth is refused: it names \S+, and unpickling that could run code"):
        load_source("evil.pth")
    Path("plain.pth").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(UserError, match="refused"):
        load_source("plain.pth")
    assert not Path("must-not-exist").exists()


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
@pytest.mark.parametrize("name", ["model.safetensors", "model.pth"])
def test_a_truncated_file_is_one_line(tmp_path: Path, name: str, share: float) -> None:
    path = tmp_path / name
    state = {f"encoder.{key}": value for key, value in VideoMAE(TINY).encoder.state_dict().items()}
    if path.suffix == ".pth":
        torch.save({"model": state}, path)
    else:
        save_file(state, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match=name):
        load_source(path)


def test_all_differing_tensors_are_listed(tmp_path: Path) -> None:
    config = dataclasses.replace(TINY, width=64, num_heads=1)
    state = _official(VideoClassifier(config, 3).state_dict(), True)
    del state["blocks.1.mlp.fc1.bias"]
    state["cls_token"] = torch.zeros(1, 1, 64)
    state["blocks.0.norm1.weight"] = torch.zeros(32)
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(UserError) as raised:
        load_source(tmp_path / "a.pth")
    text = str(raised.value)
    assert "1 missing: encoder.blocks.1.mlp.fc1.bias" in text
    assert "1 unknown: cls_token" in text
    assert "1 of another shape: encoder.blocks.0.norm1.weight (32,) instead of (64,)" in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ({"model": {}}, "no weights"),
        ({"model": {"fc.weight": torch.zeros(3, 3)}}, "no VideoMAE"),
        ({"model": {"patch_embed.proj.weight": torch.zeros(8, 3, 16, 16)}}, "no VideoMAE"),
        ([torch.zeros(1)], "holds no weights but a list"),
    ],
)
def test_checkpoints_of_something_else(tmp_path: Path, content: object, match: str) -> None:
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(UserError, match=match):
        load_source(tmp_path / "a.pth")


def test_folder_of_another_architecture(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "timesformer"}))
    with pytest.raises(UserError, match="'timesformer', not videomae"):
        load_source(tmp_path)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("videos")
    write_video(folder / "a.mp4", pan((2, 0), num_frames=24, height=96, width=128))
    extract(folder, folder / "a.store")
    return folder / "a.mp4", folder / "a.store"


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    model = build(lambda: VideoClassifier(TINY, 3, head_init_scale=10.0), seed=0)
    path = tmp_path / "weights.safetensors"
    save_weights(path, model.state_dict(), TINY, {"labels": json.dumps(["left", "right", "up"])})
    return path


def test_a_file_a_stored_video_and_its_frames_have_the_same_features(
    store: tuple[Path, Path], classifier: Path
) -> None:
    model = load(classifier)
    path, store_path = store
    video = open_store(store_path)["a.mp4"]
    of_file, of_video, of_frames = model.features([path, video, video.frames[:]])
    torch.testing.assert_close(of_video, of_frames, atol=1e-5, rtol=0)
    assert torch.cosine_similarity(of_file, of_video, dim=0) > 0.999
    frames_THWC = video.frames[:]
    other = model.features(np.ascontiguousarray(frames_THWC[:, ::-1]))
    assert (other - of_video).abs().max() > 10 * (of_file - of_video).abs().max()


def test_predict_ranks_the_classes_by_mean_probability(store: tuple[Path, Path], classifier: Path) -> None:
    model = load(classifier)
    ranked = model.predict(store[0], num_temporal_views=3, num_spatial_views=3)
    clips_VCTHW = model.clips(store[0], views=(3, 3))
    assert clips_VCTHW.shape == (9, 3, 4, 48, 48)
    with torch.no_grad():
        expected_K = model(clips_VCTHW).softmax(1).mean(0)
    assert [name for name, _ in ranked] == [model.classes[k] for k in expected_K.argsort(descending=True).tolist()]
    assert sum(probability for _, probability in ranked) == pytest.approx(1)
    (first,) = model.predict([store[0]], top=1)
    assert len(first) == 1


def test_bad_sources_are_one_line(tmp_path: Path, classifier: Path, store: tuple[Path, Path]) -> None:
    model = load(classifier)
    (tmp_path / "text.mp4").write_text("no video")
    playlist = tmp_path / "list.mp4"
    playlist.write_text(f"ffconcat version 1.0\nfile {store[0]}\n")
    for path in ("text.mp4", "list.mp4", "missing.mp4"):
        with pytest.raises(UserError, match=path):
            model.features(tmp_path / path)
    with pytest.raises(UserError, match=r"uint8 \(T, H, W, 3\)"):
        model.features(np.zeros((4, 48, 48, 3), np.float32))
    save_weights(tmp_path / "e.safetensors", build(lambda: VideoMAE(TINY), seed=0).state_dict(), TINY, {})
    encoder = load(tmp_path / "e.safetensors")
    with pytest.raises(UserError, match="no classifier"):
        encoder.predict(store[0])
