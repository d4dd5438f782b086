"""Settings: the paper's numbers, and one line for each mistake."""

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from mgm_shared.config import RENAMED_OPTIONS, Config, extra_of
from mgm_shared.errors import UserError
from mgm_train.config import (
    MASKS,
    EvaluateConfig,
    FinetuneConfig,
    PretrainConfig,
    ProbeConfig,
    TrainConfig,
)
from mgm_train.masking.strategies import STRATEGIES, make_mask
from mgm_train.model_config import MODEL_SIZES


def test_defaults_are_the_papers_tables() -> None:
    pretrain = PretrainConfig()
    assert (pretrain.base_lr, pretrain.weight_decay, pretrain.betas) == (1.5e-4, 0.05, (0.9, 0.95))
    assert (pretrain.batch_size, pretrain.warmup_epochs, pretrain.mask_ratio) == (512, 40, 0.75)
    finetune = FinetuneConfig()
    assert (finetune.base_lr, finetune.layer_decay, finetune.betas) == (1e-3, 0.75, (0.9, 0.999))
    assert (finetune.batch_size, finetune.epochs, finetune.warmup_epochs, finetune.repeats) == (128, 75, 5, 2)


def test_every_mask_can_be_asked_for() -> None:
    assert set(MASKS) == set(STRATEGIES)


@pytest.mark.parametrize("configuration", [PretrainConfig, FinetuneConfig, EvaluateConfig, ProbeConfig])
def test_every_field_has_help_a_default_and_a_heading(configuration: type[Config]) -> None:
    configuration()
    for name, field in configuration.model_fields.items():
        assert field.description, name
        assert not field.is_required(), name
        assert extra_of(field)["group"] != "Options", name


def test_another_default_keeps_bounds_and_help() -> None:
    own, base = FinetuneConfig.model_fields["batch_size"], TrainConfig.model_fields["batch_size"]
    assert (own.default, base.default) == (128, 512)
    assert own.description == base.description
    with pytest.raises(UserError, match="batch-size is 0 but must be at least 1"):
        FinetuneConfig(batch_size=0)


def test_what_was_given_is_known() -> None:
    config = PretrainConfig(batch_size=512, mask="tube")
    assert config.model_fields_set == {"batch_size", "mask"}
    assert config.replace(epochs=900).model_fields_set == {"batch_size", "mask", "epochs"}
    with pytest.raises(UserError, match="epochs is 0"):
        config.replace(epochs=0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"batch_size": 4.9}, "batch-size is 4.9 but must be a whole number"),
        ({"batch_size": True}, "batch-size is True but must be a whole number"),
        ({"num_workers": 1.5}, "num-workers is 1.5 but must be auto or a whole number"),
        ({"num_workers": -1}, "num-workers is -1 but must be auto or at least 0"),
        ({"num_workers": "many"}, "num-workers is 'many' but must be auto or a whole number"),
        ({"decode_share": 1.5}, "decode-share is 1.5 but must be auto or at most 1"),
        ({"decode_share": "half"}, "decode-share is 'half' but must be auto or a number"),
        ({"num_workers": True}, "num-workers is True but must be auto or a whole number"),
        ({"compile": "yes"}, "compile is 'yes' but must be auto or true or false"),
        ({"precision": "fp16", "fsdp": True}, "precision is 'fp16' but must be bf16 or fp32 with fsdp"),
        ({"epochs": None}, "epochs is None but must be a whole number"),
        ({"batch_size": [4]}, "batch-size is (4,) but must be a whole number"),
        ({"flip": 1}, "flip is 1 but must be true or false"),
        ({"flip": "no"}, "flip is 'no' but must be true or false"),
        ({"base_lr": "fast"}, "base-lr is 'fast' but must be a number"),
        ({"base_lr": float("nan")}, "base-lr is nan"),
        ({"base_lr": float("inf")}, "base-lr is inf but must be a finite number"),
        ({"model": 5}, "model is 5 but must be one of vit_tiny, vit_small"),
        ({"boxes": 7}, "boxes is 7 but must be text"),
        ({"betas": 0.9}, "betas is 0.9 but must be a list"),
        ({"betas": [0.9, "x"]}, "betas is 'x' but must be a number"),
        ({"epoch": 3}, "unknown option epoch; the options are: model, "),
        ({"accumulate": 3}, "accumulate is now called grad-accum-steps"),
        ({"max_bad_clips": 3}, "max-bad-clips is now called max-unreadable-videos"),
    ],
)
def test_a_value_of_another_type_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        PretrainConfig(**values)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_renamed_options_lead_to_options_that_exist() -> None:
    known = set(PretrainConfig.option_names()) | set(FinetuneConfig.option_names()) | set(ProbeConfig.option_names())
    assert set(RENAMED_OPTIONS.values()) <= known
    assert not set(RENAMED_OPTIONS) & known


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": "vit_enormous"}, "model is 'vit_enormous' but must be one of vit_tiny"),
        ({"num_frames": 15}, "num-frames is 15"),
        ({"image_px": 100}, "image-px is 100"),
        ({"batch_size": 10, "grad_accum_steps": 4}, "batch-size is 10"),
        ({"warmup_epochs": 9, "epochs": 8}, "warmup-epochs is 9"),
        ({"min_lr": 1.0}, "min-lr is 1.0"),
        ({"betas": [0.9]}, "betas"),
        ({"betas": [0.9, 1.0]}, "betas"),
        ({"device": "tpu"}, "device is 'tpu'"),
        ({"base_lr": -1.0}, "base-lr is -1.0"),
        ({"log_every_steps": 0}, "log-every-steps is 0"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_setting(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        PretrainConfig(**values)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "values", [{"mask": "mist"}, {"mask_ratio": 1.0}, {"mask_jitter": -0.1}, {"guidance": "stars"}]
)
def test_mask_mistakes(values: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(values)).replace("_", "-")):
        PretrainConfig(**values)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(
    ("image_px", "mask_ratio", "num_masked", "num_patches"),
    [
        (16, 0.001, 0, 1),
        (16, 0.75, 0, 1),
        (16, 0.999, 0, 1),
        (32, 0.2499, 0, 4),
        (48, 0.11, 0, 9),
        (224, 0.005, 0, 196),
        (32, 0.99999, 4, 4),
        (224, 0.999999, 196, 196),
    ],
)
def test_a_mask_of_no_token_or_of_all_is_refused(
    mask: Any, image_px: int, mask_ratio: float, num_masked: int, num_patches: int
) -> None:
    with pytest.raises(UserError) as caught:
        PretrainConfig(mask=mask, image_px=image_px, mask_ratio=mask_ratio)
    assert str(caught.value).startswith(f"mask-ratio is {mask_ratio} but must be")
    assert f"the {num_patches} patches of a slice (image-px {image_px}); it masks {num_masked}" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("image_px", "mask_ratio"), [(32, 0.25), (32, 0.999), (48, 0.12), (224, 0.0052), (224, 0.9999)]
)
@pytest.mark.parametrize("mask", MASKS)
def test_a_mask_of_at_least_one_token_is_taken(mask: Any, image_px: int, mask_ratio: float) -> None:
    """And the strategy masks some and leaves some, as the configuration promised."""
    config = PretrainConfig(mask=mask, image_px=image_px, mask_ratio=mask_ratio, num_frames=4)
    strength_TYX = np.random.default_rng(0).random((4, image_px // 8, image_px // 8), np.float32)
    mask_N = make_mask(config.mask, strength_TYX, ratio=config.mask_ratio, rng=np.random.default_rng(0))
    assert 0 < mask_N.sum() < len(mask_N)


@pytest.mark.parametrize("values", [{"drop_path": 1.0}, {"mixup": -1.0}, {"sampling": "thick"}, {"layer_decay": 0.0}])
def test_finetuning_mistakes(values: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(values)).replace("_", "-")):
        FinetuneConfig(**values)


def test_sizes_are_videomaes() -> None:
    table = {
        "vit_small": (384, 12, 6, 192, 4, 3),
        "vit_base": (768, 12, 12, 384, 4, 6),
        "vit_large": (1024, 24, 16, 512, 12, 8),
        "vit_huge": (1280, 32, 16, 640, 12, 8),
    }
    for name, expected in table.items():
        size = MODEL_SIZES[name]
        encoder = (size.width, size.depth, size.num_heads)
        assert (*encoder, size.decoder_width, size.decoder_depth, size.decoder_num_heads) == expected
        assert size.grid.num_tokens == 1568


def test_configuration_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        TrainConfig().seed = 1
