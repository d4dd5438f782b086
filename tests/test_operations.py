"""RandAugment of clips against timm's own, picture by picture by PIL: pixels, and what is drawn."""

from collections import Counter
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from timm.data.auto_augment import NAME_TO_OP

from mgm_train.data.augmentation.operations import (
    FILL_C,
    GEOMETRIC,
    Operation,
    apply_operations,
    draw_operations,
    global_random,
    timm_rand_augment,
)

RANDAUG = "rand-m7-n4-mstd0.5-inc1"
COLOURS = [
    *map(Operation, ("AutoContrast", "Equalize", "Invert")),
    *(Operation("PosterizeIncreasing", (bits,)) for bits in (1, 2, 4)),
    *(Operation("SolarizeIncreasing", (threshold,)) for threshold in (0, 77, 256)),
    *(Operation("SolarizeAdd", (add,)) for add in (0, 77, 110)),
    *(
        Operation(f"{kind}{variant}", (factor,))
        for kind in ("Color", "Contrast", "Brightness", "Sharpness")
        for variant, factor in (("", 0.1), ("Increasing", 0.37), ("Increasing", 1.0), ("", 1.63), ("", 1.9))
    ),
    Operation("Desaturate", (0.8,)),
    Operation("GaussianBlur", (1.2,)),
]
SHIFTS = [
    *(Operation(f"Shear{axis}", (factor,)) for axis in "XY" for factor in (-0.3, 0.0, 0.21)),
    *(Operation(f"Translate{axis}Rel", (share,)) for axis in "XY" for share in (-0.45, 0.3111, 0.5, 1.5)),
    *(Operation(f"Translate{axis}", (pixels,)) for axis in "XY" for pixels in (-12.25, 7.0)),
    *(Operation("Rotate", (degrees,)) for degrees in (-30.0, 0.0, 17.3)),
]


def texture(num_frames: int, height: int, width: int) -> Any:
    """Frames of different contrast with edges and noise, (3, T, H, W)."""
    rng = np.random.default_rng(3)
    frames_THWC = rng.integers(0, 256, (num_frames, height // 4, width // 4, 3), np.uint8)
    large = [cv2.resize(frame_HWC, (width, height), interpolation=cv2.INTER_CUBIC) for frame_HWC in frames_THWC]
    for t, frame_HWC in enumerate(large):
        frame_HWC[5 : 9 + t, 3:12] = (250, 3, 90)
        large[t] = (frame_HWC * (0.3 + 0.7 * t / num_frames) + 10 * t).clip(0, 255).astype(np.uint8)
    return np.ascontiguousarray(np.stack(large).transpose(3, 0, 1, 2))


FRAMES_CTHW = texture(4, 48, 64)


def by_pil(frames_CTHW: Any, operation: Operation) -> Any:
    """What timm does, picture by picture."""
    more = {"fillcolor": FILL_C, "resample": Image.Resampling.BICUBIC} if operation.kind in GEOMETRIC else {}
    pictures = map(Image.fromarray, np.ascontiguousarray(frames_CTHW.transpose(1, 2, 3, 0)))
    change: Any = NAME_TO_OP[operation.name]
    changed = [change(picture, *operation.arguments, **dict(more)) for picture in pictures]
    return np.stack([np.asarray(picture) for picture in changed]).transpose(3, 0, 1, 2)


@pytest.mark.parametrize("operation", [*COLOURS, *SHIFTS], ids=str)
def test_an_operation_is_that_of_pil(operation: Operation) -> None:
    given = FRAMES_CTHW.copy()
    ours, theirs = apply_operations(given, [operation]), by_pil(FRAMES_CTHW, operation)
    assert np.array_equal(given, FRAMES_CTHW)
    difference = np.abs(ours.astype(int) - theirs)
    # Positions on a border may round to either side of it.
    assert difference.max() <= 1 or (difference > 1).mean() < 1e-3
    assert 10 * np.log10(255**2 / max((difference**2).mean(), 1e-9)) > 45


@pytest.mark.parametrize("operation", [Operation("AutoContrast"), Operation("Equalize"), Operation("Contrast", (1.6,))])
@pytest.mark.parametrize("level", [0, 9, 255])
def test_a_picture_of_one_level_is_changed_as_by_pil(operation: Operation, level: int) -> None:
    flat_CTHW = np.full((3, 2, 16, 16), level, np.uint8)
    assert np.array_equal(apply_operations(flat_CTHW, [operation]), by_pil(flat_CTHW, operation))


def test_a_posterized_picture_without_a_bit_is_black() -> None:
    """Magnitude 10 of timm, where some versions of Pillow raise an error."""
    assert not apply_operations(FRAMES_CTHW, [Operation("PosterizeIncreasing", (0,))]).any()


def test_operations_follow_each_other_as_in_pil() -> None:
    rng = np.random.default_rng(0)
    every = [*COLOURS, *SHIFTS]
    for _ in range(60):
        operations = [every[k] for k in rng.integers(len(every), size=4)]
        theirs = FRAMES_CTHW
        for operation in operations:
            theirs = by_pil(theirs, operation)
        difference = np.abs(apply_operations(FRAMES_CTHW, operations).astype(int) - theirs)
        # A level of difference may be spread by what follows, such as Equalize or Posterize.
        assert np.median(difference) == 0, operations
        assert difference.mean() < 1.5, operations


@pytest.mark.parametrize("config", [RANDAUG, "rand-m9-n2-mstd0.5", "rand-m5-n3-p0.8-mstd101-inc1", "rand-n3-tweights"])
def test_timm_draws_the_same_with_the_same_seed(config: str) -> None:
    picture_HWC = np.ascontiguousarray(FRAMES_CTHW[:, 0].transpose(1, 2, 0))[:, :48].copy()
    frames_CTHW = np.ascontiguousarray(picture_HWC.transpose(2, 0, 1))[:, None]
    for seed in range(25):
        operations = draw_operations(config, 48, np.random.default_rng(seed))
        with global_random(int(np.random.default_rng(seed).integers(2**32))):
            theirs = np.asarray(timm_rand_augment(config, 48)(Image.fromarray(picture_HWC))).astype(int)
        ours = apply_operations(frames_CTHW, operations)[:, 0].transpose(1, 2, 0)
        assert np.abs(ours - theirs).mean() < 1.5, operations


def test_the_operations_drawn_are_distributed_as_timm_says() -> None:
    """Four places, each of 15 operations equally often, kept with probability ½, magnitude 7 ± 0.5."""
    rng = np.random.default_rng(1)
    drawn = [draw_operations(RANDAUG, 224, rng) for _ in range(3000)]
    lengths = Counter(map(len, drawn))
    assert [lengths[k] / 3000 for k in range(5)] == pytest.approx([1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16], abs=0.03)
    named: dict[str, list[float]] = {}
    for operation in (operation for operations in drawn for operation in operations):
        named.setdefault(operation.name, []).append(operation.arguments[0] if operation.arguments else 0.0)
    assert len(named) == 15
    assert [len(values) / 6000 for values in named.values()] == pytest.approx([1 / 15] * 15, abs=0.012)
    # 7 of 10 on the scale of each: 30 degrees, 0.3, 0.45, and 1 ± 0.9.
    for name, middle, center in (("Rotate", 21, 0), ("ShearX", 0.21, 0), ("TranslateYRel", 0.315, 0)):
        sizes = np.abs(np.array(named[name]) - center)
        assert sizes.mean() == pytest.approx(middle, rel=0.03)
        assert sizes.std() == pytest.approx(middle / 14, rel=0.2)
        assert np.mean(np.array(named[name]) > 0) == pytest.approx(0.5, abs=0.1)
    factors = np.array(named["ColorIncreasing"])
    assert np.abs(factors - 1).mean() == pytest.approx(0.63, rel=0.03)
    assert set(named["PosterizeIncreasing"]) == {1, 2}
