"""The page on which a person labels cells: one file that works from a disk, keeps what was said, and hands it back."""

import json
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from plateloom.report.charts import PALETTES, category_colors, data_uri
from plateloom.report.montage import outline_mask, scale_bar
from plateloom.report.page import render_template

OUTLINE_PX = 480  # outlines are drawn on a grid at least as fine, so that they stay thin
OWN, OTHERS = ((255, 212, 59, 255), (255, 255, 255, 255)), ((255, 212, 59, 70), (255, 255, 255, 60))
PERCENTILES = (1, 99.8)


@dataclass(frozen=True, eq=False, kw_only=True)
class AnnotationPage:
    """All that the page shows. It holds no well, no treatment and no prediction: they would sway who looks at it.

    Parameters
    ----------
    screen : str
    number : int
        Of the round.
    token : str
        Names the round's list of cells; goes back with the labels.
    classes : sequence of str
        At most nine, one per number key.
    channels : mapping of str to str
        Channel to ``#rrggbb``, in the order of the pictures' second axis.
    pictures : array of float, shape (N, C, H, W)
        Each cell in the middle of its surroundings; all are shown with the same contrast.
    labels : sequence of (array of int, array of int, int), length N
        Nuclei and cells of each picture, shape (H, W), and the number of the cell that is asked for.
    width_um : float
        Width of a picture [µm].
    history : sequence of dict
        What the labels of each round before have brought: `round`, `labels`, `unsure`, `accuracy`, `gain`.
    """

    screen: str
    number: int
    token: str
    classes: tuple
    channels: dict
    pictures: np.ndarray
    labels: tuple
    width_um: float
    history: tuple = ()


def render_annotation(page):
    """Render the page.

    Parameters
    ----------
    page : AnnotationPage

    Returns
    -------
    str
        One HTML file that loads nothing; the same bytes for the same page.
    """
    windows = [np.percentile(page.pictures[:, c], PERCENTILES) for c in range(len(page.channels))]
    cells = []
    for picture, (nuclei, bodies, number) in zip(page.pictures, page.labels, strict=True):
        planes = [stretch(plane, *window) for plane, window in zip(picture, windows, strict=True)]
        cells.append(
            {
                "planes": [data_uri(np.repeat(plane[..., None], 3, axis=2), lossy=True) for plane in planes],
                "outlines": data_uri(draw_outlines(nuclei, bodies, number)),
            }
        )
    bar = scale_bar(page.width_um)
    data = {
        "screen": page.screen,
        "round": page.number,
        "token": page.token,
        "classes": list(page.classes),
        "colors": [category_colors(page.classes, PALETTES["class"])[name] for name in page.classes],
        "channels": [{"name": name, "color": color} for name, color in page.channels.items()],
        "side": int(page.pictures.shape[-1]),
        "bar": {"share": bar / page.width_um, "text": f"{bar:g} µm"},
        "cells": cells,
    }
    return render_template(
        "annotate.html",
        style="annotate.css",
        script="annotate.js",
        page=page,
        history=[_history_row(one) for one in page.history],
        # Within a script only "</" and "<!--" could end it.
        data=Markup(json.dumps(data, sort_keys=True).replace("<", "\\u003c")),
    )


def stretch(plane, low, high):
    """A plane as bytes, black at `low` and white at `high`; all black where these are the same."""
    if not high > low:
        return np.zeros(np.shape(plane), np.uint8)
    return np.clip(np.round((np.nan_to_num(plane) - low) / (high - low) * 255), 0, 255).astype(np.uint8)


def draw_outlines(nuclei, bodies, number):
    """Draw outlines on transparent ground: bright of the cell that is asked for, faint of its neighbors.

    Parameters
    ----------
    nuclei, bodies : array of int, shape (H, W)
        Labels; a cell's body has its nucleus' number.
    number : int

    Returns
    -------
    array of uint8, shape (k H, k W, 4)
    """
    enlarge = max(1, -(-OUTLINE_PX // nuclei.shape[1]))
    drawn = np.zeros((nuclei.shape[0] * enlarge, nuclei.shape[1] * enlarge, 4), np.uint8)
    fine = [np.repeat(np.repeat(labels, enlarge, axis=0), enlarge, axis=1) for labels in (bodies, nuclei)]
    for labels, color in zip(fine, OTHERS, strict=True):
        drawn[outline_mask(labels)] = color
    for labels, color in zip(fine, OWN, strict=True):
        drawn[outline_mask(labels == number)] = color
    return drawn


def _history_row(one):
    """One round's figures in words: round, labels, accuracy on cells drawn by chance, and gain."""
    gain = one.get("gain") or {}
    after, grown = gain.get("after"), gain.get("gain")
    return {
        "round": one["round"],
        "labels": one["labels"],
        "accuracy": f"{after['value']:.2f} ({after['low']:.2f} to {after['high']:.2f})" if after else "–",
        "gain": f"{grown['value']:+.2f} ({grown['low']:+.2f} to {grown['high']:+.2f})" if grown else "–",
    }
