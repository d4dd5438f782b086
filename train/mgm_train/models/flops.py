"""Model FLOPs utilization (MFU): the floating-point operations of a training clip, and the peak rate of the device.

MFU (PaLM's appendix B) counts the matrix products that the model needs, with two operations for a multiplication and
its addition. Activations that are recomputed to save memory count once. Axes: N tokens · D width.
"""

import time
from dataclasses import dataclass
from functools import lru_cache

import torch

from mgm_train.config import PretrainConfig
from mgm_train.model_config import ModelConfig
from mgm_train.token_counts import TokenCounts

# Peak rates, in operations per second, of dense bfloat16 products with float32 accumulation, from the vendors' data
# sheets, without sparsity. The first key that is part of torch's name for the device counts.
BF16_PEAKS = {
    "B200": 2250e12,
    "GH200": 989.4e12,
    "H200": 989.4e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989.4e12,
    "A100": 312e12,
    "A10G": 70e12,
    "A10": 125e12,
    "L40S": 362e12,
    "L4": 121e12,
    "RTX 4090": 165.2e12,
    "RTX 3090": 71e12,
}


def _linear(num_rows: int, num_in: int, num_out: int) -> int:
    return 2 * num_rows * num_in * num_out


def _blocks(depth: int, num_tokens: int, width: int, num_outputs: int) -> int:
    """Forward operations of `depth` blocks, the last of which computes `num_outputs` tokens only."""
    return (depth - 1) * _block(num_tokens, width, num_tokens) + _block(num_tokens, width, num_outputs)


def _block(num_tokens: int, width: int, num_outputs: int) -> int:
    """Forward operations of a block whose queries are `num_outputs` tokens, and whose keys are `num_tokens`."""
    keys_and_values = _linear(num_tokens, width, 2 * width)
    query_and_projection = _linear(num_outputs, width, 2 * width)
    scores_and_mix = 2 * _linear(num_outputs, width, num_tokens)
    mlp = 2 * _linear(num_outputs, width, 4 * width)
    return keys_and_values + query_and_projection + scores_and_mix + mlp


def _encoder(config: ModelConfig, num_tokens: int) -> int:
    if config.attention == "joint":
        return _blocks(config.depth, num_tokens, config.width, num_tokens)
    # A token attends to its slice and to its place. The share of them that is visible is, on average, that of the clip.
    num_pairs = num_tokens**2 // config.grid.t + num_tokens**2 // config.grid.patches_per_slice
    projections_and_mlp = 4 * _linear(num_tokens, config.width, 4 * config.width)
    return config.depth * (projections_and_mlp + 2 * _linear(num_pairs, config.width, 1))


def _decoder(config: ModelConfig, depth: int, num_values: int, num_visible: int, num_masked: int) -> int:
    """Forward operations of a decoder with the layer before it and its heads."""
    bridge = _linear(num_visible, config.width, config.decoder_width)
    if config.decoder == "cross":
        blocks = depth * _block(num_visible, config.decoder_width, num_masked)
    else:
        blocks = _blocks(depth, num_visible + num_masked, config.decoder_width, num_masked)
    return bridge + blocks + _linear(num_masked, config.decoder_width, num_values)


def _with_backward(rest: int, embedding: int) -> int:
    """Forward and backward operations: two products backward for each one forward, one less for the patch embedding,
    because the gradient of the pixels is not computed.
    """
    return 3 * rest + 2 * embedding


@dataclass(frozen=True, kw_only=True)
class ForwardFlops:
    """Operations of the forward pass of a pretraining clip, by part of the model."""

    embedding: int
    encoder: int
    decoder: int
    """From the encoder's output to the predicted values."""

    @property
    def total(self) -> int:
        return self.embedding + self.encoder + self.decoder

    @property
    def gmacs(self) -> float:
        """Billions of multiplications with their additions, which papers on vision models call GFLOPs."""
        return self.total / 2e9


def forward_flops(config: ModelConfig, num_masked: int, num_left_out: int = 0) -> ForwardFlops:
    """Operations of the forward pass of one pretraining clip.

    `num_masked` tokens are predicted, `num_left_out` are neither seen nor predicted, and the encoder sees the others.
    """
    num_visible = config.grid.num_tokens - num_masked - num_left_out
    decoder = _decoder(config, config.decoder_depth, sum(config.decoder_widths), num_visible, num_masked)
    if config.motion_outputs:
        motion = config.motion_decoder_depth, sum(config.motion_widths)
        decoder += _decoder(config, *motion, num_visible, num_masked)
    return ForwardFlops(
        embedding=_linear(num_visible, config.patch.num_values, config.width),
        encoder=_encoder(config, num_visible),
        decoder=decoder,
    )


def pretrain_flops(config: ModelConfig, num_masked: int, num_left_out: int = 0) -> int:
    """Operations of one pretraining clip, forward and backward; the arguments are those of `forward_flops`."""
    forward = forward_flops(config, num_masked, num_left_out)
    return _with_backward(forward.encoder + forward.decoder, forward.embedding)


def epoch_flops(config: PretrainConfig, shape: ModelConfig | None = None) -> list[int]:
    """Operations of one clip, forward and backward, in each epoch of a pretraining with these options.

    `shape` is the model at the end of the run, where it is not that of the options.
    """
    per_epoch = []
    for stage in config.stages:
        counts: TokenCounts = config.counts_of(stage)
        flops = pretrain_flops(config.shape_of(stage, shape), counts.num_masked, counts.num_left_out)
        per_epoch += [flops] * stage.num_epochs
    return per_epoch


def mean_flops(config: PretrainConfig) -> float:
    """Operations of one clip, forward and backward, averaged over the epochs of a pretraining."""
    return sum(epoch_flops(config)) / config.epochs


def mean_gmacs(config: PretrainConfig) -> float:
    """Billions of multiply-adds of the forward pass of one clip, averaged over the epochs of a pretraining."""
    total = 0.0
    for stage in config.stages:
        counts: TokenCounts = config.counts_of(stage)
        forward = forward_flops(config.shape_of(stage), counts.num_masked, counts.num_left_out)
        total += stage.num_epochs * forward.gmacs
    return total / config.epochs


def finetune_flops(config: ModelConfig, num_classes: int) -> int:
    """Operations of one fine-tuning clip, forward and backward."""
    num_tokens = config.grid.num_tokens
    rest = _encoder(config, num_tokens) + _linear(1, config.width, num_classes)
    return _with_backward(rest, _linear(num_tokens, config.patch.num_values, config.width))


@dataclass(frozen=True, kw_only=True)
class Peak:
    """Peak rate of a device in operations per second, and its source."""

    flops_per_s: float
    source: str


@lru_cache
def peak(device: torch.device, dtype: torch.dtype) -> Peak:
    """The peak rate of a device: from its data sheet if it is listed, otherwise measured in well under 1 s."""
    if device.type == "cuda" and dtype == torch.bfloat16:
        name = torch.cuda.get_device_name(device)
        for part, flops_per_s in BF16_PEAKS.items():
            if part in name:
                return Peak(flops_per_s=flops_per_s, source=f"data sheet of {part}")
    return Peak(flops_per_s=matmul_rate(device, dtype), source="measured")


def matmul_rate(device: torch.device, dtype: torch.dtype, side: int | None = None) -> float:
    """Measured operations per second of a square matrix product; the best of five."""
    side = side or (8192 if device.type == "cuda" else 768)
    # Random numbers, because a GPU draws less power for a matrix of ones and runs it faster.
    generator = torch.Generator(device).manual_seed(0)
    left, right = (torch.randn(side, side, device=device, generator=generator).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(6):
        _wait(device)
        start_s = time.perf_counter()
        left @ right
        _wait(device)
        seconds.append(time.perf_counter() - start_s)
    return 2 * side**3 / min(seconds[1:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
