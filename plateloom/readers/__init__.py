"""One file per layout of image folders. A reader lists a plate without reading pixels, and reads one plane at a time.

The contract of a reader's module:

- `Params`, a pydantic model that forbids extras;
- ``scan(source, params) -> Source``: the plate as one plain table, from names and metadata files alone;
- ``listing(source, params)``: yields (well, line) of each file that a scan depends on, in one directory listing, since
  it is called for every plate at every start; the well is empty where the file matters to all of them;
- ``load(source, image) -> (ndarray of uint8 or uint16, shape (Y, X); digest of its content)``;
- ``recognize(source, names) -> dict or None``: `reader`, `params`, `layout`, `share` (of the image files that it would
  read) for `plateloom init`.

What is wrong with a plate raises `PlateLayoutError`, what is wrong with one file `UnreadableImageError`.
"""

import dataclasses
from typing import NamedTuple

from plateloom.errors import did_you_mean

READERS = {
    "pattern": "plateloom.readers.pattern",
    "imagexpress": "plateloom.readers.imagexpress",
    "harmony": "plateloom.readers.harmony",
    "yokogawa": "plateloom.readers.yokogawa",
    "ome_tiff": "plateloom.readers.ome_tiff",
    "ome_zarr": "plateloom.readers.ome_zarr",
    "bioio": "plateloom.readers.bioio",
}

# What people call a microscope or a format, lower case; a part of the name is enough.
MADE_BY = {
    "harmony": ("operetta", "opera", "phenix", "columbus"),
    "imagexpress": ("metaxpress", "molecular"),
    "yokogawa": ("cellvoyager", "cv7000", "cv8000", "cq1"),
    "bioio": ("nikon", "nd2", "zeiss", "czi", "leica", "lif"),
}


def suggest_reader(name):
    """As `plateloom.errors.did_you_mean`, of readers, which are also known by their microscopes.

    >>> suggest_reader("Operetta CLS")
    " Did you mean 'harmony'?"
    """
    near = [reader for reader, words in MADE_BY.items() if any(word in name.lower() for word in words)]
    return did_you_mean(near[0] if near else name, READERS)


class SourceImage(NamedTuple):
    """One plane of a plate as its source folder has it.

    Attributes
    ----------
    well : str
        ``A01``.
    field : int
        As the source counts them.
    channel : str
        As the source calls it.
    z, t : int
        As the source counts them. A channel has either a stack or its projection, never both: where the source holds
        both, the reader's parameters say which one counts.
    file : str
        Path relative to the source folder, with forward slashes.
    size : int
        [bytes].
    modified : int
        [ns].
    page : int
        Of a file with several planes; -1 where the file must hold one only.
    y_um, x_um : float or None
        Center of the field, relative to any point that all fields of the well share; y grows as the image's rows do,
        x as its columns do [µm].
    z_um : float or None
        Height of the plane [µm].
    pixel_size_um : float or None
        [µm/px].
    seconds : float or None
        When the plane was taken, since 1970 [s].
    wavelength_nm : float or None
        Of the emission [nm].
    """

    well: str
    field: int
    channel: str
    z: int
    t: int
    file: str
    size: int
    modified: int
    page: int = -1
    y_um: float | None = None
    x_um: float | None = None
    z_um: float | None = None
    pixel_size_um: float | None = None
    seconds: float | None = None
    wavelength_nm: float | None = None


@dataclasses.dataclass
class Source:
    """A plate as its source folder has it.

    Attributes
    ----------
    images : list of SourceImage
        In the order of well, field, channel, z, t; no plane twice.
    shape : tuple of int or None
        Rows and columns of the physical plate.
    channels : dict of str to dict
        What metadata say of a channel, by its name in `images`: `name`, `color` (RRGGBB); of its light `flatfield` (the
        dict of `plateloom.readers.harmony.read_flatfield`), or the files, relative to the source folder, of a shading
        image, `correction`, and of a `dark` image of its camera. Each only where known.
    finished : bool or None
        Whether the microscope's own end marker is there; None where the layout has none.
    notes : list of str
        What a person should know: declared and absent, left out and why. One line each.
    plate : str
        What metadata call the plate: its barcode, if the microscope has read it; empty where they do not say.
    absent : int
        Planes that metadata declare and the folder lacks, as far as they say; of OME-TIFF its files, of OME-Zarr its wells.
    """

    images: list
    shape: tuple | None = None
    channels: dict = dataclasses.field(default_factory=dict)
    finished: bool | None = None
    notes: list = dataclasses.field(default_factory=list)
    plate: str = ""
    absent: int = 0


def load_reader(name):
    """Module of a reader by its name in plates.tsv."""
    from plateloom.registry import load_method

    return load_method(READERS, name, "reader")
