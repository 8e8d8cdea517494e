"""What a model goes by: Shapley values of its trees, maps of its network and their test, pairs of cells."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from plateloom.intervals import MIN_UNITS
from plateloom.report.charts import data_uri, element, figure, line_chart, palette_colors
from plateloom.report.page import details, grid, join, paragraph, table

if TYPE_CHECKING:
    import pandas as pd

AGAINST_TO_FOR = ("#2166ac", "#f7f7f7", "#b2182b")
DARK_TO_BRIGHT = ("#000004", "#781c6d", "#ed6925", "#fcffa4")
GAP_PX = 4
MUCH = 0.5  # rank correlation from which on a map of a network that knows nothing is like that of the trained one


@dataclass(frozen=True, eq=False, kw_only=True)
class ExplanationReport:
    """What a model goes by, all measured on cells that it has not seen.

    Parameters
    ----------
    importance : DataFrame, optional
        Loss of the score without each family of features, or each channel; all columns are shown.
    score : str, optional
        What is lost.
    held : str, optional
        What was held out of the models that were asked: ``wells``, ``plates`` or ``batches``.
    shuffled : str, optional
        What these are.
    tree_families, tree_features : DataFrame, optional
        Mean absolute Shapley values: the name, and one column per class or of the predicted number.
    tree_note : str, optional
    pairs, pair_features : DataFrame, optional
        Rows of pairs of cells, and of the features that they differ in; all columns are shown.
    pair_pictures : sequence of (str, array of uint8, shape (H, W, 3), array of uint8, shape (H, W, 3)), optional
        Caption, the typical cell, and the nearest one of the other class.
    training : DataFrame, optional
        ``epoch``, and a column of losses per kind of groups.
    attribution : AttributionReport, optional
    note : str, optional
        Why something is not there.
    """

    importance: "pd.DataFrame | None" = None
    score: str = "balanced accuracy"
    held: str = "groups"
    shuffled: str = "families of features"
    tree_families: "pd.DataFrame | None" = None
    tree_features: "pd.DataFrame | None" = None
    tree_note: str = ""
    pairs: "pd.DataFrame | None" = None
    pair_features: "pd.DataFrame | None" = None
    pair_pictures: tuple = ()
    training: "pd.DataFrame | None" = None
    training_note: str = ""
    attribution: "AttributionReport | None" = None
    note: str = ""


@dataclass(frozen=True, eq=False, kw_only=True)
class AttributionReport:
    """Maps of the pixels that a network goes by.

    Parameters
    ----------
    randomized : DataFrame
        ``layers`` with random weights, from the last on; per method its rank correlation with the trained network's maps.
    agreement : mapping of str to float
        Per method the same with the network of another fold, which has learned from these cells; NaN if unknown.
    cells : int
    gap : float
        Most that a cell's attributions fail to sum to what they explain [share].
    classes : sequence of str, length M
    crops : sequence of array of uint8, shape (H, W, 3), length M
    gradients, gradients_randomized, cam, cam_randomized : array of float, shape (M, H, W)
    """

    randomized: "pd.DataFrame"
    agreement: dict
    cells: int
    gap: float
    classes: tuple = ()
    crops: tuple = ()
    gradients: np.ndarray | None = None
    gradients_randomized: np.ndarray | None = None
    cam: np.ndarray | None = None
    cam_randomized: np.ndarray | None = None


def explanation_parts(found):
    """Folded pieces of the classifier's section."""
    parts = [paragraph(found.note, "quiet") if found.note else None]
    if found.training is not None and len(found.training):
        lines = {str(name): found.training[name] for name in found.training if name != "epoch"}
        drawing = line_chart(found.training["epoch"], lines, x_label="epoch", y_label="cross-entropy [nats]", width=380)
        parts.append(details("Training of the network", join(grid([figure("Losses", drawing, found.training_note)]))))
    if found.importance is not None and len(found.importance):
        few = (
            "" if found.importance["low"].notna().any() else f" (none: it takes {MIN_UNITS} {found.held} of each class)"
        )
        one = "a channel" if found.shuffled == "channels" else "a family"
        note = (
            f"Loss of {found.score} when {one} is shuffled among cells of {found.held} that the model has not seen, with its "
            f"95 % interval over {found.held}{few}. No loss means that the others suffice, not that this one differs in nothing."
        )
        listed = join(paragraph(note, "quiet"), table(found.importance, empty=""))
        parts.append(details(f"What it goes by: {found.shuffled}", listed))
    if found.tree_families is not None and len(found.tree_families):
        tables = [
            figure(title, table(frame, empty=""))
            for title, frame in (("Families", found.tree_families), ("Single features", found.tree_features))
        ]
        listed = join(paragraph(found.tree_note, "quiet"), *tables)
        parts.append(details("What moves its trees: Shapley values (SHAP)", listed))
    if found.attribution is not None:
        parts.append(details("Which pixels it goes by", attribution_part(found.attribution)))
    if found.pairs is not None and len(found.pairs):
        parts.append(details("Nearly alike, and of two classes", pairs_part(found)))
    return join(*parts)


def pairs_part(found):
    """Pictures and figures of pairs of cells."""
    note = (
        "Left the most typical cell of a class (its highest probability among cells not seen), right the cell of the other class that is "
        "nearest to it, by the distance in which the classifier compares cells. Usual: half of the cells of the other class are farther "
        "than that. What differs between the two is what tells the classes apart where they come closest."
    )
    pictures = []
    for caption, typical, nearest in found.pair_pictures:
        gap = np.full((len(typical), GAP_PX, 3), 255, np.uint8)
        picture = np.concatenate([typical, gap, nearest], axis=1)
        pictures.append(figure(caption, _image(picture, "a typical cell, and the nearest of the other class", 1.5)))
    parts = [paragraph(note, "quiet"), grid(pictures) if pictures else None, table(found.pairs, empty="")]
    if found.pair_features is not None and len(found.pair_features):
        parts.append(figure("What they differ in most", table(found.pair_features, empty="")))
    return join(*parts)


def attribution_part(found):
    """Maps of example cells, what they would be if nothing were learned, and how alike the two are."""
    methods = [name for name in found.randomized if name != "layers"]
    words = []
    for name in methods:
        value, two = float(found.randomized[name].iloc[-1]), found.agreement.get(name, math.nan)
        if not math.isfinite(value):
            words.append(f"{name}: the network without knowledge gives no map at all.")
            continue
        said = f"{name}: rank correlation with the maps of a network of random weights {value:.2f}"
        said += (
            f", with those of the network of another fold, which has learned from these cells, {two:.2f}."
            if math.isfinite(two)
            else "."
        )
        if abs(value) > MUCH:
            said += " These maps mostly show the picture: do not read them as what was learned."
        words.append(said)
    note = (
        f"Computed for {found.cells} cells that the network has not seen. Sanity check (Adebayo et al. 2018): a map that shows what "
        "was learned must change when the weights are replaced by random ones, layer by layer from the output on; the correlation is 1 "
        "for a map that does not."
    )
    x = [0, *found.randomized["layers"]]
    lines = {name: [1.0, *found.randomized[name]] for name in methods}
    chart = line_chart(
        x, lines, x_label="layers with random weights", y_label="rank correlation", points=True, width=400
    )
    gap = f"Integrated gradients of a cell sum to what they explain up to {100 * found.gap:.1f} % (at most)."
    parts = [paragraph(" ".join(words)), paragraph(note, "quiet")]
    parts.append(grid([figure("Do the maps depend on what was learned?", chart, gap)]))
    if len(found.crops):
        parts.append(_examples(found))
    return join(*parts)


def _examples(found):
    """One column per cell: the cell, and its maps by the trained and by the random network."""
    rows = (
        ("cell", [np.asarray(crop, np.uint8) for crop in found.crops]),
        ("integrated gradients", _signed(found.gradients)),
        ("the same, random weights", _signed(found.gradients_randomized)),
        ("Grad-CAM", _positive(found.cam)),
        ("the same, random weights", _positive(found.cam_randomized)),
    )
    pictures = []
    for name, cells in rows:
        height, width = cells[0].shape[:2]
        strip = np.full((height, len(cells) * (width + GAP_PX) - GAP_PX, 3), 255, np.uint8)
        for i, cell in enumerate(cells):
            strip[:, i * (width + GAP_PX) : i * (width + GAP_PX) + width] = cell
        pictures.append(join(element("p", name, class_="note"), _image(strip, name, min(3, 960 / strip.shape[1]))))
    note = (
        f"Labeled, from left to right: {', '.join(found.classes)}. Red speaks for the class that the network chose, blue against it; of "
        "Grad-CAM, bright speaks for it. Each map has its own scale."
    )
    return figure("Cells that it has not seen, and their maps", join(*pictures), note)


def _signed(maps):
    """Colors of maps around 0, each scaled by its largest value."""
    most = np.abs(maps).max(axis=(1, 2), keepdims=True)
    return _colored((maps / np.maximum(most, 1e-30) + 1) / 2, AGAINST_TO_FOR)


def _positive(maps):
    """Colors of maps from 0 on, each scaled by its largest value."""
    return _colored(maps / np.maximum(maps.max(axis=(1, 2), keepdims=True), 1e-30), DARK_TO_BRIGHT)


def _colored(maps, palette):
    """Pictures of maps in [0, 1], shape (M, H, W, 3) of uint8."""
    return palette_colors(np.ravel(maps), palette).reshape(*maps.shape, 3)


def _image(picture, words, factor):
    """An image that the browser enlarges without smoothing it."""
    height, width = (round(side * factor) for side in picture.shape[:2])
    return Markup('<img class="pairs" src="{}" alt="{}" width="{}" height="{}">').format(
        data_uri(picture), words, width, height
    )
