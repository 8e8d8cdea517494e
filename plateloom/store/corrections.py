"""Labels that a person has corrected: an input of the screen, as its images are, one TIFF per field.

``corrections/{plate}/{well}/{field}.tif`` has a page per compartment of `CORRECTED`, uint32, compressed. One file per field
is there whole or not at all, so nuclei and cells never come from two corrections. The first page's DocumentName says what
they were painted on: digests of the image's channels.
"""

import hashlib
import io
from pathlib import Path

import numpy as np

from plateloom.errors import PlateLayoutError
from plateloom.store.provenance import file_digest, write_bytes
from plateloom.wells import parse_well, well_name

FOLDER = Path("corrections")
CORRECTED = ("Nuclei", "Cells")  # the cytoplasm follows from them
_DOCUMENT_NAME = 269
_STRIP_PX = 1024  # rows that are in memory at a time


def correction_path(plate, well, field):
    """A field's file, below the screen's folder."""
    return FOLDER / plate / well / f"{field}.tif"


def digest_labels(labels):
    """Digest a label image by its values, whatever integers hold them and however its file is packed."""
    pixels = np.ascontiguousarray(labels, np.uint32)
    return file_digest(f"{pixels.shape}".encode() + pixels.tobytes())


def digest_image(path):
    """Digest the pixels of a field's image, at full size and as they were converted.

    Parameters
    ----------
    path : path
        The field's group.

    Returns
    -------
    list of str
        One for each channel, sorted; channels without pixels are left out. What else is known of the image, names and
        fingerprints, is not part of them.
    """
    from plateloom.store.plate import describe_image, read_image

    described = describe_image(path)
    shape, found = described["shape"], []
    for i, name in enumerate(described["channels"]):
        if name not in described["missing"]:
            digest = hashlib.blake2b(f"{shape[-2:]}".encode(), digest_size=16)
            for top in range(0, shape[-2], _STRIP_PX):
                strip = (slice(top, top + _STRIP_PX), slice(None))
                digest.update(np.ascontiguousarray(read_image(path, channels=[i], window=strip)))
            found.append(digest.hexdigest())
    return sorted(found)


def same_image(one, other):
    """Whether digests of channels are of one image; so they are where channels were added or left out, or either is unknown."""
    one, other = set(one), set(other)
    return not one or not other or one <= other or other <= one


def write_correction(path, labels, image=()):
    """Store the corrected labels of a field, in place of those that were there.

    Parameters
    ----------
    path : path
    labels : dict of str to ndarray of uint32, shape (Y, X)
        For each of `CORRECTED`; 0 is background.
    image : iterable of str
        What `digest_image` says of the image that they were painted on; empty where that is not known.
    """
    import tifffile

    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as tiff:
        for name in CORRECTED:
            pixels = np.asarray(labels[name], np.uint32)
            known = [(_DOCUMENT_NAME, "s", 0, " ".join(image), True)] if image and name == CORRECTED[0] else []
            how = {"compression": "zlib", "predictor": True, "metadata": None, "contiguous": False}
            tiff.write(pixels, description=name, extratags=known, **how)
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
    labels : dict of str to ndarray of uint32, shape (Y, X)
    image : list of str
        Digests of the image that they were painted on; empty where that is not known.

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
            image = tiff.pages.first.tags.valueof(_DOCUMENT_NAME, "").split()
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
    return pages, image


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
