"""The action detector: the encoder's tokens as a picture, pooled in each box, and a linear layer (VideoMAE's for AVA).

Axes: B clips · C colours · T frames · H,W pixels · N tokens, flattened t,h,w · D width · R boxes of all clips ·
K actions · 5 = number of the clip in the batch, then left, top, right, bottom in pixels of the clip.
"""

import torch
from torch import Tensor, nn
from torchvision.ops import roi_align

from mgm_shared.geometry import TokenGrid
from mgm_train.model_config import ModelConfig
from mgm_train.models.videomae import Encoder, FineTuned, VideoClassifier, VideoMAE, init_for_classification

# Features are sampled on a grid of so many places in a box, along each side.
POOLED = 7


class ActionDetector(FineTuned):
    """Logits of actions, several of which may be true, for boxes in a clip.

    The encoder with its last norm → mean over time → RoIAlign to 7×7 → maximum → linear. Clips may have any height and
    width that divide by the patch. `load_encoder` replaces the encoder's weights by pretrained ones.
    """

    def __init__(
        self, config: ModelConfig, num_classes: int, *, drop_path: float = 0.0, head_init_scale: float = 1.0
    ) -> None:
        super().__init__()
        self.config = config
        self.num_classes = num_classes
        self.encoder = Encoder(config, has_norm=True, drop_path=drop_path)
        self.head = nn.Linear(config.width, num_classes)
        self.apply(init_for_classification)
        with torch.no_grad():
            self.head.weight.mul_(head_init_scale)

    def features(self, frames_BCTHW: Tensor) -> Tensor:
        """The mean over time of the tokens, (B, D, h, w), of uint8 or normalised float frames."""
        num_frames, height, width = frames_BCTHW.shape[2:]
        grid = TokenGrid.of_clip(num_frames, height, width, self.config.patch)
        tokens_BND: Tensor = self.encoder(frames_BCTHW)
        features_BDhw: Tensor = tokens_BND.unflatten(1, (grid.t, grid.h, grid.w)).mean(1).permute(0, 3, 1, 2)
        return features_BDhw

    # Batches differ in the number of boxes, and torch.compile would compile the encoder anew for each. So it leaves out
    # this function, but not `features`.
    @torch.compiler.disable(recursive=False)  # type: ignore[untyped-decorator]
    def forward(self, frames_BCTHW: Tensor, box_R5: Tensor) -> Tensor:
        """Logits (R, K) of boxes in pixels, float32."""
        logits_RK: Tensor = self._logits(self.features(frames_BCTHW), box_R5)
        return logits_RK

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _logits(self, features_BDhw: Tensor, box_R5: Tensor) -> Tensor:
        # torchvision's kernel wants one type, and coordinates in bfloat16 would be off by a pixel.
        features_BDhw = features_BDhw.float()
        with torch.autocast(features_BDhw.device.type, enabled=False):
            pooled_RDhw = roi_align(
                features_BDhw, box_R5.float(), POOLED, spatial_scale=1 / self.config.patch_px, aligned=True
            )
        logits_RK: Tensor = self.head(pooled_RDhw.amax((2, 3)))
        return logits_RK


TrainedModel = VideoMAE | VideoClassifier | ActionDetector
"""The models that the training loop trains."""
