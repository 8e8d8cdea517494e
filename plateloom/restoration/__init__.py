"""Restoration: what is done to pixels after the correction of illumination, whenever they are read; nothing is stored.

A method is a module with ``Params``, ``halo_px(params, pixel_size_um)``, which says how far around it looks [px], and
``restore(plane, params, pixel_size_um)``, float32 (Y, X) in 0 … 1 to the same. What it makes of a pixel follows from the
plane within the halo alone, to the last bit: a window that is read with its halo is the same window of the whole image.
At the edge of an image the plane goes on as its mirror image.

A *chain* is a list of steps, done in order, each a dict of `method`, `parameters` and `channels` (None: all).
"""

from plateloom.registry import load_method

METHODS = {
    "background": "plateloom.restoration.background",
    "gaussian": "plateloom.restoration.gaussian",
    "median": "plateloom.restoration.median",
    "non_local_means": "plateloom.restoration.non_local_means",
}


def chain_halo(chain, channels, *, pixel_size_um):
    """How far around a window a chain looks, for any of some channels.

    Parameters
    ----------
    chain : list of dict
    channels : sequence of str
    pixel_size_um : float
        Width of a pixel [µm/px].

    Returns
    -------
    int
        [px].

    Examples
    --------
    >>> chain_halo([{"method": "median", "parameters": {"radius_px": 2}, "channels": ["DNA"]}], ["DNA"], pixel_size_um=1)
    2
    """
    return max((sum(m.halo_px(p, pixel_size_um) for m, p in _steps(chain, name)) for name in channels), default=0)


def restore_image(image, channels, chain, *, pixel_size_um):
    """Restore an image, or a window of it with the halo of the chain.

    Parameters
    ----------
    image : ndarray of float32, shape (C, Y, X)
        Corrected for illumination, 0 … 1.
    channels : sequence of str, length C
        Names of the channels.
    chain : list of dict
    pixel_size_um : float
        Width of a pixel [µm/px].

    Returns
    -------
    ndarray of float32, shape (C, Y, X)
        0 … 1.
    """
    restored = image.copy()
    for plane, name in zip(restored, channels, strict=True):
        for module, params in _steps(chain, name):
            plane[...] = module.restore(plane, params, pixel_size_um)
    return restored


def _steps(chain, channel):
    """Modules and parameters of the steps that a channel goes through."""
    for step in chain:
        if step["channels"] is None or channel in step["channels"]:
            module = load_method(METHODS, step["method"], "restoration method")
            yield module, module.Params.model_validate(step["parameters"])
