"""XML that a microscope wrote, read as if a stranger had: in bounded memory, no entities, nothing outside the file."""

import xml.etree.ElementTree as ElementTree
from pathlib import Path
from xml.parsers import expat

from plateloom.errors import PlateLayoutError

LIMIT = 1 << 30  # bytes; an index of 100,000 images has 150 MB


def elements(path, *tags, root=False):
    """Read elements one after the other; each is forgotten when the next is asked for.

    Parameters
    ----------
    path : path
    *tags : str
        Names without namespaces. An element inside of a wanted one is not yielded again.
    root : bool
        Yield the (still empty) root element first.

    Yields
    ------
    xml.etree.ElementTree.Element
        Its tags and attributes, and those of what is in it, without namespaces.

    Raises
    ------
    PlateLayoutError
        If the file is missing, larger than 1 GiB, not well-formed, or declares a document type (and so entities).
    """
    path = Path(path)
    try:
        if path.stat().st_size > LIMIT:
            raise PlateLayoutError(f"{path.name!r} is larger than {LIMIT >> 20} MiB; no plate's metadata are")
        with open(path, "rb") as file:
            _refuse_document_type(file, path)
            file.seek(0)
            yield from _read(file, set(tags), root)
    except FileNotFoundError:
        raise PlateLayoutError(f"no file {str(path)!r}") from None
    except (ElementTree.ParseError, expat.ExpatError, UnicodeError, LookupError, ValueError) as error:
        if isinstance(error, PlateLayoutError):
            raise
        raise PlateLayoutError(f"{path.name!r} is not well-formed XML: {error}") from None


def _read(file, tags, root):
    depth, first = 0, None
    for event, element in ElementTree.iterparse(file, events=("start", "end")):
        element.tag = element.tag.rpartition("}")[2]
        if event == "start":
            for name in [name for name in element.attrib if "}" in name]:
                element.attrib[name.rpartition("}")[2]] = element.attrib.pop(name)
            if first is None:
                first = element
                if root:
                    yield element
            depth += element.tag in tags
        elif element.tag in tags:
            depth -= 1
            if not depth:
                yield element
                element.clear()
        elif not depth:
            element.clear()
        if event == "end" and not depth and element is not first:
            first[:] = [child for child in first if child is not element]


def _refuse_document_type(file, path):
    """A document type stands before the root element or nowhere, and is all that entities can come from."""

    def refuse(*_):
        raise PlateLayoutError(f"{path.name!r} declares a document type; metadata of microscopes have none")

    class RootSeen(Exception):
        pass

    def stop(*_):
        raise RootSeen

    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler, parser.StartElementHandler = refuse, stop
    try:
        while chunk := file.read(1 << 16):
            parser.Parse(chunk)
        parser.Parse(b"", True)
    except RootSeen:
        return
