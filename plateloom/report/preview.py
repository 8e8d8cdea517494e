"""The page of a preview: a few fields with outlines, by one or several settings side by side."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from markupsafe import Markup

from plateloom.report.charts import element
from plateloom.report.montage import Tile
from plateloom.report.page import (
    color_legend,
    commands,
    grid,
    join,
    make_sections,
    paragraph,
    render_page,
    settings_table,
    table,
)
from plateloom.report.plate import tile_figure

if TYPE_CHECKING:
    import pandas as pd

PREVIEW_SECTIONS = {
    "montage": "Segmentation, seen",
    "found": "What was found",
    "quality": "Quality of the fields",
    "parameters": "Settings of the segmentation",
    "reproduce": "How to go on",
}


@dataclass(frozen=True, eq=False, kw_only=True)
class PreviewReport:
    """All that a preview's page shows.

    Parameters
    ----------
    screen, plate, source : str
    rows : mapping of str to sequence of Tile
        By setting, the pictures of the fields; one setting has one row.
    found : DataFrame
        One row per field and setting: what was counted and how long it took.
    quality : DataFrame
        One row per field and channel.
    quality_note : str
    sizes : str
        How wide nuclei look, whatever the settings say.
    notes : sequence of str
        What a person must know of a method before using it.
    doubts : mapping of str to sequence of str
        By setting, what makes the result implausible, in whole sentences.
    losses : sequence of str
        Fields that were asked for and cannot be shown, in whole sentences.
    colors, outlines : mapping of str to str
        ``#rrggbb`` of channels and of outlines.
    unseen : sequence of str
        Channels that no picture shows.
    parameters : mapping
    reproduce : sequence of str
        Lines for a shell.
    """

    screen: str
    plate: str
    source: str
    rows: Mapping[str, tuple[Tile, ...]]
    found: "pd.DataFrame"
    quality: "pd.DataFrame"
    quality_note: str
    sizes: str = ""
    notes: tuple = ()
    doubts: Mapping = field(default_factory=dict)
    losses: tuple = ()
    colors: Mapping = field(default_factory=dict)
    outlines: Mapping = field(default_factory=dict)
    unseen: tuple = ()
    parameters: Mapping = field(default_factory=dict)
    reproduce: tuple = ()


def render_preview(report):
    """Render the page of a preview.

    Parameters
    ----------
    report : PreviewReport

    Returns
    -------
    str
        One HTML file that loads nothing.
    """
    verdict = [(text, "bad") for text in report.losses]
    for name, texts in report.doubts.items():
        verdict += [(f"{name}: {text}" if len(report.doubts) > 1 else text, "warn") for text in texts]
    flagged = report.quality[report.quality["flags"] != ""]
    for (well, number), rows in flagged.groupby(["Metadata_Well", "Metadata_Field"], sort=False):
        said = "; ".join(f"{row['channel']} {row['flags']}" for _, row in rows.iterrows())
        words = f"{well}, field {number} is flagged beside the fields of this page, and by default a run leaves the cells of flagged fields out: {said}."
        verdict.append((words, "warn"))
    verdict += [(text, "plain") for text in report.notes]
    words = f"By an estimate from the image alone {report.sizes}." if report.sizes else ""
    contents = {
        "montage": _pictures(report),
        "found": join(
            paragraph(words, "quiet") if words else None, table(report.found, empty="No field was segmented.")
        ),
        "quality": join(paragraph(report.quality_note, "quiet"), table(report.quality, empty="No field was read.")),
        "parameters": settings_table(report.parameters),
        "reproduce": commands(report.reproduce),
    }
    fields = len(next(iter(report.rows.values()), ()))
    return render_page(
        title=f"{report.plate}: preview",
        kind="Preview",
        facts={"screen": report.screen, "source": report.source},
        figures={"fields shown": str(fields), "settings compared": str(len(report.rows))},
        verdict=verdict
        if len(verdict) > len(report.notes)
        else [*verdict, ("Nothing about the sizes and counts is implausible. Now look at the outlines.", "plain")],
        sections=make_sections(PREVIEW_SECTIONS, contents, {}),
    )


def _pictures(report):
    """One row of pictures per setting, under one switch."""
    if not any(report.rows.values()):
        return None
    if len(report.rows) == 1:
        pictures = [grid([tile_figure(tile) for tile in next(iter(report.rows.values()))], "montage")]
    else:  # what is to be compared lies side by side
        fields = zip(*report.rows.values(), strict=True)
        pictures = [
            grid(
                [tile_figure(replace(tile, why=name)) for name, tile in zip(report.rows, tiles, strict=True)],
                "montage abreast",
            )
            for tiles in fields
        ]
    return join(
        paragraph("The middle of each field. All pictures of a channel have the same contrast.", "quiet"),
        color_legend(report.colors, title="Channels:"),
        paragraph(f"Not shown: {', '.join(report.unseen)}. What is shown: report.composite.", "quiet")
        if report.unseen
        else None,
        color_legend(report.outlines, title="Outlines:", outlines=True),
        element("label", Markup('<input type="checkbox" checked>'), "Show outlines", class_="toggle"),
        *pictures,
    )
