"""Settings: the paper's numbers, and one line for each mistake."""

import dataclasses

import pytest

from mgm_shared.errors import UserError
from mgm_train.config import MASKS, MODEL_SIZES, EvaluateConfig, FinetuneConfig, PretrainConfig, TrainConfig
from mgm_train.masking.strategies import STRATEGIES


def test_defaults_are_the_papers_tables() -> None:
    pretrain = PretrainConfig()
    assert (pretrain.base_lr, pretrain.weight_decay, pretrain.betas) == (1.5e-4, 0.05, (0.9, 0.95))
    assert (pretrain.batch_size, pretrain.warmup_epochs, pretrain.mask_ratio) == (512, 40, 0.75)
    finetune = FinetuneConfig()
    assert (finetune.base_lr, finetune.layer_decay, finetune.betas) == (1e-3, 0.75, (0.9, 0.999))
    assert (finetune.batch_size, finetune.epochs, finetune.warmup_epochs, finetune.repeats) == (128, 75, 5, 2)


def test_every_mask_can_be_asked_for() -> None:
    assert set(MASKS) == set(STRATEGIES)


@pytest.mark.parametrize("configuration", [PretrainConfig, FinetuneConfig, EvaluateConfig])
def test_every_field_has_help_and_a_default(configuration: type) -> None:
    for item in dataclasses.fields(configuration):
        assert item.metadata["help"], item.name
        assert item.default is not dataclasses.MISSING, item.name


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
def test_a_mistake_is_one_line_that_names_the_setting(values: dict, message: str) -> None:
    with pytest.raises(UserError) as caught:
        PretrainConfig.from_dict(values)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "values", [{"mask": "mist"}, {"mask_ratio": 1.0}, {"mask_jitter": -0.1}, {"guidance": "stars"}]
)
def test_mask_mistakes(values: dict) -> None:
    with pytest.raises(UserError, match=next(iter(values)).replace("_", "-")):
        PretrainConfig(**values)


@pytest.mark.parametrize("values", [{"drop_path": 1.0}, {"mixup": -1.0}, {"sampling": "thick"}, {"layer_decay": 0.0}])
def test_finetuning_mistakes(values: dict) -> None:
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
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainConfig().seed = 1  # type: ignore[misc]
