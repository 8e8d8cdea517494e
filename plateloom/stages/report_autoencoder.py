"""The autoencoder's section of the screen's page."""

import math

import numpy as np
import pandas as pd

from plateloom import report
from plateloom.stages.novelty import limit_of_error
from plateloom.stages.report_readouts import to_number
from plateloom.store.layout import model_folder
from plateloom.store.provenance import read_json


def describe_autoencoder(records, settings, notes):
    """What the page says of the autoencoder.

    Parameters
    ----------
    records : list of dict
        Of the autoencoder; empty where the config does not ask for one.
    settings : dict
        Of the page.
    notes : dict of str to str
        Gets why there is nothing to show.

    Returns
    -------
    AutoencoderReport or None
    """
    if not records or records[0]["status"] != "done":
        notes["autoencoder"] = (
            records[0]["reason"] if records else "The config does not ask for it (latent.autoencoder.enabled)."
        )
        return None
    from safetensors.numpy import load_file

    folder = model_folder("autoencoder")
    card = read_json(folder / "model.json")
    method = card["config"].get("method")
    contrastive = method == "contrastive"
    loss = "loss of contrast (NT-Xent)" if contrastive else "mean squared error"
    errors = np.asarray(card.get("held_out_errors", []))
    limit = limit_of_error(settings["config"]["latent"]["autoencoder"]["error_limit"])
    examples = load_file(folder / "examples.safetensors")
    shown = min(3, len(card["channels"]))
    colors = [f"#{settings['channels'][name]['color'].lstrip('#')}" for name in card["channels"][:shown]]

    def draw(crop):
        inside = np.clip(crop[:shown].astype(np.float32), 0, 1)
        return report.composite_image(inside, colors, [(0, 1)] * shown, width_px=(64, 128))

    pictures, worst = (
        [np.stack([draw(crop) for crop in side]) for side in examples[name]]
        if name in examples and examples[name].shape[1]
        else [None, None]
        for name in ("pairs", "worst")
    )
    learning = pd.DataFrame(card["history"]).rename(columns={"train": "training", "holdout": "held-out wells"})
    done = "Fitted" if method == "backbone" else "Trained"
    return report.AutoencoderReport(
        learning=learning,
        loss=loss,
        held_out_error=to_number(card["history"][-1]["holdout"] if card["history"] else None),
        mean_crop_error=to_number(card["baseline"]),
        pca_error=to_number(card.get("pca")),
        error=loss,
        baseline="guessing" if contrastive else "predicting the mean crop",
        limit=limit,
        beyond=float(np.mean(errors > limit)) if len(errors) else math.nan,
        crops=pictures[0],
        reconstructions=pictures[1],
        worst=worst[0],
        worst_reconstructions=worst[1],
        scheme=(
            f"{done} on {card['cells']['train']:,} crops of single cells from {len(card['wells']['train']):,} wells, tested on "
            f"{card['cells']['holdout']:,} from {len(card['wells']['holdout']):,} other wells"
        ),
        untrained=_backbone(card) if method == "backbone" else "",
    )


def _backbone(card):
    """What is said of a network that was not trained here."""
    config, found = card["config"], card["found"]
    ((file, content),) = card["weights"].items()
    words = (
        f"A network of your own, {config['model']}, not trained here; its weights are {file} ({content[:12]}). It gives "
        f"{found['numbers']:,} numbers for a cell"
    )
    if "variance" not in found:
        return f"{words}."
    words += f"; a PCA makes {config['latent_dim']} of them, which hold {found['variance']:.0%} of the variance"
    if "held_out_variance" in found:
        words += f", and {found['held_out_variance']:.0%} of that of cells of other wells"
    return f"{words}."
