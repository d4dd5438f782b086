"""Stage 2: from a store to a pretrained encoder, a classifier, an accuracy and figures.

from mgm_train import PretrainConfig, pretrain

result = pretrain("ssv2.store", "runs/mgm", PretrainConfig(model="vit_small", epochs=200))
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mgm_train.timm_models import register

if TYPE_CHECKING:
    from mgm_train.config import (
        DetectConfig,
        EmbedConfig,
        EvaluateConfig,
        FinetuneConfig,
        PretrainConfig,
        ProbeConfig,
    )
    from mgm_train.detection.scoring import DetectionScores
    from mgm_train.inference.video_model import VideoModel, load
    from mgm_train.run_report.report import ReportResult, report
    from mgm_train.tasks.ablate import AblateResult, ablate, preview_ablate
    from mgm_train.tasks.detect import detect, preview_detect
    from mgm_train.tasks.doctor import Finding, doctor
    from mgm_train.tasks.embed import EmbedResult, embed
    from mgm_train.tasks.evaluate import EvaluateResult, evaluate, preview_evaluate
    from mgm_train.tasks.export import ExportResult, export
    from mgm_train.tasks.finetune import finetune, preview_finetune
    from mgm_train.tasks.pretrain import pretrain, preview_pretrain
    from mgm_train.tasks.probe import ProbeResult, preview_probe, probe
    from mgm_train.tasks.training_run import TrainPreview
    from mgm_train.tasks.visualize import visualize
    from mgm_train.training.loop import TrainResult

# Imported on demand, so that `--help` need not wait for torch.
_HOMES = {
    "DetectConfig": "config",
    "EmbedConfig": "config",
    "EvaluateConfig": "config",
    "FinetuneConfig": "config",
    "PretrainConfig": "config",
    "ProbeConfig": "config",
    "VideoModel": "inference.video_model",
    "load": "inference.video_model",
    "ReportResult": "run_report.report",
    "report": "run_report.report",
    "AblateResult": "tasks.ablate",
    "ablate": "tasks.ablate",
    "preview_ablate": "tasks.ablate",
    "detect": "tasks.detect",
    "preview_detect": "tasks.detect",
    "DetectionScores": "detection.scoring",
    "Finding": "tasks.doctor",
    "doctor": "tasks.doctor",
    "EmbedResult": "tasks.embed",
    "embed": "tasks.embed",
    "EvaluateResult": "tasks.evaluate",
    "evaluate": "tasks.evaluate",
    "preview_evaluate": "tasks.evaluate",
    "ExportResult": "tasks.export",
    "export": "tasks.export",
    "finetune": "tasks.finetune",
    "preview_finetune": "tasks.finetune",
    "pretrain": "tasks.pretrain",
    "preview_pretrain": "tasks.pretrain",
    "ProbeResult": "tasks.probe",
    "preview_probe": "tasks.probe",
    "probe": "tasks.probe",
    "TrainPreview": "tasks.training_run",
    "visualize": "tasks.visualize",
    "TrainResult": "training.loop",
}

__all__ = [
    "AblateResult",
    "DetectConfig",
    "DetectionScores",
    "EmbedConfig",
    "EmbedResult",
    "EvaluateConfig",
    "EvaluateResult",
    "ExportResult",
    "Finding",
    "FinetuneConfig",
    "PretrainConfig",
    "ProbeConfig",
    "ProbeResult",
    "ReportResult",
    "TrainPreview",
    "TrainResult",
    "VideoModel",
    "ablate",
    "detect",
    "doctor",
    "embed",
    "evaluate",
    "export",
    "finetune",
    "load",
    "pretrain",
    "preview_ablate",
    "preview_detect",
    "preview_evaluate",
    "preview_finetune",
    "preview_pretrain",
    "preview_probe",
    "probe",
    "report",
    "visualize",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"mgm_train.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__


# timm finds a model by name only if it was registered before; this imports neither timm nor torch.
register()
