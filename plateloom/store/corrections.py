"""Labels that a person has corrected: an input of the screen, as its images are, one TIFF per field.

``corrections/{plate}/{well}/{field}.tif`` has a page per compartment of `CORRECTED`, uint32, compressed. One file per field
is there whole or not at all, so nuclei and cells never come from two corrections.
"""

import io
from pathlib import Path

import numpy as np

from plateloom.errors import PlateLayoutError
from plateloom.store.provenance import file_digest, write_bytes
from plateloom.wells import parse_well, well_name

FOLDER = Path("corrections")
CORRECTED = ("Nuclei", "Cells")  # the cytoplasm follows from them


def correction_path(plate, well, field):
    """A field's file, below the screen's folder."""
    return FOLDER / plate / well / f"{field}.tif"


def write_correction(path, labels):
    """Store the corrected labels of a field, in place of those that were there.

    Parameters
    ----------
    path : path
    labels : dict of str to ndarray of uint32, shape (Y, X)
        For each of `CORRECTED`; 0 is background.
    """
    import tifffile

    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as tiff:
        for name in CORRECTED:
            pixels = np.asarray(labels[name], np.uint32)
            tiff.write(pixels, compression="zlib", predictor=True, description=name, metadata=None, contiguous=False)
    write_bytes(path, buffer.getvalue())


def read_correction(path, digest=None):
    """Read the corrected labels of a field.

    Parameters
    ----------
    path : path
    digest : str, optional
        What `list_corrections` said of the file.

    Returns
    -------
    dict of str to ndarray of uint32, shape (Y, X)

    Raises
    ------
    RuntimeError
        If the file has changed since it was listed: the next run takes it as it is.
    PlateLayoutError
        If it is not what `write_correction` wrote.
    """
    import tifffile

    data = Path(path).read_bytes()
    if digest is not None and file_digest(data) != digest:
        raise RuntimeError(f"{str(path)!r} has changed since the run began; run again")
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as tiff:
            pages = {page.description: page.asarray() for page in tiff.pages}
    except MemoryError:
        raise
    except Exception as error:  # whatever a decoder finds wrong
        raise PlateLayoutError(
            f"{str(path)!r} is no TIFF that can be read ({error}); import the labels again"
        ) from None
    if tuple(pages) != CORRECTED or len({(page.shape, str(page.dtype)) for page in pages.values()}) > 1:
        found = {name: f"{page.shape} {page.dtype}" for name, page in pages.items()}
        raise PlateLayoutError(f"{str(path)!r} holds {found}, expected a page of uint32 for each of {CORRECTED}")
    if (kind := pages["Nuclei"].dtype) != np.uint32:
        raise PlateLayoutError(f"{str(path)!r} holds {kind}, expected uint32")
    return pages


def list_corrections(folder, plate):
    """List what is corrected of a plate.

    Parameters
    ----------
    folder : path
        The screen's.
    plate : str

    Returns
    -------
    dict of str to dict of str to str
        Well to field to a digest of the file.
    """
    found = {}
    for path in sorted(Path(folder, FOLDER, plate).glob("*/*.tif")):
        well, field = path.parent.name, path.stem
        if field.isdecimal() and _is_well(well):
            found.setdefault(well, {})[field] = file_digest(path.read_bytes())
    return found


def remove_correction(path):
    """Forget a correction, and its folders where they are left empty."""
    path = Path(path)
    path.unlink()
    for folder in path.parents[:3]:
        if any(folder.iterdir()):
            return
        folder.rmdir()


def _is_well(name):
    try:
        return well_name(*parse_well(name)) == name
    except ValueError:
        return False
