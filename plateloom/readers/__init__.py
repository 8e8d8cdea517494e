"""One file per layout of image folders. A reader lists a folder without reading pixels, and reads one plane at a time.

The contract of a reader's module: `Params` (pydantic), `scan(source, params)` -> list of `SourceImage`, `listing(source,
params)` -> well and a line of text per file, `load(source, image)` -> ndarray (Y, X) and the digest of its content, and `recognise(source, names)` -> suggestion or None, for `plateloom init`.
"""

from typing import NamedTuple

READERS = {
    "pattern": "plateloom.readers.pattern",
    "ome_zarr": "plateloom.readers.ome_zarr",
}


class SourceImage(NamedTuple):
    """One plane of a plate as its source folder has it.

    Attributes
    ----------
    well : str
        ``A01``.
    field : int
    channel : str
        As the source calls it.
    z, t : int
    file : str
        Path relative to the source folder.
    size : int
        [bytes].
    modified : int
        [ns].
    """

    well: str
    field: int
    channel: str
    z: int
    t: int
    file: str
    size: int
    modified: int


def load_reader(name):
    """Module of a reader by its name in plates.tsv."""
    from plateloom.registry import load_method

    return load_method(READERS, name, "reader")
