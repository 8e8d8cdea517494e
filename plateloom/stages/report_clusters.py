"""The clusters' section of the screen's page."""

import math

import numpy as np
import pandas as pd

from plateloom import report
from plateloom.latent.clusters import DOUBTFUL, DRAWN, STABLE
from plateloom.stages.clusters import ask_examples, read_clusters
from plateloom.stages.report_readouts import with_micro
from plateloom.store.layout import screen_folder
from plateloom.store.tables import read_table

EXAMPLE_PX = 72


def describe_clusters(counted, pictures, settings, inputs, notes):
    """What the page says of the clusters.

    Parameters
    ----------
    counted : DataFrame, or an empty sequence
        Cells of each cluster in every well; empty where no plate has clusters.
    pictures : dict of int to list of ndarray
        Typical cells of each cluster, as `sort_examples` gives them.
    settings : dict
        Of the page.
    inputs : dict
        Records of the page's job; `mapped` are read.
    notes : dict of str to str
        Gets why there is nothing to show.

    Returns
    -------
    ClustersReport or None
    """
    found = read_clusters(inputs["mapped"])
    if not found or not len(counted):
        reasons = [record["reason"] for record in inputs["mapped"] if record["status"] != "done"]
        asked = settings["config"]["latent"]["maps"]["clusters"]["method"] != "none"
        notes["clusters"] = (
            "The config does not ask for them (latent.maps.clusters.method)."
            if not asked
            else reasons[0]
            if reasons
            else "The cells of no plate have clusters."
        )
        return None
    config, rows = found["config"], found["rows"]
    enrichment = with_micro(read_table(screen_folder() / "clusters.parquet"))
    totals = [int(counted[f"cluster {row['cluster']}"].sum()) for row in rows]
    every = int(counted["cells"].sum())
    stability = config["stability"] or [math.nan] * len(rows)
    shown = pd.DataFrame(
        {
            "cluster": [str(row["cluster"]) for row in rows],
            "cells": totals,
            "share": [total / every if every else math.nan for total in totals],
            "stability": [_grade(value) for value in stability],
            "one well": [row["of_one_well"] for row in rows],
            "unlike other cells": [
                "; ".join(f"{name}\u00a0{difference:+.1f}" for name, difference in row["features"]) for row in rows
            ],
            "enriched in": [report.name_enriched(enrichment, f"cluster {row['cluster']}") for row in rows],
        }
    )
    return report.ClustersReport(
        rows=shown,
        words=_clusters_words(config, rows, every, sum(totals)),
        note=(
            "Stability: how alike a cluster and the one most like it are (Jaccard index, mean) when clusters are looked for "
            f"again in {100 * DRAWN:.0f} % of the wells; {STABLE:g} and more is found again, less than {DOUBTFUL:g} is not. One well: the largest "
            "share of its cells that comes from a single well. Unlike other cells: features whose medians differ most "
            "from those of all other cells, for how much they vary on either side [robust SD: half of what the middle 68 % span]. Enriched in: treatments and doses with a larger share than the negative controls of "
            "their plates, a well being one observation (q ≤ 0.05, corrected over all treatments, doses and clusters; the whole "
            "table is clusters.parquet). The pictures show the cells nearest to the middle of each cluster, of several wells."
        ),
        pictures=_cluster_pictures(pictures, settings),
        enrichment=enrichment,
    )


def cut_clusters(rows, plates, settings):
    """Tasks that cut out typical cells of each cluster, and to which they belong."""
    size_um = settings["config"]["latent"]["autoencoder"]["crop_um"]
    return ask_examples(rows, plates, channels=_composite(settings), size_um=size_um, out_px=EXAMPLE_PX)


def _grade(stability):
    """A cluster's stability, and a word where it is no good."""
    if not math.isfinite(stability):
        return "not known"
    return f"{stability:.2f}{'' if stability >= STABLE else ' unstable' if stability < DOUBTFUL else ' doubtful'}"


def _clusters_words(config, rows, every, grouped):
    """How clusters were found, and which of them are not to be trusted."""
    name = {"kmeans": "k-means", "hdbscan": "HDBSCAN", "leiden": "Leiden (leidenalg and igraph, under the GPL)"}
    number = config["number"]
    words = f"{number} {'cluster' if number == 1 else 'clusters'} by {name.get(config['method'], config['method'])}"
    tried = [one["number"] for one in config["tried"]]
    if config["reason"]:
        words += f"; {config['reason']}"
    elif len(tried) > 1:
        words += f": of {tried[0]} to {tried[-1]} the most of which every one was found again in other wells"
    words += "."
    if config["agreement"] is not None and number:
        words += (
            f" Looked for {config['resamples']} times again, each time in other wells, they agree by {config['agreement']:.2f} "
            "(adjusted Rand index; 1 is the same, 0 chance)."
        )
    unstable = [
        str(row["cluster"])
        for row, value in zip(rows, config["stability"], strict=bool(config["stability"]))
        if value < DOUBTFUL
    ]
    if unstable:
        words += f" Unstable, and not to be relied on: {', '.join(unstable)}."
    if every > grouped:
        words += f" In no cluster: {every - grouped:,} of {every:,} cells ({(every - grouped) / every:.1%})."
    if config["method"] == "kmeans" and number > 1:
        words += " k-means cuts also where cells change gradually: a stable cluster need not be a kind of its own."
    return words


def _composite(settings):
    """Channels of a picture of cells."""
    return settings["report"]["composite"] or list(settings["channels"])[:3]


def _cluster_pictures(crops, settings):
    """Typical cells of each cluster, all with the same contrast."""
    if not crops:
        return ()
    colors = [f"#{settings['channels'][name]['color'].lstrip('#')}" for name in _composite(settings)]
    every = np.concatenate(list(crops.values()))
    windows = [tuple(np.percentile(every[:, i], [1, 99.7])) for i in range(len(colors))]
    draw = lambda crop: report.composite_image(crop, colors, windows, width_px=(EXAMPLE_PX, EXAMPLE_PX))  # noqa: E731
    return tuple((f"Cluster {cluster}", np.stack([draw(crop) for crop in cut])) for cluster, cut in crops.items())
