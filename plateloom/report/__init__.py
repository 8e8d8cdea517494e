"""Reports: tables and arrays in, one self-contained HTML page out.

`render_plate` and `render_screen` return a page as text. It opens from a disk, loads nothing, has a strict content
security policy, inserts every name as text and is the same bytes for the same data.
"""

from plateloom.report.charts import DoseResponse, Embedding, HeatMap, HillCurve
from plateloom.report.montage import Tile, composite_image, named_colors, outline_image, outline_layer, pair_image
from plateloom.report.plate import PLATE_SECTIONS, PlateReport, render_plate
from plateloom.report.screen import (
    SCREEN_SECTIONS,
    AutoencoderReport,
    ClassifierReport,
    ScreenHeatMap,
    ScreenReport,
    render_screen,
)

__all__ = [
    "PLATE_SECTIONS",
    "SCREEN_SECTIONS",
    "AutoencoderReport",
    "ClassifierReport",
    "DoseResponse",
    "Embedding",
    "HeatMap",
    "HillCurve",
    "PlateReport",
    "ScreenHeatMap",
    "ScreenReport",
    "Tile",
    "composite_image",
    "named_colors",
    "outline_image",
    "outline_layer",
    "pair_image",
    "render_plate",
    "render_screen",
]
