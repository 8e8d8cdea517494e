"""The screen's section on clusters of cells: how many, how stable, by what they differ, and in what they are enriched."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from plateloom.report.charts import data_uri, figure
from plateloom.report.page import details, grid, join, paragraph, table

if TYPE_CHECKING:
    import pandas as pd

GAP_PX = 3


@dataclass(frozen=True, eq=False, kw_only=True)
class ClustersReport:
    """Clusters of a screen's cells.

    Parameters
    ----------
    rows : DataFrame
        One row per cluster; all columns are shown.
    words, note : str
        How the clusters were found and how far they can be trusted; what the columns mean.
    pictures : sequence of (str, array of uint8, shape (N, H, W, 3)), optional
        A title and typical cells, for each cluster of which there are any.
    enrichment : DataFrame, optional
        From `plateloom.classification.enrichment.find_enrichment`.
    """

    rows: "pd.DataFrame"
    words: str
    note: str
    pictures: tuple = ()
    enrichment: "pd.DataFrame | None" = None


def clusters_section(clusters):
    """Table, typical cells, and the folded table of treatments."""
    if clusters is None:
        return None
    parts = [paragraph(clusters.words), paragraph(clusters.note, "quiet")]
    parts.append(table(clusters.rows, empty="No cluster was found."))
    strips = [figure(title, _strip(title, cells)) for title, cells in clusters.pictures]
    parts.append(grid(strips, "grid maps") if strips else None)
    found = clusters.enrichment
    if found is not None:
        whole = enrichment_table(found, empty="There is no treatment to compare with the controls.")
        parts.append(details("Treatments and doses, by how much they differ from the negative controls", whole))
    return join(*parts)


def _strip(title, cells):
    """Cells side by side, in one picture."""
    cells = np.pad(np.asarray(cells, np.uint8), ((0, 0), (0, 0), (0, GAP_PX), (0, 0)), constant_values=255)
    picture = np.concatenate(list(cells), axis=1)[:, :-GAP_PX]
    image = '<img class="pairs" src="{}" alt="{}" width="{}" height="{}">'
    return Markup(image).format(data_uri(picture), f"cells of {title}", picture.shape[1], picture.shape[0])


def enrichment_table(enrichment, *, empty):
    """The shares of treatments and of their controls side by side, as a table that fits the page.

    `p` and `difference`, which stands on the scale of the test, are in the parquet file only.

    Parameters
    ----------
    enrichment : DataFrame
        See `ClustersReport`.
    empty : str
        The sentence shown when there is no row.

    Returns
    -------
    Markup
    """
    keys = [f"Metadata_{name}" for name in ("Treatment", "Dose", "Unit", "Control")]
    order = [*keys, "kind", "change", "share", "control_share", "q", "n", "n_plates", "cells", "reason"]
    shown = enrichment[[name for name in order if name in enrichment]]
    sparse = [name for name in shown.columns[shown.fillna("").eq("").all()] if name in (*keys, "reason")]
    return table(shown.drop(columns=sparse), empty=empty)


def name_enriched(enrichment, kind, most=3):
    """Treatments and doses that hold more cells of a kind than the controls, in words; the clearest first.

    Parameters
    ----------
    enrichment : DataFrame
        See `ClustersReport`.
    kind : str
    most : int, optional
        Named; the others are counted.

    Returns
    -------
    str
    """
    found = enrichment[(enrichment["kind"] == kind) & (enrichment["change"] == "enriched")]
    names = []
    for row in found.to_dict("records"):
        dose = f"{row['Metadata_Dose']:g} {row['Metadata_Unit']}".strip() if np.isfinite(row["Metadata_Dose"]) else ""
        control = f"({row['Metadata_Control']} control)" if row["Metadata_Control"] else ""
        names.append(" ".join(filter(None, [row["Metadata_Treatment"], dose, control])))
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(names[:most])}{rest}"
