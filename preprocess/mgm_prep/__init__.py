"""Stage 1: from a folder of videos to a store of frames and motion.

from mgm_prep import Execution, ExtractSettings, extract

summary = extract("videos", "ssv2.store", ExtractSettings(short_side=256), Execution(workers=8))

Workers are processes. In a script, call these functions under `if __name__ == "__main__":`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mgm_prep.config import CodebookSettings, ExtractSettings, FlowSettings, SegmentSettings, TranscodeSettings
    from mgm_prep.extraction.extract import ExtractSummary, extract
    from mgm_prep.extraction.labels import LabelSummary, attach_labels
    from mgm_prep.extraction.preview import ExtractPreview, preview_extract
    from mgm_prep.runtime.execution import Execution
    from mgm_prep.store_report.report import ReportSummary, report
    from mgm_prep.store_tools.add_flow import FlowSummary, add_flow
    from mgm_prep.store_tools.build_index import IndexSummary, build_index
    from mgm_prep.store_tools.describe import (
        StoreDescription,
        VideoDescription,
        describe_store,
        describe_video,
        draw_video,
        find_video,
        list_videos,
    )
    from mgm_prep.store_tools.fit_codebook import CodebookSummary, fit_codebook
    from mgm_prep.store_tools.repair import repair
    from mgm_prep.store_tools.saliency import Saliency, saliency
    from mgm_prep.store_tools.verify import Verdict, verify
    from mgm_prep.transcoding.transcode import TranscodePreview, TranscodeSummary, preview_transcode, transcode

# Imported on demand, so that `--help` does not wait for decoders.
_HOMES = {
    "CodebookSettings": "config",
    "CodebookSummary": "store_tools.fit_codebook",
    "Execution": "runtime.execution",
    "ExtractPreview": "extraction.preview",
    "ExtractSettings": "config",
    "ExtractSummary": "extraction.extract",
    "FlowSettings": "config",
    "FlowSummary": "store_tools.add_flow",
    "IndexSummary": "store_tools.build_index",
    "LabelSummary": "extraction.labels",
    "ReportSummary": "store_report.report",
    "Saliency": "store_tools.saliency",
    "SegmentSettings": "config",
    "StoreDescription": "store_tools.describe",
    "TranscodePreview": "transcoding.transcode",
    "TranscodeSettings": "config",
    "TranscodeSummary": "transcoding.transcode",
    "Verdict": "store_tools.verify",
    "VideoDescription": "store_tools.describe",
    "add_flow": "store_tools.add_flow",
    "attach_labels": "extraction.labels",
    "build_index": "store_tools.build_index",
    "describe_store": "store_tools.describe",
    "describe_video": "store_tools.describe",
    "draw_video": "store_tools.describe",
    "extract": "extraction.extract",
    "find_video": "store_tools.describe",
    "fit_codebook": "store_tools.fit_codebook",
    "list_videos": "store_tools.describe",
    "preview_extract": "extraction.preview",
    "preview_transcode": "transcoding.transcode",
    "repair": "store_tools.repair",
    "report": "store_report.report",
    "saliency": "store_tools.saliency",
    "transcode": "transcoding.transcode",
    "verify": "store_tools.verify",
}

__all__ = [
    "CodebookSettings",
    "CodebookSummary",
    "Execution",
    "ExtractPreview",
    "ExtractSettings",
    "ExtractSummary",
    "FlowSettings",
    "FlowSummary",
    "IndexSummary",
    "LabelSummary",
    "ReportSummary",
    "Saliency",
    "SegmentSettings",
    "StoreDescription",
    "TranscodePreview",
    "TranscodeSettings",
    "TranscodeSummary",
    "Verdict",
    "VideoDescription",
    "add_flow",
    "attach_labels",
    "build_index",
    "describe_store",
    "describe_video",
    "draw_video",
    "extract",
    "find_video",
    "fit_codebook",
    "list_videos",
    "preview_extract",
    "preview_transcode",
    "repair",
    "report",
    "saliency",
    "transcode",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"mgm_prep.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
