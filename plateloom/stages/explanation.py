"""What a model of classes or numbers goes by, as the screen's page shows it: its card and the pictures beside it -> a description."""

import math

import numpy as np
import pandas as pd

from plateloom import report
from plateloom.classification.splits import SCHEMES
from plateloom.report.explanation import AttributionReport, ExplanationReport
from plateloom.store.layout import model_folder


def describe_explanation(card, settings=None):
    """Describe what a model of classes or numbers goes by.

    Parameters
    ----------
    card : dict
        Content of `model.json` of the classifier.
    settings : dict, optional
        `channels` with their `color`; without it there are no pictures.

    Returns
    -------
    ExplanationReport
    """
    model, (pictures, lost) = card["card"], _read_pictures()
    found = model["metrics"]
    crops = card.get("inputs") == "crops"
    columns = ["family", "features", "loss", "low", "high"]
    importance = pd.DataFrame(found.get("importance", ()), columns=columns).astype({"low": float, "high": float})
    if crops:
        importance = importance.drop(columns="features").rename(columns={"family": "channel"})
    trees, maps = found.get("trees", {}), found.get("attribution", {})
    missing = [
        f"{what} were not computed: {one['reason']}."
        for what, one in (("Shapley values of the trees", trees), ("Maps of the network", maps))
        if "reason" in one
    ]
    missing += [
        f"{plate} was left out of the training: it has {why}." for plate, why in card.get("left_out", {}).items()
    ]
    described = {"note": " ".join([*missing, *lost]), "importance": importance}
    if trees.get("families"):
        described |= _trees(trees, found.get("classes"))
    channels = card.get("pictures", {}).get("channels", [])
    colors = [f"#{settings['channels'][name]['color'].lstrip('#')}" for name in channels[:3]] if settings else []
    described |= _pairs(found.get("pairs", ()), pictures.get("pairs"), colors)
    if maps.get("randomized"):
        shown = (
            [f"#{settings['channels'][name]['color'].lstrip('#')}" for name in model["features"][:3]]
            if settings
            else []
        )
        described["attribution"] = _attribution(maps, pictures, shown)
    if "training" in model:
        described |= _training(model["training"], model["params"]["epochs"])
    described["score"] = "balanced accuracy" if "classes" in found else "R²"
    described["held"] = SCHEMES[found.get("importance_by", found["scheme"])]
    return ExplanationReport(shuffled="channels" if crops else "families of features", **described)


def _read_pictures():
    """Pictures beside the model, none where it has none, and what is to be said of them."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = model_folder("classifier") / "examples.safetensors"
    try:
        return (load_file(path) if path.exists() else {}), []
    except SafetensorError as error:
        return {}, [f"Pictures are not shown: {path.name} cannot be read ({error}); plateloom verify --repair helps."]


def _trees(trees, classes):
    """Tables of Shapley values, a column per class, or one of the predicted number."""
    of_class = lambda row: dict(zip(classes or ["prediction"], row["values"], strict=True))  # noqa: E731
    moved = f"{trees['unit']} of each class" if classes else "prediction, in the unit of the labels"
    families = [{"family": row["family"], "features": row["features"]} | of_class(row) for row in trees["families"]]
    features = [{"feature": row["feature"]} | of_class(row) for row in trees["features"]]
    note = (
        f"How far features move the {moved}, on average over {trees['cells']} cells that the model has not seen "
        "(mean of absolute Shapley values; those of a family are summed first). Of features that say the same, any may get the credit."
    )
    return {"tree_families": pd.DataFrame(families), "tree_features": pd.DataFrame(features), "tree_note": note}


def _pairs(rows, pictures, colors):
    """Tables of pairs and of what they differ in, and their pictures with captions."""
    listed, differ, drawn = [], [], []
    for number, row in enumerate(rows, 1):
        place = lambda cell: f"{cell['plate']} {cell['well']}, field {cell['field']}, cell {cell['object']}"  # noqa: E731
        one = {"pair": number, "typical": row["class"], "its cell": place(row["typical"])}
        one |= {"probability": row["probability"], "nearest": row["other"], "its cell ": place(row["nearest"])}
        one |= {"probability ": row["nearest_probability"], "distance": row["distance"], "usual": row["usual"]}
        listed.append(one)
        for feature in row["differ"]:
            values = {name: math.nan if feature[name] is None else feature[name] for name in ("typical", "nearest")}
            differ.append({"pair": number, "feature": feature["feature"], **values, "change [SD]": feature["change"]})
        ends = [row[end].get("picture") for end in ("typical", "nearest")]
        if pictures is not None and colors and None not in ends:
            drawn.append((f"{number}: {row['class']} | {row['other']}", *(_draw(pictures[i], colors) for i in ends)))
    return {"pairs": pd.DataFrame(listed), "pair_features": pd.DataFrame(differ), "pair_pictures": tuple(drawn)}


def _attribution(maps, pictures, colors):
    """What the page says of a network's maps."""
    methods = list(maps["agreement"])
    randomized = pd.DataFrame(maps["randomized"])[["layers", *methods]].astype(dict.fromkeys(methods, float))
    own = {name.partition(".")[2]: values for name, values in pictures.items() if name.startswith("attribution.")}
    shown = {}
    if own and colors:
        shown = {name: own[name].astype(np.float32) for name in own if name != "crops"}
        shown |= {"crops": [_draw(crop, colors) for crop in own["crops"]], "classes": tuple(maps["examples"])}
    return AttributionReport(
        randomized=randomized,
        agreement={name: math.nan if value is None else value for name, value in maps["agreement"].items()},
        cells=maps["cells"],
        gap=maps["gap"],
        **shown,
    )


def _training(training, epochs):
    """Losses of the network, and which epoch was kept."""
    losses = pd.DataFrame(training["losses"]).rename(columns={"train": "training", "tuning": "groups kept for tuning"})
    losses = losses.astype({name: float for name in losses if name != "epoch"}).dropna(axis=1, how="all")
    note = f"The weights of epoch {training['epoch']} were kept, of {len(losses)} that were run (at most {epochs})."
    if "groups kept for tuning" in losses:
        note += " Groups kept for tuning only decide when to stop; what is tested is never among them."
    return {"training": losses, "training_note": note}


def _draw(crop, colors):
    """A crop in its first three channels as RGB."""
    inside = np.clip(crop[: len(colors)].astype(np.float32), 0, 1)
    side = inside.shape[-1]
    return report.composite_image(inside, colors, [(0, 1)] * len(colors), width_px=(side, side))
