"""How bright a plate is: the range of each of its channels, from a choice of its fields that QC has not flagged."""

import functools

import numpy as np

from plateloom.stages.illumination import choose_fields, read_corrected, tile_window
from plateloom.store import plate as store
from plateloom.store.layout import plate_folder, plate_store
from plateloom.store.tables import read_record, read_table

FIELDS = 32
PERCENTILES = (1.0, 99.9)


def choose_range_fields(plate):
    """Choose the fields of a plate that its range is measured on, by a hash: the same for every part of it.

    Parameters
    ----------
    plate : str
        Whose fields QC has judged.

    Returns
    -------
    fields : list of (str, int, int)
        Well, image, and its field of the source; flagged ones only where there is no other.
    inputs : dict of str to str
        Their part of a recipe: a late image outside of the choice changes nothing.
    """
    path = plate_folder(plate) / "qc.parquet"
    table = read_table(path, ["Metadata_Well", "Metadata_Field", "SourceField", "Reason"])
    wells = read_record(path)["inputs"]
    good = table.groupby(["Metadata_Well", "SourceField"]).agg(
        image=("Metadata_Field", "first"), bad=("Reason", lambda said: (said != "").any())
    )
    good = good if good["bad"].all() else good[~good["bad"]]
    images = {(well, int(field)): int(image) for (well, field), image in good["image"].items()}
    chosen = choose_fields(list(images), FIELDS)
    fields = [(well, images[well, field], field) for well, field in chosen]
    return fields, {f"range of {plate}/{well}/{field}": wells[well] for well, field in chosen}


@functools.lru_cache(maxsize=8)
def measure_range(plate, fields, flatfield, channels):
    """Measure the range of a plate's channels, once in each process.

    Parameters
    ----------
    plate : str
    fields : tuple of (str, int, int)
        Of `choose_range_fields`.
    flatfield : str
        Fingerprint of the plate's flat-fields.
    channels : tuple of str, length C

    Returns
    -------
    low, high : tuple of float, length C
        Medians over the fields of the 1st percentile and the 99.9th of their corrected pixels; 0 and 0 of a channel that
        none of them has.
    """
    found = {channel: [] for channel in channels}
    for well, image, field in fields:
        path = store.field_path(plate_store(plate), well, image)
        missing = store.describe_image(path)["missing"]
        for channel in channels:
            if channel not in missing:
                pixels = read_corrected(
                    plate, well, image, flatfield, channels=[channel], window=tile_window(path, field)
                )
                found[channel].append(np.percentile(pixels, PERCENTILES))
    pairs = [np.median(some, axis=0).tolist() if some else [0.0, 0.0] for some in found.values()]
    return tuple(low for low, _ in pairs), tuple(high for _, high in pairs)
