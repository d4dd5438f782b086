"""How many tokens of a clip the encoder sees, the decoder predicts, and neither handles. torch is not imported here."""

from dataclasses import dataclass
from fractions import Fraction

from mgm_shared.geometry import TokenGrid

# A mask holds one of these for each token. A boolean mask has no token that is left out.
LEFT_OUT, VISIBLE, MASKED = -1, 0, 1


def share_of(share: float, number: int) -> int:
    """`int(share · number)`, in integers: in floating point `int(0.57 * 100)` is 56."""
    return int(Fraction(share).limit_denominator(10_000) * number)


def kept_ratio(mask_ratio: float, drop: float) -> float:
    """Share of masked tokens among those that are not dropped; `mask_ratio` and `drop` are shares of all tokens."""
    return (mask_ratio - drop) / (1 - drop) if drop else mask_ratio


@dataclass(frozen=True, kw_only=True)
class TokenCounts:
    """Tokens of a clip by their role; the same for every clip of one size.

    `num_visible` tokens are what the encoder sees. `num_masked` tokens are predicted. `num_dropped` tokens are dropped
    for their lack of motion, and `num_undecoded` tokens are masked but not predicted: neither reaches the model.
    """

    num_visible: int
    num_masked: int
    num_dropped: int = 0
    num_undecoded: int = 0

    @classmethod
    def of(cls, grid: TokenGrid, mask_ratio: float, *, drop: float = 0.0, decode_ratio: float = 1.0) -> "TokenCounts":
        """The counts for these options.

        `mask_ratio` is the share of the tokens that the encoder does not see, and `drop` the part of them that is
        dropped, both of all tokens; `decode_ratio` is the share of the other masked tokens that is predicted.
        """
        num_hidden = grid.patches_at(mask_ratio) * grid.t
        num_dropped = share_of(drop, grid.num_tokens)
        num_masked = share_of(decode_ratio, num_hidden - num_dropped)
        return cls(
            num_visible=grid.num_tokens - num_hidden,
            num_masked=num_masked,
            num_dropped=num_dropped,
            num_undecoded=num_hidden - num_dropped - num_masked,
        )

    @property
    def num_left_out(self) -> int:
        """Tokens that neither the encoder nor the decoder gets."""
        return self.num_dropped + self.num_undecoded
