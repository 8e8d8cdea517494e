"""Cut an image into tiles with a halo."""

from typing import NamedTuple


class Tile(NamedTuple):
    """One tile of an image.

    Attributes
    ----------
    core : tuple of slice
        The rows and columns of the image that this tile answers for [px]. Cores tile the image without overlap.
    window : tuple of slice
        Core and halo, as far as the image goes [px].
    origin : tuple of int
        Where the window begins in the image [px].
    inner : tuple of slice
        The core within the window [px].
    """

    core: tuple
    window: tuple
    origin: tuple
    inner: tuple


def cut_tiles(shape, tile_px=None, *, halo_px=0):
    """Cut an image into squares, each seen with its surroundings.

    Parameters
    ----------
    shape : tuple of int
        Y and X of the image [px].
    tile_px : int, optional
        Side of a core [px]; default: the whole image is one.
    halo_px : int
        Width of the surroundings [px].

    Returns
    -------
    list of Tile
        Row by row.

    Examples
    --------
    >>> [(tile.core[1], tile.window[1]) for tile in cut_tiles((4, 10), 5, halo_px=2)]
    [(slice(0, 5, None), slice(0, 7, None)), (slice(5, 10, None), slice(3, 10, None))]
    """
    height, width = shape
    step = max(height, width, 1) if tile_px is None else tile_px
    cores = [
        (slice(y, min(y + step, height)), slice(x, min(x + step, width)))
        for y in range(0, height, step)
        for x in range(0, width, step)
    ]
    return [with_halo(core, shape, halo_px) for core in cores]


def with_halo(core, shape, halo_px):
    """Widen a core, slices that have start and stop, by its halo as far as the image goes: a `Tile`."""
    starts = tuple(max(part.start - halo_px, 0) for part in core)
    stops = [min(part.stop + halo_px, size) for part, size in zip(core, shape, strict=True)]
    window = tuple(slice(start, stop) for start, stop in zip(starts, stops, strict=True))
    inner = tuple(slice(part.start - start, part.stop - start) for part, start in zip(core, starts, strict=True))
    return Tile(core, window, starts, inner)
