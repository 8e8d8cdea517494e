"""A plate's flat-fields: one array per channel in `illumination.zarr`."""

import functools
from pathlib import Path

import numpy as np
import zarr
from zarr.codecs import ZstdCodec

from plateloom.errors import PlateLayoutError
from plateloom.store.integrity import VouchedStore
from plateloom.store.plate import open_array, read_group, remove_group, write_group


def write_flatfields(path, flatfields, record, *, offset=0.0):
    """Write a plate's flat-fields.

    Parameters
    ----------
    path : path
    flatfields : dict of str to ndarray of float32, shape (Y, X)
        Per channel, mean 1.
    record : dict
        The `plateloom` record; written last.
    offset : float
        What the camera reads in the dark [counts]; taken off before the division.
    """
    path = Path(path)
    remove_group(path)
    store = VouchedStore(path)
    for channel, flatfield in flatfields.items():
        zarr.create_array(
            store,
            name=channel,
            data=flatfield,
            chunks=flatfield.shape,
            compressors=[ZstdCodec(level=3, checksum=True)],
            zarr_format=3,
            config={"write_empty_chunks": True},
        )
    attributes = {"plateloom": record, "channels": list(flatfields), "offset": offset}
    write_group(path, attributes, arrays=store.finish())


def read_flatfields(path, channels, fingerprint):
    """Read flat-fields, once per process.

    Parameters
    ----------
    path : path
    channels : sequence of str
    fingerprint : str
        Of the flat-fields that the caller expects.

    Returns
    -------
    flatfields : ndarray of float32, shape (C, Y, X)
    offset : float
        [counts].

    Raises
    ------
    PlateLayoutError
        If other flat-fields lie there.
    """
    return _read(str(path), tuple(channels), fingerprint)


@functools.lru_cache(maxsize=2)
def _read(path, channels, fingerprint):
    attributes = read_group(path) or {}
    found = attributes.get("plateloom", {}).get("fingerprint")
    if found != fingerprint:
        raise PlateLayoutError(f"{path!r} holds the flat-fields {found}, expected {fingerprint}; run again")
    flatfields = np.stack([open_array(path, attributes, channel)[...] for channel in channels])
    flatfields.flags.writeable = False  # everyone in this process is given the same
    return flatfields, attributes["offset"]
