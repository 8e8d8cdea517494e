"""One plane of an image file: read whole, decoded, and refused where it is not what a camera counts."""

import io
from pathlib import Path

from plateloom.errors import UnreadableImageError
from plateloom.store.provenance import file_digest

LIMIT = 1 << 30  # bytes of pixels in one plane


def load_plane(source, image):
    """Read and decode one plane; the `load` of most readers.

    Parameters
    ----------
    source : path
    image : SourceImage

    Returns
    -------
    plane : ndarray of uint8 or uint16, shape (Y, X)
    content : str
        Digest of the file's bytes, and of the page's number where the file has several.

    Raises
    ------
    UnreadableImageError
        If the file cannot be decoded, declares more pixels than it can hold, or holds anything but gray planes of
        unsigned integers.
    """
    data = Path(source, image.file).read_bytes()
    content = file_digest(data)
    return decode(data, image), content if image.page < 0 else f"{content}/{image.page}"


def decode(data, image):
    """Pixels of a plane whose file is given as bytes."""
    import numpy as np

    try:
        plane = _decode_tiff(data, image) if image.file.lower().endswith((".tif", ".tiff")) else _decode_other(data)
    except Exception as error:  # decoders raise whatever they like; any of it means that the file is bad
        raise UnreadableImageError(f"{image.file}: cannot be decoded ({error or type(error).__name__})") from None
    plane = np.squeeze(plane)
    if plane.ndim != 2 or plane.dtype not in (np.uint8, np.uint16):
        raise UnreadableImageError(
            f"{image.file}: {plane.dtype} {plane.shape} pixels, expected one plane of uint8 or uint16"
        )
    return plane


def _decode_tiff(data, image):
    from math import prod

    from tifffile import TiffFile

    with TiffFile(io.BytesIO(data)) as tiff:
        if image.page >= len(tiff.pages):
            raise ValueError(f"holds {len(tiff.pages)} pages, expected at least {image.page + 1}")
        if image.page < 0 and len(tiff.pages) > 1:
            raise ValueError(f"holds {len(tiff.pages)} pages, expected one")
        page = tiff.pages[max(image.page, 0)]
        declared = prod(page.shape) * page.dtype.itemsize if page.dtype else 0
        if declared > LIMIT or (page.compression == 1 and declared > len(data)):
            raise ValueError(f"declares {declared} bytes of pixels, the file has {len(data)}")
        return page.asarray()


def _decode_other(data):
    from imagecodecs import jpeg8_decode, png_check, png_decode

    if not png_check(data):
        return jpeg8_decode(data)
    width, height = int.from_bytes(data[16:20]), int.from_bytes(data[20:24])
    if width * height * 2 > LIMIT:
        raise ValueError(f"declares {width} × {height} pixels")
    return png_decode(data)
