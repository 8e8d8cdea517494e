"""A plate's flat-fields, one array per channel in `illumination.zarr`; and what its source says of the light."""

import functools
from pathlib import Path

import numpy as np
import zarr
from zarr.codecs import ZstdCodec

from plateloom.errors import CorruptStoreError, PlateLayoutError
from plateloom.store.integrity import SEAL, VouchedStore
from plateloom.store.layout import plate_folder
from plateloom.store.plate import open_array, read_group, remove_group, write_group

SHADINGS = Path(".sources/shadings.zarr")  # in a plate's folder


def shadings_path(plate):
    """Group of what the source says of the light of its channels, kept by conversion."""
    return plate_folder(plate) / SHADINGS


def write_flatfields(path, flatfields, record, *, offset=0.0, restoration=()):
    """Write a plate's flat-fields.

    Parameters
    ----------
    path : path
    flatfields : dict of str to ndarray of float32, shape (Y, X)
        Per channel, mean 1.
    record : dict
        The `plateloom` record; written last.
    offset : float or dict of str to float
        What the camera reads in the dark, of all channels or of each [counts]; taken off before the division.
    restoration : sequence of dict
        The chain that corrected pixels are restored by (see `plateloom.restoration`).
    """
    offsets = offset if isinstance(offset, dict) else dict.fromkeys(flatfields, offset)
    attributes = {"plateloom": record, "channels": list(flatfields), "offsets": offsets}
    if restoration:
        attributes["restoration"] = list(restoration)
    _write_arrays(path, flatfields, attributes)


def write_shadings(path, said, record):
    """Write what a source says of the light of its channels, for the time when the source is gone.

    Parameters
    ----------
    path : path
    said : dict of str to dict
        By channel, JSON values; under `image` may stand an ndarray of unsigned integer, shape (H, W).
    record : dict
        The `plateloom` record; written last.
    """
    images = {channel: found["image"] for channel, found in said.items() if "image" in found}
    described = {
        channel: {key: value for key, value in found.items() if key != "image"} for channel, found in said.items()
    }
    _write_arrays(path, images, {"plateloom": record, "channels": described})


def read_shadings(path, fingerprint):
    """Read what `write_shadings` wrote.

    Parameters
    ----------
    path : path
    fingerprint : str
        Of what the caller expects.

    Returns
    -------
    dict of str to dict
        By channel; `image` is an ndarray of unsigned integer, shape (H, W).

    Raises
    ------
    PlateLayoutError
        If it is not there, not whole, or another one than the fingerprint says.
    """
    mend = "remove the plate's records/conversion/part-0.json and run again"
    try:
        attributes = read_group(path) or {}
        found = attributes.get("plateloom", {}).get("fingerprint")
        if found != fingerprint:
            raise PlateLayoutError(f"{str(path)!r} is {found}, expected {fingerprint}; {mend}")
        images = attributes.get(SEAL, {}).get("arrays", {})
        arrays = {channel: {"image": open_array(path, attributes, channel)[...]} for channel in images}
    except CorruptStoreError as error:
        raise PlateLayoutError(f"{error.file!r} {error.reason}; {mend}") from None
    return {channel: known | arrays.get(channel, {}) for channel, known in attributes["channels"].items()}


def _write_arrays(path, arrays, attributes):
    """Write a group of arrays, each one chunk, with its attributes last."""
    path = Path(path)
    remove_group(path)
    store = VouchedStore(path)
    for channel, values in arrays.items():
        zarr.create_array(
            store,
            name=channel,
            data=values,
            chunks=values.shape,
            compressors=[ZstdCodec(level=3, checksum=True)],
            zarr_format=3,
            config={"write_empty_chunks": True},
        )
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
    offset : ndarray of float64, shape (C, 1, 1)
        [counts].

    Raises
    ------
    PlateLayoutError
        If other flat-fields lie there.
    """
    return _read(str(path), tuple(channels), fingerprint)


@functools.lru_cache(maxsize=2)
def _read(path, channels, fingerprint):
    attributes = _attributes(path, fingerprint)
    flatfields = np.stack([open_array(path, attributes, channel)[...] for channel in channels])
    flatfields.flags.writeable = False  # everyone in this process is given the same
    return flatfields, np.array([attributes["offsets"][channel] for channel in channels], float).reshape(-1, 1, 1)


def read_restoration(path, fingerprint):
    """Read the chain that corrected pixels are restored by, once per process: list of dict, empty for none.

    Parameters
    ----------
    path : path
    fingerprint : str
        Of the flat-fields that the caller expects.

    Raises
    ------
    PlateLayoutError
        If other flat-fields lie there.
    """
    return _attributes(str(path), fingerprint).get("restoration", [])


@functools.lru_cache(maxsize=2)
def _attributes(path, fingerprint):
    attributes = read_group(path) or {}
    found = attributes.get("plateloom", {}).get("fingerprint")
    if found != fingerprint:
        raise PlateLayoutError(f"{path!r} holds the flat-fields {found}, expected {fingerprint}; run again")
    return attributes
