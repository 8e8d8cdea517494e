"""Cells that the screen's autoencoder restores badly: the limit of their error, and who lies beyond it."""

import math

from plateloom.latent.novelty import error_limit
from plateloom.stages.latent_tables import ERROR
from plateloom.store.layout import model_folder, well_table
from plateloom.store.provenance import read_json
from plateloom.store.tables import KEYS, read_table


def limit_of_error(spread):
    """The error from which on a cell counts as badly restored, by the errors of the cells held out of training.

    Parameters
    ----------
    spread : float
        See `plateloom.latent.novelty.error_limit`.

    Returns
    -------
    float
        NaN if there is no model, or one that reconstructs nothing.
    """
    card = read_json(model_folder("autoencoder") / "model.json") or {}
    errors = card.get("held_out_errors", [])
    return error_limit(errors, spread) if errors else math.nan


def read_errors(plate, well):
    """Keys of a well's cells and their error, NaN where it is not known."""
    return read_table(well_table(plate, "latent", well), [*KEYS, ERROR])
