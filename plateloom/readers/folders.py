"""What readers share about folders: listing them once, staying inside of them, and refusing a plane that is there twice."""

import os
import re
from pathlib import Path

from plateloom.errors import PlateLayoutError
from plateloom.store.provenance import file_digest
from plateloom.wells import parse_well, well_name

IMAGES = (".tif", ".tiff", ".png", ".jpg", ".jpeg")


def list_files(source, suffixes=IMAGES):
    """List a folder and those in it; links to folders are not followed.

    Parameters
    ----------
    source : path
    suffixes : tuple of str
        In small letters.

    Yields
    ------
    name : str
        Path below the source, with forward slashes. Bytes that are no UTF-8 stay as surrogates.
    entry : os.DirEntry

    Raises
    ------
    PlateLayoutError
        If there is no such folder.
    """
    waiting = [""]
    while waiting:
        folder = waiting.pop()
        try:
            entries = os.scandir(os.path.join(source, folder))
        except FileNotFoundError:
            raise PlateLayoutError(f"no folder {os.path.join(source, folder)!r}") from None
        except NotADirectoryError:
            raise PlateLayoutError(f"{str(source)!r} is a file, expected a folder") from None
        with entries:
            for entry in entries:
                name = f"{folder}/{entry.name}" if folder else entry.name
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(name)
                elif name.lower().endswith(suffixes) and _is_file(entry):
                    yield name, entry


def _is_file(entry):
    """Whether an entry is a file, or a link that leads to one."""
    try:
        return entry.is_file()
    except OSError:  # a circle of links
        return False


def list_changes(source, suffixes, well_of):
    """List what a plan depends on: the `listing` of most readers.

    Parameters
    ----------
    source : path
    suffixes : tuple of str
        Of images and of metadata files.
    well_of : callable(str) -> str or None
        The well as the name spells it; empty where a file matters to all wells, None where it does not matter.

    Yields
    ------
    well : str
        ``A01``, or empty.
    line : str
        Name, size [bytes] and time [ns] of the file.
    """
    wells = {"": ""}
    for name, entry in list_files(source, suffixes):
        text = well_of(name)
        if text is None:
            continue
        if text not in wells:
            wells[text] = name_well(text, name)
        status = entry.stat()
        yield wells[text], f"{name}/{status.st_size}/{status.st_mtime_ns}"


def digest_changes(module, source, params, part_of, parts):
    """Digest a plate's listing, one digest per part.

    Parameters
    ----------
    module : module
        The reader.
    source : path
    params : Params
    part_of : callable(str, int) -> int
        The part of a well.
    parts : int

    Returns
    -------
    list of str
        Of length `parts`.
    """
    lines, of_all, where = [[] for _ in range(parts)], [], {}
    for well, line in module.listing(source, params):
        if well not in where:
            where[well] = lines[part_of(well, parts)] if well else of_all
        where[well].append(line)
    # Names need not be UTF-8. What fields have in common is judged over the whole plate, so all parts look again.
    digests = [file_digest("\n".join(sorted(part + of_all)).encode(errors="surrogateescape")) for part in lines]
    return [file_digest("/".join([own, *digests]).encode()) for own in digests]


def compile_expression(text):
    """Compile a regular expression that a person wrote; `ValueError` says what is wrong with it."""
    try:
        return re.compile(text)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"'{text}' is no regular expression: {error}") from None


def name_well(text, file):
    """``A01`` for a well as a file's name spells it; `PlateLayoutError` naming the file where it is none."""
    try:
        return well_name(*parse_well(text))
    except ValueError as error:
        raise PlateLayoutError(f"{file!r}: {error}") from None


def below(source, name):
    """Path of a file that metadata name, relative to the source; refused if it points outside of it.

    >>> below("/data/plate", "Images\\\\a.tiff")
    'Images/a.tiff'
    """
    path = name.replace("\\", "/")
    if not path or "\0" in path or path.startswith("/") or re.match("[A-Za-z]:", path) or ".." in path.split("/"):
        raise PlateLayoutError(f"{name!r} in the metadata of {str(source)!r} points outside of it")
    try:
        if Path(source, path).resolve().is_relative_to(Path(source).resolve()):
            return path
    except (OSError, RuntimeError, UnicodeError):  # a circle of links, a name that no file can have
        pass
    raise PlateLayoutError(f"{name!r} in the metadata of {str(source)!r} points outside of it")


def sort_planes(images):
    """Sort planes, and refuse two files that claim the same well, field, channel, z and t.

    Parameters
    ----------
    images : list of SourceImage

    Returns
    -------
    list of SourceImage
    """
    images = sorted(images, key=lambda image: image[:6] + (image.page,))
    for one, two in zip(images, images[1:], strict=False):
        if one[:5] == two[:5]:
            raise PlateLayoutError(
                f"{one.file!r} and {two.file!r} claim the same plane (well {one.well}, field {one.field}, channel "
                f"{one.channel}, z {one.z}, t {one.t}); change how names are read (the reader's parameters, such as `pattern`), or "
                "remove one of them"
            )
    return images
