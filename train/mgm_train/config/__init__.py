"""The options of pretraining, fine-tuning, action detection, evaluation and the linear probe.

Each option is declared once, with its type, default, bounds and help; the command line, a YAML file and Python build
the same configuration. Defaults are the paper's (Tables 5 and 6, Kinetics-400), and VideoMAE's where the paper is
silent. torch is not imported here: `--help` stays fast.
"""

from mgm_train.config.detect import DetectConfig
from mgm_train.config.finetune import FinetuneConfig
from mgm_train.config.options import (
    EXPORT_FORMATS,
    HARDWARE_OPTIONS,
    MASKS,
    SAMPLING_OPTIONS,
    DecodeOn,
    ExportFormat,
    Mask,
    MissingMotion,
    Workers,
)
from mgm_train.config.pretrain import PretrainConfig
from mgm_train.config.train import TrainConfig
from mgm_train.config.views import EmbedConfig, EvaluateConfig, ProbeConfig, ViewConfig

__all__ = [
    "EXPORT_FORMATS",
    "HARDWARE_OPTIONS",
    "MASKS",
    "SAMPLING_OPTIONS",
    "DecodeOn",
    "DetectConfig",
    "EmbedConfig",
    "EvaluateConfig",
    "ExportFormat",
    "FinetuneConfig",
    "Mask",
    "MissingMotion",
    "PretrainConfig",
    "ProbeConfig",
    "TrainConfig",
    "ViewConfig",
    "Workers",
]
