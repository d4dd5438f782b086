"""The model card of an export: README.md with the metadata that the Hugging Face Hub reads at its top."""

from typing import Any

import yaml

from mgm_train.interchange.export_source import ExportSource, describe_clip

PAPER = "Fan et al., Motion-Guided Masking for Spatiotemporal Representation Learning, ICCV 2023"
MASK_OPTIONS = ("mask", "mask_ratio", "mask_jitter", "mask_top_k", "guidance")
UNKNOWN_LICENSE = "unknown"


def model_card(source: ExportSource, how_to_load: str, *, library: str) -> str:
    """The text of README.md: data set, recipe, masks, metrics, licence, and how to load the model."""
    sections = {
        "How to load it": f"```python\n{how_to_load}\n```",
        "Data set": _data(source),
        "Clips": f"{describe_clip(source)}. RGB, normalised by ImageNet's mean and standard deviation.",
        "Masks": _table(_masks(source)) or "The weights do not record how they were pretrained.",
        "Recipe": _recipe(source),
        "Metrics": _table({name: f"{value:.4f}" for name, value in source.metrics.items()}) or "None recorded.",
        "License": _license(source),
    }
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items())
    title = f"# {source.weights.model.name}, a {source.kind}"
    return f"---\n{_front(source, library)}---\n\n{title}\n\nTrained with mgm, after {PAPER}.\n\n{body}\n"


def _front(source: ExportSource, library: str) -> str:
    values: dict[str, Any] = {
        "license": source.license or UNKNOWN_LICENSE,
        "library_name": library,
        "pipeline_tag": "video-classification" if source.is_classifier else "feature-extraction",
        "tags": ["video", "videomae", "mgm"],
    }
    if source.dataset:
        values["datasets"] = [source.dataset]
    return yaml.safe_dump(values, sort_keys=False)


def _data(source: ExportSource) -> str:
    digest = source.environment.get("store")
    name = source.dataset or "Not named: `mgm-train export --dataset NAME` names it."
    return f"{name}\n\nStore digest: `{digest}`." if digest else name


def _masks(source: ExportSource) -> dict[str, Any]:
    options = source.options.get("pretrain") or {}
    return {name.replace("_", " "): options[name] for name in MASK_OPTIONS if name in options}


def _recipe(source: ExportSource) -> str:
    if not source.options:
        return "The weights are not in a run folder, so their options are not known."
    return f"```yaml\n{yaml.safe_dump(source.options, sort_keys=False)}```"


def _license(source: ExportSource) -> str:
    if source.license:
        return source.license
    return (
        "Not stated. The licence of the code does not cover weights: the terms of the data set decide. "
        "`mgm-train export --license NAME` states it."
    )


def _table(values: dict[str, Any]) -> str:
    if not values:
        return ""
    rows = "\n".join(f"| {name} | {value} |" for name, value in values.items())
    return f"| | |\n|---|---|\n{rows}"
