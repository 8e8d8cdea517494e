"""XML that a microscope wrote, read as if a stranger had: in bounded memory, no entities, nothing outside the file."""

import functools
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from xml.parsers import expat

from plateloom.errors import PlateLayoutError

LIMIT = 1 << 30  # bytes; an index of 100,000 images has 150 MB
CHUNK = 1 << 16  # bytes
DEEPEST = 200  # elements in each other
JUNK = expat.errors.codes[expat.errors.XML_ERROR_JUNK_AFTER_DOC_ELEMENT]


def elements(path, *tags, root=False):
    """Read elements one after the other; each is forgotten when the next is asked for.

    Parameters
    ----------
    path : path
    *tags : str
        Names without namespaces. An element inside of a wanted one is not yielded again.
    root : bool
        Yield the root element first; its attributes are there, its content is yielded later.

    Yields
    ------
    xml.etree.ElementTree.Element
        Its tags and attributes, and those of what is in it, without namespaces.

    Raises
    ------
    PlateLayoutError
        If the file is missing, larger than 1 GiB, not well-formed, nests elements without end, or declares a document
        type (and so entities).
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
    """Parse a file chunk by chunk, and take from the growing tree what is complete: no step of Python for each of its tags."""
    builder, top = ElementTree.TreeBuilder(), None
    above = builder.start("", {})  # the root becomes its child, and so is seen while it grows
    parser = ElementTree.XMLParser(target=builder)
    while True:
        chunk, fault = file.read(CHUNK), None
        try:
            if chunk:
                parser.feed(chunk)
            else:
                parser.close()
        except ElementTree.ParseError as error:
            fault = error  # what stands before it counts
        if top is None and len(above):
            top = _without_namespace(above[0])
            if root:
                yield top
        if top is not None:
            ended = not chunk if fault is None else fault.code == JUNK
            yield from _take_complete(top, tags, whole=ended)
        if fault is not None:
            raise fault
        if not chunk:
            return


def _take_complete(top, tags, *, whole):
    """Take elements with ended tags out of a tree that grows at the last child of each; yields the wanted ones."""
    node = top
    for _ in range(DEEPEST):
        if _bare(node.tag) in tags:
            if whole:
                yield from _find_wanted(node, tags)
            return
        ended = node[:] if whole else node[:-1]
        del node[: len(ended)]
        for child in ended:
            yield from _find_wanted(child, tags)
        if not len(node):
            return
        node = node[0]
    raise PlateLayoutError(f"elements lie in each other more than {DEEPEST} deep; no plate's metadata do")


def _find_wanted(element, tags):
    """Wanted elements of a whole subtree, in order, none inside of another."""
    open_ = [element]
    while open_:
        one = open_.pop()
        if _bare(one.tag) in tags:
            for inner in one.iter():
                _without_namespace(inner)
            yield one
        else:
            open_.extend(reversed(one))


def _without_namespace(element):
    element.tag = _bare(element.tag)
    for name in element.keys():  # noqa: SIM118 - `attrib` would make a dict for each of millions that have none
        if "}" in name:
            element.attrib[_bare(name)] = element.attrib.pop(name)
    return element


@functools.lru_cache(maxsize=4096)
def _bare(name):
    """A name without its namespace."""
    return name.rpartition("}")[2]


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
