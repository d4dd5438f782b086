"""The planned cost of a grid in floating-point operations, by `mgm_train.models.flops`."""

from collections.abc import Iterable, Mapping
from typing import Any

from mgm_train.ablation.grid import SAME_STORE, Run
from mgm_train.models.flops import epoch_flops, finetune_flops
from mgm_train.training.targets.choose import pretrain_shape


def planned_flops(runs: Iterable[Run], num_labelled: int, num_classes: int, num_videos: Mapping[str, int]) -> int:
    """Operations of all trainings, those that runs share counted once. Tests and probes are not counted.

    `num_videos` has the number of videos of each store that is pretrained on, by its path; "" is the labelled one.
    """
    costs: dict[str, float] = {}
    for run in runs:
        configs: Mapping[str, Any] = run.configs
        pretrain, finetune = configs["pretrain"], configs["finetune"]
        if run.is_pretrained:
            clips_per_epoch = num_videos[run.pretrain_on or SAME_STORE] * pretrain.repeats
            costs[f"pretrain {run.names['pretrain']}"] = clips_per_epoch * sum(
                epoch_flops(pretrain, pretrain_shape(pretrain))
            )
        clips = round(num_labelled * finetune.label_fraction) * finetune.epochs * finetune.repeats
        costs[f"finetune {run.names['finetune']}"] = clips * finetune_flops(finetune.shape, num_classes)
    return round(sum(costs.values()))
