"""One plane of an image file: decoded, and refused where it is not what a camera counts."""

import errno
import io
import re
import struct
from pathlib import Path

from plateloom.errors import UnreadableImageError
from plateloom.store.provenance import file_digest

LIMIT = 1 << 30  # bytes of pixels in one plane, and of a file that holds one plane
HIGHEST_RATIO = 1 << 16  # of compression; a plane of zeros reaches some thousands
# A large plane is a slide or a stitched well, which no compression packs so tightly; its zeros could fill the memory.
LARGE, HIGHEST_RATIO_OF_LARGE = 1 << 28, 100
PAGE, TAIL = 4096, 512  # bytes: what files are copied by; what of a file's end is looked at first


class DamagedError(ValueError):
    """A file that lacks some of its bytes, or has wrong ones."""


def load_plane(source, image):
    """Read and decode one plane; the `load` of most readers.

    A file of one plane is read whole; of a file with several, the plane's own bytes are read and nothing else.

    Parameters
    ----------
    source : path
    image : SourceImage

    Returns
    -------
    plane : ndarray of uint8 or uint16, shape (Y, X)
    content : str
        Digest of the file's bytes; of the plane's pixels where the file has several planes.

    Raises
    ------
    UnreadableImageError
        If the file cannot be decoded, declares more pixels than it can hold, or holds anything but gray planes of
        unsigned integers.
    """
    path = Path(source, image.file)
    if image.page >= 0:
        with open(path, "rb") as file:
            plane = gray_plane(image, decoded(image, _decode_tiff, file, path.stat().st_size, image.page))
        return plane, plane_digest(plane)
    size = path.stat().st_size
    if size > LIMIT:
        raise UnreadableImageError(f"{image.file}: {size} bytes, expected one plane of at most {LIMIT >> 20} MiB")
    data = path.read_bytes()
    return decode(data, image), file_digest(data)


def decode(data, image):
    """Pixels of a plane whose file is given as bytes; `UnreadableImageError` as `load_plane` does."""
    if image.file.lower().endswith((".tif", ".tiff")):
        decoded(image, _refuse_broken_copy, data)
        plane = decoded(image, _decode_tiff, io.BytesIO(data), len(data), image.page)
    else:
        plane = decoded(image, _decode_other, data)
    return gray_plane(image, plane)


def decoded(image, decoder, *arguments):
    """What a decoder returns; whatever it raises is an `UnreadableImageError`, unless disk or memory failed."""
    try:
        return decoder(*arguments)
    except MemoryError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        what = "truncated or damaged; copy it from the microscope again" if _is_damage(error) else "cannot be decoded"
        raise UnreadableImageError(f"{image.file}: {what} ({error or type(error).__name__})") from None


def _is_damage(error):
    """Whether an error tells of wrong or missing bytes, rather than of a kind of file that is not read."""
    if isinstance(error, (DamagedError, struct.error, IndexError, EOFError)):
        return True
    codec = type(error).__module__.partition(".")[0] in ("imagecodecs", "tifffile")
    return codec and not isinstance(error, ImportError) or str(error).startswith("failed to read ")


def plane_digest(plane):
    """Digest of a plane's pixels and shape, for files that hold other planes as well."""
    return file_digest(repr(plane.shape).encode() + plane.tobytes())


def gray_plane(image, plane):
    """The decoded pixels as one plane of counts in native byte order; `UnreadableImageError` where they are none."""
    import numpy as np

    plane = np.asarray(plane)
    if plane.ndim > 2:
        plane = np.squeeze(plane)
    if not plane.dtype.isnative:
        plane = plane.astype(plane.dtype.newbyteorder("="))
    if plane.ndim != 2 or plane.dtype not in (np.uint8, np.uint16):
        raise UnreadableImageError(
            f"{image.file}: {plane.dtype} {plane.shape} pixels, expected one plane of uint8 or uint16"
        )
    return plane


def _refuse_broken_copy(data):
    """Refuse a file whose space was set aside and whose copy broke off: the rest of it would be read as black.

    Files are copied by the page; an image that is black at its bottom hardly ever begins to be so between two pages, with not
    one black pixel in the page before.
    """
    if len(data) < 2 * PAGE or any(data[-TAIL:]):
        return
    end = len(data.rstrip(b"\0"))
    pages = -(-end // PAGE)
    before = data[(pages - 1) * PAGE : pages * PAGE - 4]
    if pages and pages * PAGE - end < 4 and all(map(any, zip(before[::2], before[1::2], strict=True))):
        raise DamagedError(f"nothing but zeros from byte {pages * PAGE} of {len(data)} on, as in a copy that broke off")


def _decode_tiff(file, size, number):
    from math import prod

    from tifffile import TiffFile

    with TiffFile(file) as tiff:
        if number < 0 and (pages := count_planes(tiff)) > 1:
            raise ValueError(f"holds {pages} pages, expected one")
        try:
            page = tiff.pages[max(number, 0)]
        except IndexError:
            raise ValueError(f"holds {len(tiff.pages)} pages, expected at least {number + 1}") from None
        if page.samplesperpixel > 1:
            raise ValueError(f"{page.samplesperpixel} samples per pixel, expected gray")
        declared = prod(page.shape) * page.dtype.itemsize if page.dtype else 0
        if declared > (min(LIMIT, size) if page.compression == 1 else _most_pixels(size)):
            raise DamagedError(f"declares {declared} bytes of pixels, the file has {size}")
        # Decoded, a strip that was never written would be zeros.
        if len(page.dataoffsets) < prod(page.chunked) or 0 in page.databytecounts:
            raise DamagedError("not all of its strips are there")
        return page.asarray()


def count_planes(tiff):
    """Planes that a file holds; stacks of ImageJ and MetaMorph may have one page only, with the others behind it."""
    pages = len(tiff.pages)
    if pages > 1:
        return pages
    if tiff.is_imagej:
        return int((tiff.imagej_metadata or {}).get("images", 1))
    counts = tiff.pages.first.tags.get("UIC2tag")
    return counts.count if counts else 1


def _most_pixels(size):
    """Bytes of pixels that a compressed file of so many bytes may declare."""
    return min(LIMIT, size * HIGHEST_RATIO, max(LARGE, size * HIGHEST_RATIO_OF_LARGE))


def _decode_other(data):
    from imagecodecs import jpeg8_decode, png_check, png_decode

    if png_check(data):
        _check_png(data)
        return png_decode(data)
    height, width, samples = _jpeg_shape(data)
    if height * width * samples * 2 > _most_pixels(len(data)):
        raise ValueError(f"declares {width} × {height} pixels")
    if samples > 1:
        raise ValueError(f"{samples} samples per pixel, expected gray")
    return jpeg8_decode(data)


def _check_png(data):
    """Refuse a PNG by its header: the first chunk after eight bytes of signature."""
    width, height, bits, kind = int.from_bytes(data[16:20]), int.from_bytes(data[20:24]), data[24], data[25]
    if data[12:16] != b"IHDR":
        raise ValueError("no PNG header")
    if width * height * bits // 8 > _most_pixels(len(data)):
        raise ValueError(f"declares {width} × {height} pixels")
    if kind != 0 or bits not in (8, 16):
        raise ValueError(f"PNG of color type {kind} with {bits} bits, expected gray with 8 or 16")


def _jpeg_shape(data):
    """Height, width [px] and samples per pixel that a JPEG declares in its first frame header."""
    at = 2
    while data[:2] == b"\xff\xd8" and (found := re.compile(rb"\xff+").match(data, at)):
        at = found.end()  # of the marker, which any number of fill bytes may stand before
        marker, length = data[at], int.from_bytes(data[at + 1 : at + 3])
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = int.from_bytes(data[at + 4 : at + 6]), int.from_bytes(data[at + 6 : at + 8])
            return height, width, data[at + 8]
        if marker in (0xD9, 0xDA):
            break
        at += 1 if marker == 0x01 or 0xD0 <= marker <= 0xD8 else 1 + length
    raise ValueError("neither PNG nor JPEG")
