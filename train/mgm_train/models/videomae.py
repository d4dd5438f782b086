"""The video masked autoencoder of pretraining, and the classifier of fine-tuning with the same encoder (paper §3.1).

Axes: B clips · C colours · T frames · H,W pixels · N tokens, flattened t,h,w · V visible tokens · M masked tokens
(N = V + M, unless the mask leaves tokens out) · K tokens picked, or classes · D width of the encoder · E width of the
decoder · Q pixels of a patch (2·16·16) · P values of the targets, such as Q·3 of pixels, colour fastest · R pairs of
values that rotary positions
turn, 2 = (cosine, sine).
Shapes, initial weights and the epsilon of the norms are VideoMAE's.
Tokens are picked with sorted index tensors, never with boolean masks: nothing waits for the GPU, and torch.compile
keeps one graph.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, TypeVar

import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import trunc_normal_
from torch import Tensor, nn
from torch.nn import functional as F

from mgm_shared.geometry import Patch, TokenGrid
from mgm_train.model_config import ModelConfig
from mgm_train.models.attention import Blocks, LayerNorm
from mgm_train.models.cross_attention import CrossBlocks
from mgm_train.models.divided_attention import DividedBlocks
from mgm_train.models.pos_embed import position_table
from mgm_train.models.rope import rotation_table

ENCODER_PREFIX = "encoder."
# Standard deviation of the truncated normals of VideoMAE's initial weights.
INIT_STD = 0.02

Module = TypeVar("Module", bound=nn.Module)


def split_mask(mask_BN: Tensor, num_masked: int, num_left_out: int = 0) -> tuple[Tensor, Tensor]:
    """Indices (B, V) of the visible and (B, M) of the masked tokens, each in ascending order.

    The mask is bool, True = masked, or int8: −1 left out, 0 visible, 1 masked. Every clip must have exactly
    `num_masked` masked tokens, and `num_left_out` that are left out. They are arguments because counting would wait for
    the GPU.
    """
    order_BN = mask_BN.to(torch.int8).argsort(dim=1, stable=True)
    first_masked = mask_BN.shape[1] - num_masked
    return order_BN[:, num_left_out:first_masked], order_BN[:, first_masked:]


def pick(values_BNX: Tensor, index_BK: Tensor) -> Tensor:
    """Gather the rows `index_BK` of each clip, (B, K, X). Values of shape (1, N, X) are shared by all clips."""
    if len(values_BNX) == 1:
        return values_BNX[0][index_BK]
    clip_B1 = torch.arange(len(index_BK), device=index_BK.device)[:, None]
    return values_BNX[clip_B1, index_BK]


def patchify(frames_BCTHW: Tensor, patch: Patch) -> Tensor:
    """Split frames into patches, (B, N, 3, Q): tokens in the order t, h, w, pixels in the order time, row, column."""
    split = frames_BCTHW.unflatten(4, (-1, patch.px)).unflatten(3, (-1, patch.px)).unflatten(2, (-1, patch.frames))
    pixels_BN3Q: Tensor = split.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(5).flatten(1, 3)
    return pixels_BN3Q


def normalise(frames_BCX: Tensor, colour_axis: int = 1) -> Tensor:
    """Normalise uint8 values to float32 by ImageNet's mean and std of each colour; the colours are on `colour_axis`."""
    frames_BCX = frames_BCX.to(torch.float32, copy=True)
    # Python numbers, because copying a tensor of means to the GPU would wait for it.
    for colour, (mean, std) in enumerate(zip(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, strict=True)):
        frames_BCX.select(colour_axis, colour).mul_(1 / (255 * std)).sub_(mean / std)
    return frames_BCX


def grey_levels(values_BCX: Tensor, colour_axis: int = 1) -> Tensor:
    """The values 0 … 255 of normalised ones, float32: the inverse of `normalise`."""
    values_BCX = values_BCX.to(torch.float32, copy=True)
    for colour, (mean, std) in enumerate(zip(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, strict=True)):
        values_BCX.select(colour_axis, colour).mul_(255 * std).add_(255 * mean)
    return values_BCX


def _init_for_pretraining(module: nn.Module) -> None:
    """Xavier's uniform weights and zero biases in linear layers, as in VideoMAE's pretraining model."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def init_for_classification(module: nn.Module) -> None:
    """Truncated normal weights and zero biases in linear layers, as in VideoMAE's fine-tuning model.

    The bounds are timm's ±2, 100 standard deviations away.
    """
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=INIT_STD)
        nn.init.zeros_(module.bias)


class TubeletEmbedding(nn.Module):
    """Patch embedding: (B, C, T, H, W) → (B, N, D), or → (B, V, D) for the tokens `visible_BV` only.

    uint8 frames are normalised here, after the masked patches are dropped. Float frames must be normalised already.
    """

    def __init__(self, width: int, patch: Patch) -> None:
        super().__init__()
        self.patch = patch
        side = (patch.frames, patch.px, patch.px)
        self.proj = nn.Conv3d(3, width, kernel_size=side, stride=side)

    def forward(self, frames_BCTHW: Tensor, visible_BV: Tensor | None = None) -> Tensor:
        # A convolution whose stride equals its kernel is a matrix product, and that can skip the masked patches: 3.4
        # times as fast as Conv3d followed by dropping (ratio 0.75, one CPU core, width 192, 16×112² clips).
        patches_BN3Q = patchify(frames_BCTHW, self.patch)
        if visible_BV is not None:
            patches_BN3Q = pick(patches_BN3Q, visible_BV)
        if patches_BN3Q.dtype == torch.uint8:
            patches_BN3Q = normalise(patches_BN3Q, colour_axis=2)
        return F.linear(patches_BN3Q.flatten(2), self.proj.weight.flatten(1), self.proj.bias)


def _rotation(config: ModelConfig, head_width: int, grid: TokenGrid | None = None) -> Tensor | None:
    """Rotary positions (1, N, R, 2) of all tokens for heads of this width; None for a model with other positions."""
    if config.positions != "rope3d":
        return None
    return rotation_table(grid or config.grid, config.trained_grid, head_width)


@lru_cache(maxsize=32)
def _tables_of(grid: TokenGrid, config: ModelConfig, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """The encoder's positions and rotary positions for clips of another grid, kept for the next clip of it."""
    # Such a clip is first met in a test; a table of inference mode could not be used in training.
    with torch.inference_mode(False), torch.no_grad():
        table_1ND = position_table(grid, config.trained_grid, config.width, config.positions)
        rotation_1NR2 = _rotation(config, config.width // config.num_heads, grid)
        return table_1ND.to(device), None if rotation_1NR2 is None else rotation_1NR2.to(device)


def _set_buffer(module: nn.Module, name: str, table: Tensor | None) -> None:
    """Set a buffer that no checkpoint contains; a new table goes to the device of the one that it replaces."""
    old = getattr(module, name, None)
    module.register_buffer(name, table if table is None or old is None else table.to(old.device), persistent=False)


class Encoder(nn.Module):
    """Patch embedding, positions, blocks, and a last norm if `has_norm`. All models name its parameters alike.

    Clips may have another height and width than the configuration's: positions are interpolated. A clip of one slice
    has the positions of slice 0.
    """

    position_1ND: Tensor
    rotation_1NR2: Tensor | None

    def __init__(self, config: ModelConfig, *, has_norm: bool, drop_path: float = 0.0) -> None:
        super().__init__()
        self.patch_embed = TubeletEmbedding(config.width, config.patch)
        self.blocks: Blocks | DividedBlocks
        if config.attention == "divided":
            self.blocks = DividedBlocks(config.width, config.depth, config.num_heads, config.grid, drop_path)
        else:
            self.blocks = Blocks(config.width, config.depth, config.num_heads, drop_path)
        self.norm = LayerNorm(config.width) if has_norm else nn.Identity()
        self.set_positions(config)

    def set_positions(self, config: ModelConfig) -> None:
        """Make the position tables for the clips of `config`."""
        table_1ND = position_table(config.grid, config.trained_grid, config.width, config.positions)
        _set_buffer(self, "position_1ND", table_1ND)
        _set_buffer(self, "rotation_1NR2", _rotation(config, config.width // config.num_heads))
        if isinstance(self.blocks, DividedBlocks):
            self.blocks.set_grid(config.grid)
        self.config = config

    def _positions(self, frames_BCTHW: Tensor) -> tuple[Tensor, Tensor | None]:
        """The positions of a clip, interpolated where its height or width is not the one of the configuration.

        An image, which is a clip of one slice, has those of slice 0 (OmniMAE). ValueError for a clip that does not
        divide into patches.
        """
        num_frames, height, width = frames_BCTHW.shape[2:]
        config = self.config
        has_own_size = (height, width) == (config.image_px, config.image_px)
        if has_own_size and num_frames == config.num_frames:
            return self.position_1ND, self.rotation_1NR2
        if has_own_size and num_frames == config.tubelet:
            end = config.grid.patches_per_slice
            return self.position_1ND[:, :end], None if self.rotation_1NR2 is None else self.rotation_1NR2[:, :end]
        grid = TokenGrid.of_clip(num_frames, height, width, config.patch)
        return _tables_of(grid, config, self.position_1ND.device)

    def forward(self, frames_BCTHW: Tensor, visible_BV: Tensor | None = None) -> Tensor:
        position_1ND, rotation_BVR2 = self._positions(frames_BCTHW)
        tokens_BND = self.patch_embed(frames_BCTHW, visible_BV)
        tokens_BND = tokens_BND + (position_1ND if visible_BV is None else pick(position_1ND, visible_BV))
        if rotation_BVR2 is not None and visible_BV is not None:
            rotation_BVR2 = pick(rotation_BVR2, visible_BV)
        if isinstance(self.blocks, DividedBlocks):
            output_BVD: Tensor = self.norm(self.blocks(tokens_BND, visible_BV, rotation_BVR2))
        else:
            output_BVD = self.norm(self.blocks(tokens_BND, None, rotation_BVR2))
        return output_BVD


class Decoder(nn.Module):
    """Blocks over all tokens, then the predicted values of the last `num_masked` tokens: (B, N, E) → (B, M, P).

    `widths` are the numbers of values of the targets, whose heads are the rows of one linear layer.
    """

    def __init__(self, config: ModelConfig, depth: int, widths: Sequence[int]) -> None:
        super().__init__()
        blocks = CrossBlocks if config.decoder == "cross" else Blocks
        self.blocks = blocks(config.decoder_width, depth, config.decoder_num_heads)
        self.norm = LayerNorm(config.decoder_width)
        self.head = nn.Linear(config.decoder_width, sum(widths))
        self.widths = tuple(widths)

    def init_heads(self) -> None:
        """Xavier's weights for each of several heads by itself: the bounds depend on the number of its outputs."""
        for weight in self.head.weight.detach().split(self.widths) if len(self.widths) > 1 else ():
            nn.init.xavier_uniform_(weight)

    def forward(self, tokens_BNE: Tensor, num_masked: int, rotation_BNR2: Tensor | None = None) -> Tensor:
        output_BMP: Tensor = self.head(self.norm(self.blocks(tokens_BNE, num_masked, rotation_BNR2)))
        return output_BMP


class VideoMAE(nn.Module):
    """Masked autoencoder: the encoder processes the visible tokens, the decoder all tokens (paper §3.1).

    Linear layers start from Xavier's uniform weights as in VideoMAE, or with `linear_init` "torch" from PyTorch's
    default, which learnt faster in a trial of a small model, one seed.
    """

    position_1NE: Tensor
    rotation_1NR2: Tensor | None

    def __init__(self, config: ModelConfig, *, linear_init: str = "xavier") -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config, has_norm=True)
        self.encoder_to_decoder = nn.Linear(config.width, config.decoder_width, bias=False)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.decoder_width))
        self.decoder = Decoder(config, config.decoder_depth, config.decoder_widths)
        self.motion_decoder: Decoder | None = None
        if config.motion_outputs:
            self.encoder_to_motion = nn.Linear(config.width, config.decoder_width, bias=False)
            self.motion_decoder = Decoder(config, config.motion_decoder_depth, config.motion_widths)
        self.clip_size = (config.num_frames, config.image_px)
        self._set_positions(config)
        if linear_init == "xavier":
            self.apply(_init_for_pretraining)
            for decoder in self.decoders:
                decoder.init_heads()
        trunc_normal_(self.mask_token, std=INIT_STD, a=-INIT_STD, b=INIT_STD)

    @property
    def decoders(self) -> list[Decoder]:
        """The decoder, and the second one of the targets of motion, if there is one."""
        return [self.decoder] if self.motion_decoder is None else [self.decoder, self.motion_decoder]

    def forward(
        self, frames_BCTHW: Tensor, mask_BN: Tensor, num_masked: int | None = None, num_left_out: int | None = None
    ) -> Tensor:
        """Predict the targets (B, M, P) of the masked tokens, in ascending order of token.

        The values of the targets are side by side, as in `config.target_widths`; for most models they are the pixels.

        Args:
            frames_BCTHW: uint8, or float normalised by `normalise`.
            mask_BN: bool, True = masked, the same number in every clip; or int8 with tokens that are left out, as for
                `split_mask`.
            num_masked: That number. If None, it is counted, which waits for the GPU.
            num_left_out: The number of tokens that are left out; counted likewise, but for a boolean mask it is 0.
        """
        if num_masked is None:
            num_masked = int((mask_BN[0] > 0).sum())
        if num_left_out is None:
            num_left_out = 0 if mask_BN.dtype == torch.bool else int((mask_BN[0] < 0).sum())
        visible_BV, masked_BM = split_mask(mask_BN, num_masked, num_left_out)
        visible_BVD = self.encoder(frames_BCTHW, visible_BV)
        rotation_BNR2 = self.rotation_1NR2
        if rotation_BNR2 is not None:
            rotation_BNR2 = pick(rotation_BNR2, torch.cat([visible_BV, masked_BM], dim=1))
        tokens_BNE = self._with_masked(self.encoder_to_decoder(visible_BVD), visible_BV, masked_BM)
        output_BMP: Tensor = self.decoder(tokens_BNE, num_masked, rotation_BNR2)
        if self.motion_decoder is None:
            return output_BMP
        tokens_BNE = self._with_masked(self.encoder_to_motion(visible_BVD), visible_BV, masked_BM)
        return torch.cat([output_BMP, self.motion_decoder(tokens_BNE, num_masked, rotation_BNR2)], dim=2)

    def by_target(self, output_BMP: Tensor) -> dict[str, Tensor]:
        """The outputs of each target, (B, M, P), by its name."""
        widths = self.config.target_widths
        return dict(zip(widths, output_BMP.split(list(widths.values()), dim=2), strict=True))

    def _with_masked(self, visible_BVE: Tensor, visible_BV: Tensor, masked_BM: Tensor) -> Tensor:
        """The input of a decoder, (B, N, E): visible tokens first, then masked ones.

        Their order does not matter, since each takes its position with it.
        """
        visible_BVE = visible_BVE + pick(self.position_1NE, visible_BV)
        return torch.cat([visible_BVE, self.mask_token + pick(self.position_1NE, masked_BM)], dim=1)

    def fit_clips(self, num_frames: int, image_px: int) -> None:
        """Take clips of another size from now on: positions are interpolated to it, weights stay as they are.

        `config` keeps describing the clips that the model was made for.
        """
        config = replace(self.config, num_frames=num_frames, image_px=image_px).after(self.config)
        self.clip_size = (num_frames, image_px)
        self.encoder.set_positions(config)
        self._set_positions(config)

    def _set_positions(self, config: ModelConfig) -> None:
        table_1NE = position_table(config.grid, config.trained_grid, config.decoder_width, config.positions)
        _set_buffer(self, "position_1NE", table_1NE)
        _set_buffer(self, "rotation_1NR2", _rotation(config, config.decoder_width // config.decoder_num_heads))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations in the backward pass instead of keeping them (timm's name)."""
        self.encoder.blocks.is_recomputing = enable
        for decoder in self.decoders:
            decoder.blocks.is_recomputing = enable

    def no_weight_decay(self) -> set[str]:
        """timm's protocol: parameters without weight decay, in addition to biases and norms."""
        return {"mask_token"}


class FineTuned(nn.Module):
    """The base of the models that are fine-tuned, an encoder with a head: what training asks of them."""

    encoder: Encoder

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations in the backward pass instead of keeping them (timm's name)."""
        self.encoder.blocks.is_recomputing = enable

    def no_weight_decay(self) -> set[str]:
        """timm's protocol: parameters without weight decay, in addition to biases and norms. There are none."""
        return set()

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """timm's protocol for layer-wise learning rate decay: patch embedding, then each block, then norm and head."""
        return {"stem": r"^encoder\.patch_embed", "blocks": [(r"^encoder\.blocks\.(\d+)", None)]}


class VideoClassifier(FineTuned):
    """The encoder without its last norm, then the mean over tokens, a new norm and a linear head.

    Linear layers start from a truncated normal of std 0.02, as in VideoMAE's fine-tuning model and in MViT; the weights
    of the head are multiplied by `head_init_scale`. `load_encoder` replaces the encoder's by pretrained ones.
    """

    def __init__(
        self,
        config: ModelConfig,
        num_classes: int,
        *,
        drop_path: float = 0.0,
        fc_dropout: float = 0.0,
        head_init_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.config = config
        self.num_features = self.head_hidden_size = config.width
        self.num_classes = num_classes
        self.encoder = Encoder(config, has_norm=False, drop_path=drop_path)
        self.fc_norm = LayerNorm(config.width)
        self.fc_dropout = nn.Dropout(fc_dropout)
        self.head = nn.Linear(config.width, num_classes)
        self.apply(init_for_classification)
        with torch.no_grad():
            self.head.weight *= head_init_scale

    def forward_features(self, frames_BCTHW: Tensor) -> Tensor:
        """Tokens (B, N, D) of uint8 or normalised float frames, before pooling and `fc_norm`."""
        tokens_BND: Tensor = self.encoder(frames_BCTHW)
        return tokens_BND

    def forward_head(self, tokens_BND: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits (B, K) of the mean over tokens; with `pre_logits` what the head would take, (B, D)."""
        pooled_BD: Tensor = self.fc_dropout(self.fc_norm(tokens_BND.mean(dim=1)))
        logits_BK: Tensor = self.head(pooled_BD)
        return pooled_BD if pre_logits else logits_BK

    def forward(self, frames_BCTHW: Tensor) -> Tensor:
        """Logits (B, K) of uint8 or normalised float frames."""
        return self.forward_head(self.forward_features(frames_BCTHW))

    def get_classifier(self) -> nn.Module:
        """The head (timm's protocol)."""
        return self.head

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the head by a new one with random weights; 0 classes leave the pooled features (timm's protocol)."""
        self.num_classes = num_classes
        head: Any = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        init_for_classification(head)
        self.head = head.to(self.encoder.patch_embed.proj.weight)

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """Width, name and reduction in pixels of each block's output (timm's protocol)."""
        return [
            {"num_chs": self.num_features, "reduction": self.config.patch_px, "module": f"encoder.blocks.{number}"}
            for number in range(self.config.depth)
        ]


def build(factory: Callable[[], Module], seed: int) -> Module:
    """Build a model whose initial weights depend on `seed` only. The global random state is not changed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return factory()
