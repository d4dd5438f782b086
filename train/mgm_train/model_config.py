"""Shapes of models, and the named sizes. torch is not imported here."""

from dataclasses import dataclass, replace

from mgm_shared.errors import UserError
from mgm_shared.geometry import Patch, TokenGrid


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Everything that decides the shapes of a model's weights and of its position table.

    `trained_frames` and `trained_px` are the clip that the positions were made for, where it is another one than this
    model's: they are interpolated (see models/pos_embed.py). 0 is this model's own.

    `outputs` are the targets that the decoder predicts, with their number of values; none stands for the pixels of a
    patch. `motion_outputs` are those of a second decoder, of the same width and of `motion_decoder_depth` blocks.
    """

    name: str
    width: int
    depth: int
    num_heads: int
    decoder_width: int
    decoder_depth: int
    decoder_num_heads: int
    num_frames: int = 16
    image_px: int = 224
    attention: str = "joint"
    patch_px: int = 16
    tubelet: int = 2
    positions: str = "sinusoid"
    decoder: str = "joint"
    trained_frames: int = 0
    trained_px: int = 0
    outputs: tuple[tuple[str, int], ...] = ()
    motion_outputs: tuple[tuple[str, int], ...] = ()
    motion_decoder_depth: int = 0

    def __post_init__(self) -> None:
        # A weights file keeps them as lists.
        for name in ("outputs", "motion_outputs"):
            object.__setattr__(self, name, tuple((str(target), int(width)) for target, width in getattr(self, name)))

    @property
    def decoder_widths(self) -> tuple[int, ...]:
        """The number of values of each target of the decoder."""
        return tuple(width for _, width in self.outputs) or (self.patch.num_values,)

    @property
    def motion_widths(self) -> tuple[int, ...]:
        """The number of values of each target of the second decoder."""
        return tuple(width for _, width in self.motion_outputs)

    @property
    def target_widths(self) -> dict[str, int]:
        """The number of values of each target, in the order of the model's outputs."""
        names = [name for name, _ in self.outputs] or ["pixels"]
        return dict(zip(names, self.decoder_widths, strict=True)) | dict(self.motion_outputs)

    @property
    def patch(self) -> Patch:
        """What a token covers."""
        return Patch(px=self.patch_px, frames=self.tubelet)

    @property
    def grid(self) -> TokenGrid:
        return TokenGrid.of_clip(self.num_frames, self.image_px, self.image_px, self.patch)

    @property
    def trained_grid(self) -> TokenGrid:
        """The grid that the positions were made for."""
        side_px = self.trained_px or self.image_px
        return TokenGrid.of_clip(self.trained_frames or self.num_frames, side_px, side_px, self.patch)

    def after(self, earlier: "ModelConfig") -> "ModelConfig":
        """This model with the positions that `earlier`, whose weights it takes over, was trained with."""
        frames, side_px = earlier.trained_frames or earlier.num_frames, earlier.trained_px or earlier.image_px
        is_same = (frames, side_px) == (self.num_frames, self.image_px)
        return replace(self, trained_frames=0 if is_same else frames, trained_px=0 if is_same else side_px)


def _size(name: str, *encoder_and_decoder: int) -> ModelConfig:
    width, depth, num_heads, decoder_width, decoder_depth, decoder_num_heads = encoder_and_decoder
    return ModelConfig(
        name=name,
        width=width,
        depth=depth,
        num_heads=num_heads,
        decoder_width=decoder_width,
        decoder_depth=decoder_depth,
        decoder_num_heads=decoder_num_heads,
    )


# Width, depth, heads of the encoder, then of the decoder: VideoMAE's, but for vit_tiny, which is for a CPU.
MODEL_SIZES = {
    size.name: size
    for size in (
        _size("vit_tiny", 192, 6, 3, 96, 2, 3),
        _size("vit_small", 384, 12, 6, 192, 4, 3),
        _size("vit_base", 768, 12, 12, 384, 4, 6),
        _size("vit_large", 1024, 24, 16, 512, 12, 8),
        _size("vit_huge", 1280, 32, 16, 640, 12, 8),
    )
}


def model_config(name: str, *, num_frames: int = 16, image_px: int = 224, attention: str = "joint") -> ModelConfig:
    """Configuration of a named model size for clips of num_frames × image_px × image_px. UserError for another name."""
    if name not in MODEL_SIZES:
        raise UserError(f"there is no model {name!r}; there are: {', '.join(MODEL_SIZES)}")
    return replace(MODEL_SIZES[name], num_frames=num_frames, image_px=image_px, attention=attention)
