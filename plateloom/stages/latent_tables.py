"""Latents of cells as other steps read them: which columns they are, to which cells they belong, and of which encoder."""

import re
from pathlib import Path

from plateloom import profiling
from plateloom.errors import PlateLayoutError
from plateloom.store.layout import well_table
from plateloom.store.tables import KEYS, read_record, read_table

LATENT = re.compile(r"Latent_\w+_\d+")  # not the error of a reconstruction
ERROR = "Latent_error"


def latent_columns(table):
    """Columns of a table that are latents, a list of str."""
    return [name for name in table.columns if LATENT.fullmatch(name)]


def input_columns(table, source):
    """Columns that a step learns from, a list of str: what features measure, or the latents.

    Parameters
    ----------
    table : DataFrame
    source : {'features', 'latent'}
    """
    return profiling.feature_columns(table) if source == "features" else latent_columns(table)


def join_latents(plate, well, cells, *, encoder=None, error=False):
    """Put latents beside cells of a well.

    Parameters
    ----------
    plate, well : str
    cells : DataFrame, shape (N, ...)
        Has the columns `KEYS`.
    encoder : str, optional
        Fingerprint of the encoder that the latents must be of.
    error : bool
        Also how badly each cell was reconstructed (`ERROR`), where the encoder says it.

    Returns
    -------
    DataFrame, shape (N, ... + K)
        NaN for cells of a field that lacks a channel.

    Raises
    ------
    PlateLayoutError
        If the latents are of another encoder.
    """
    found = one_encoder([(plate, well)])
    if encoder is not None and found != encoder:
        raise PlateLayoutError(f"needed are latents of the encoder {encoder}, these are of {found}")
    latents = read_table(well_table(plate, "latent", well))
    latents = latents[[*KEYS, *latent_columns(latents), *latents.columns.intersection([ERROR] if error else [])]]
    return cells.merge(latents, on=list(KEYS), how="left", validate="one_to_one")


def one_encoder(wells, *, folder="."):
    """Tell the encoder that the latents of wells are of.

    Parameters
    ----------
    wells : iterable of (str, str)
        Plates and wells.
    folder : path
        The screen's.

    Returns
    -------
    str
        Its fingerprint; 'unknown' where the tables do not tell, '' without wells.

    Raises
    ------
    PlateLayoutError
        If they are of several: columns of the same names mean different things.
    """
    found = {}
    for plate, well in wells:
        made = read_record(Path(folder) / well_table(plate, "latent", well)) or {}
        found.setdefault(str(made.get("inputs", {}).get("model", "unknown")), {})[plate] = None
    if len(found) > 1:
        each = "; ".join(f"{model}: {', '.join(plates)}" for model, plates in sorted(found.items()))
        raise PlateLayoutError(f"the latents are of different encoders ({each}); `plateloom run` makes them anew")
    return next(iter(found), "")
