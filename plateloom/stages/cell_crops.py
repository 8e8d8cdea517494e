"""Crops of cells, cut from corrected images, and the states of networks that are trained on them."""

import traceback
from collections.abc import MutableMapping
from pathlib import Path

import numpy as np

from plateloom.classification.cnn import SAME_PIXEL
from plateloom.errors import PlateLayoutError
from plateloom.latent.crops import crop_cells
from plateloom.stages.illumination import read_corrected
from plateloom.stages.mosaics import find_centers
from plateloom.store import plate as store
from plateloom.store.crops import BLOCK
from plateloom.store.layout import plate_store, well_table
from plateloom.store.provenance import write_bytes
from plateloom.store.tables import read_record
from plateloom.tiling import cut_tiles

PIECE_PX = 3072  # larger images are read in pieces of this side, whatever the engine's tiles: batches stay the same


def alike_plates(wells):
    """Choose plates whose crops can be learned from together: those that are like the most wells.

    Parameters
    ----------
    wells : dict of str to int
        Plates, and how many wells of each would be learned from.

    Returns
    -------
    channels : list of str
    pixel_size_um : float
        Of the first of these plates [µm/px].
    left_out : dict of str to str
        Plates that have other channels, or pixels that differ in size by more than 5 %, and in what they differ.
    """
    known = {plate: describe_first(plate) for plate in wells}

    def differ(plate, other):
        (names, size), (expected, pixel_size_um) = known[plate], known[other]
        if set(names) != set(expected):
            return f"the channels {', '.join(names)}, others {', '.join(expected)}"
        return (
            f"pixels of {size:g} µm, others {pixel_size_um:g} µm" if abs(size / pixel_size_um - 1) > SAME_PIXEL else ""
        )

    first = max(wells, key=lambda plate: sum(n for other, n in wells.items() if not differ(other, plate)))
    channels, pixel_size_um = known[first]
    return list(channels), pixel_size_um, {plate: why for plate in wells if (why := differ(plate, first))}


def same_channels(plates):
    """Channels of plates, a list of str.

    Raises
    ------
    PlateLayoutError
        If they are not the same on all of them.
    """
    found = {describe_first(plate)[0] for plate in plates}
    if len(found) > 1:
        raise PlateLayoutError(f"the plates have different channels: {sorted(found)}")
    return list(found.pop())


def shared_channels(plates):
    """Channels that all of some plates have, in the order of the first: what pictures of their cells can show."""
    found = [describe_first(plate)[0] for plate in plates]
    return [name for name in found[0] if all(name in names for names in found)]


def describe_first(plate):
    """Channels (tuple of str) and pixel size [µm/px] of a plate's first image."""
    fields = store.list_fields(plate_store(plate))
    well, field = next((well, field) for well, listed in fields.items() for field in listed)
    described = store.describe_image(store.field_path(plate_store(plate), well, field))
    return tuple(described["channels"]), described["pixel_size_um"]


def cut_cells(plate, well, cells, *, crop_um, out_px, channels):
    """Cut out some cells of a well, a block of them at a time; runs in a worker.

    Parameters
    ----------
    plate, well : str
    cells : DataFrame, shape (N, ...)
        Rows of the well's features: `Metadata_Field`, `Metadata_ObjectNumber`.
    crop_um : float
        Side of the square [µm].
    out_px : int
        Side of the crops [px].
    channels : sequence of str, length C

    Yields
    ------
    rows : ndarray of int, shape (n,)
        Which cells; each comes once, field by field.
    crops : ndarray of float32, shape (n, C, out_px, out_px)
        NaN for cells of an image that lacks a channel, and for cells that are not there.

    Raises
    ------
    PlateLayoutError
        If the plate does not have these channels.
    """
    made = read_record(well_table(plate, "features", well))["inputs"]
    fields = cells["Metadata_Field"].to_numpy()
    numbers = cells["Metadata_ObjectNumber"].to_numpy()
    where = {"flatfield": made["illumination"], "made": made["labels"], "mask": "none", "channels": channels}
    for field in np.unique(fields):
        path = store.field_path(plate_store(plate), well, int(field))
        described = store.describe_image(path)
        if lacking := sorted(set(channels) - set(described["channels"])):
            raise PlateLayoutError(
                f"{plate} has the channels {', '.join(described['channels'])}, needed are also {', '.join(lacking)}"
            )
        own = np.flatnonzero(fields == field)
        there = np.zeros(len(own), bool)
        if not set(described["missing"]) & set(channels) and "Nuclei" in store.list_labels(path):
            values, centers = find_centers(path, made["labels"])
            place = np.minimum(np.searchsorted(values, numbers[own]), max(len(values) - 1, 0))
            there = values[place] == numbers[own] if len(values) else there
            found, place = own[there], place[there]
            chosen = values[place], centers[place]
            for some, crops in cut_crops(plate, well, int(field), *chosen, crop_um=crop_um, side_px=out_px, **where):
                yield found[some], crops
        for start in range(0, (~there).sum(), BLOCK):
            rows = own[~there][start : start + BLOCK]
            yield rows, np.full((len(rows), len(channels), out_px, out_px), np.nan, np.float32)


def cut_picture(cell, crop_um, out_px, channels):
    """The crop of one cell, shape (1, C, out_px, out_px), or the traceback if there is none; runs in a worker."""
    plate, well = cell[["Metadata_Plate", "Metadata_Well"]].iloc[0]
    try:
        ((_, crop),) = cut_cells(plate, well, cell, crop_um=crop_um, out_px=out_px, channels=channels)
    except Exception:  # whatever it is, it is logged
        return traceback.format_exc()
    return crop


def cut_crops(
    plate, well, field, values, centers, *, flatfield, made, mask, crop_um, side_px, channels=None, piece_px=PIECE_PX
):
    """Cut cells out of an image, which is read piece by piece if it is large.

    Parameters
    ----------
    plate, well : str
    field : int
    values : array of int, shape (N,)
        Their labels.
    centers : array of float, shape (N, 2)
        Row and column [px].
    flatfield, made : str
        Fingerprints of the plate's flat-fields and of the labels.
    mask : {'none', 'others', 'cell'}
    crop_um : float
        Side in the image [µm].
    side_px : int
        Side of the crops [px].
    channels : sequence of str, optional
    piece_px : int
        [px].

    Yields
    ------
    numbers : ndarray of int, shape (n,)
        Which cells.
    crops : ndarray of float32, shape (n, C, side_px, side_px)
    """
    path = store.field_path(plate_store(plate), well, field)
    size = round(crop_um / store.describe_image(path)["pixel_size_um"])
    owner = np.floor(centers / piece_px).astype(int)
    for piece in cut_tiles(store.image_shape(path)[-2:], piece_px, halo_px=size // 2 + 2):
        own = np.flatnonzero((owner * piece_px == [part.start for part in piece.core]).all(axis=1))
        if not len(own):
            continue
        image = read_corrected(plate, well, field, flatfield, channels=channels, window=piece.window)
        labels = None if mask == "none" else store.read_labels(path, "Cells", window=piece.window, made=made)
        for start in range(0, len(own), BLOCK):
            numbers = own[start : start + BLOCK]
            yield (
                numbers,
                crop_cells(
                    image,
                    centers[numbers] - piece.origin,
                    size_px=size,
                    out_px=side_px,
                    labels=labels,
                    label_values=values[numbers],
                    keep_background=mask == "others",
                ),
            )


class States(MutableMapping):
    """States of trainings as files of a folder, by name; see `plateloom.classification.crop_network.Running`.

    Parameters
    ----------
    folder : path
    """

    def __init__(self, folder):
        self.folder = Path(folder)

    def _path(self, name):
        return self.folder / f"{name}.safetensors"

    def __getitem__(self, name):
        from safetensors.torch import load_file

        if not self._path(name).exists():
            raise KeyError(name)
        return load_file(self._path(name))

    def __setitem__(self, name, state):
        from safetensors.torch import save

        write_bytes(self._path(name), save(state))

    def __delitem__(self, name):
        self._path(name).unlink()

    def __iter__(self):
        return (path.stem for path in sorted(self.folder.glob("*.safetensors")))

    def __len__(self):
        return len(list(iter(self)))
