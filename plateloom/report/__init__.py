"""Reports: tables and arrays in, one self-contained HTML page out.

`render_plate`, `render_preview`, `render_quarantined` and `render_screen` return a page as text. It opens from a disk, loads nothing, has a
strict content security policy, inserts every name as text and is the same bytes for the same data.
"""

from plateloom.report.charts import DoseResponse, Embedding, HeatMap, HillCurve, scale_limits
from plateloom.report.clusters import ClustersReport, name_enriched
from plateloom.report.exclusions import list_exclusions, share_of_failed_fields
from plateloom.report.montage import (
    Tile,
    choose_tiles,
    composite_image,
    named_colors,
    outline_layer,
    pair_image,
)
from plateloom.report.notices import NOTICES, Notice, find_losses
from plateloom.report.plate import PLATE_SECTIONS, PlateReport, render_plate
from plateloom.report.plausibility import doubt_light, doubt_pixel_size, doubt_segmentation
from plateloom.report.preview import PREVIEW_SECTIONS, PreviewReport, render_preview
from plateloom.report.quarantine import QUARANTINE_SECTIONS, QuarantineReport, render_quarantined
from plateloom.report.screen import (
    SCREEN_SECTIONS,
    AutoencoderReport,
    ClassifierReport,
    RegressionReport,
    ScreenHeatMap,
    ScreenReport,
    explain_hits,
    render_screen,
)

__all__ = [
    "NOTICES",
    "PLATE_SECTIONS",
    "PREVIEW_SECTIONS",
    "QUARANTINE_SECTIONS",
    "SCREEN_SECTIONS",
    "AutoencoderReport",
    "ClassifierReport",
    "ClustersReport",
    "DoseResponse",
    "Embedding",
    "HeatMap",
    "HillCurve",
    "Notice",
    "PlateReport",
    "PreviewReport",
    "QuarantineReport",
    "RegressionReport",
    "ScreenHeatMap",
    "ScreenReport",
    "Tile",
    "choose_tiles",
    "composite_image",
    "doubt_light",
    "doubt_pixel_size",
    "doubt_segmentation",
    "explain_hits",
    "find_losses",
    "list_exclusions",
    "name_enriched",
    "named_colors",
    "outline_layer",
    "pair_image",
    "render_plate",
    "render_preview",
    "render_quarantined",
    "render_screen",
    "scale_limits",
    "share_of_failed_fields",
]
