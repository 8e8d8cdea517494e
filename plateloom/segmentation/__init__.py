"""Segmentation: images -> label images of nuclei, cells and cytoplasm.

A method is a module with a pydantic model ``Params`` and a class ``Method``. The class works on tiles, so that an image
of any size can be segmented piece by piece with the labels of the whole; `segment_image` shows in which order. It is
made once per image and pickles small::

    method = module.Method(params, channels, pixel_size_um=0.65, shape=(Y, X))
    method.halo_px                                          {"measure": 9, "seed": 120, "grow": 100} [px]
    method.measure(view, origin, core)                      what a tile adds to the knowledge of the whole image
    method.combine(measurements)                            thresholds: a small dict that JSON can hold
    method.seed(view, origin, core, thresholds)             int64 ids of the core's nuclei, unique in the whole image
    number(ids of all tiles), relabel(ids, numbers)         ids -> labels 1 … N
    method.grow(view, nuclei, origin, core, thresholds)     uint32 labels of the core's cells

A *view* is a tile with its halo, float32 (C, H, W); *origin* is where it begins in the image [px]; *core* is the part
of it that the tile answers for. Views end at the edge of the image. NaN in every channel is a pixel that no field covers (see
`plateloom.segmentation.holes`): it counts nowhere, and is in no object.

A method that computes on a GPU takes ``device`` as well (`make_method`). Its module may say in ``TOGETHER`` how many images
or tiles threads of one process are to work on side by side, for a network that answers them as one batch, and in
``describe_run(params, device)`` what stands in the job's record of how it ran. One that reads models of the user names them in
the module's ``weights_files(params)``, so that their content is part of the labels' fingerprint. If the channels stand in such a
model and not in parameters named ``…_channel``, ``needed_channels(params)`` lists them; if not every pixel size will do,
``find_misfits(params, pixel_size_um)`` says so, and ``check_model(params, channels, folder)`` what can be told before anything
runs. One whose objects are no cells says in ``OBJECTS`` what they are, and in ``MEASURED`` which compartments are worth
measuring. One for plates that keep their z planes says ``VOLUMES = True`` and has, in the place of ``Method``, a function
``segment(image, channels, params, *, pixel_size_um, z_step_um)`` (see `segment_volume`). One that needs a package of other people names it in ``PACKAGE``, the command that installs it in ``INSTALL``, and
says in ``notices(params)`` what a person must know before using it.
"""

from plateloom.registry import load_method
from plateloom.tiling import cut_tiles

METHODS = {
    "watershed": "plateloom.segmentation.watershed",
    "unet": "plateloom.segmentation.unet",
    "cellpose": "plateloom.segmentation.cellpose",
    "instanseg": "plateloom.segmentation.instanseg",
    "stardist": "plateloom.segmentation.stardist",
    "pixels": "plateloom.segmentation.pixels",
    "patches": "plateloom.segmentation.patches",
    "volume": "plateloom.segmentation.volume",
}

COMPARTMENTS = ("Nuclei", "Cells", "Cytoplasm")

# In memory for a volume, and for each of its channels.
BYTES_PER_VOXEL = {"segmentation": (66, 4), "features": (90, 21)}


def segment_image(image, channels, *, method="watershed", params=None, pixel_size_um, tile_px=None, device="prefer"):
    """Find the nuclei and cells of an image.

    Parameters
    ----------
    image : ndarray of float32, shape (C, Y, X)
        Illumination-corrected intensities in [0, 1]. Its bit depth and brightness do not matter. NaN in every channel: no
        field covers the pixel.
    channels : sequence of str, length C
        Names of the channels.
    method : str
        A name of `METHODS`.
    params : Params or dict, optional
        Parameters of the method; defaults for what is not given.
    pixel_size_um : float
        Width of a pixel [µm/px].
    tile_px : int, optional
        Work tile by tile, in squares of this width [px]. The labels are the same.
    device : {'require', 'prefer', 'cpu'}
        Whether to use a GPU, where the method can.

    Returns
    -------
    dict of str to ndarray of uint32, shape (Y, X)
        Labels of ``Nuclei``, ``Cells`` and ``Cytoplasm`` (cells without their nuclei). One cell has one value in all
        of them; values are 1 … N in the raster order of the nuclei's first pixels; 0 is background.

    Raises
    ------
    UnknownMethodError
        If the method is not registered.
    ValueError
        If a channel is missing, or the image has not one name per channel or is not finite where a field covers it.
    """
    import numpy as np

    if works_on_volumes(method):
        raise ValueError(f"{method} segments volumes; call segment_volume.")
    image = np.asarray(image, dtype=np.float32)
    if image.ndim != 3 or len(image) != len(channels):
        raise ValueError(
            f"Expected an image (C, Y, X) with a channel for each of {list(channels)}, found {image.shape}."
        )
    module = load_method(METHODS, method, "segmentation method")
    if not isinstance(params, module.Params):
        params = module.Params(**(params or {}))
    shape = image.shape[1:]
    work = make_method(module, params, channels, pixel_size_um=pixel_size_um, shape=shape, device=device)

    tiles = {phase: cut_tiles(shape, tile_px, halo_px=halo) for phase, halo in work.halo_px.items()}
    thresholds = work.combine(
        [work.measure(image[:, *tile.window], tile.origin, tile.inner) for tile in tiles["measure"]]
    )
    ids = np.zeros(shape, np.int64)
    for tile in tiles["seed"]:
        ids[tile.core] = work.seed(image[:, *tile.window], tile.origin, tile.inner, thresholds)
    nuclei = relabel(ids, number([ids]))
    cells = np.zeros(shape, np.uint32)
    for tile in tiles["grow"]:
        cells[tile.core] = work.grow(image[:, *tile.window], nuclei[tile.window], tile.origin, tile.inner, thresholds)
    return {"Nuclei": nuclei, "Cells": cells, "Cytoplasm": subtract_nuclei(cells, nuclei)}


def segment_volume(image, channels, *, method="volume", params=None, pixel_size_um, z_step_um):
    """Find the nuclei and cells of a volume.

    Parameters
    ----------
    image : ndarray of float32, shape (C, Z, Y, X)
        Illumination-corrected intensities in [0, 1].
    channels, method, params, pixel_size_um
        As in `segment_image`; the method is one that works on volumes.
    z_step_um : float
        Distance of planes [µm].

    Returns
    -------
    dict of str to ndarray of uint32, shape (Z, Y, X)
        Labels as of `segment_image`, in the order of the nuclei's first voxels, plane by plane.

    Raises
    ------
    UnknownMethodError
        If the method is not registered.
    ValueError
        If it does not work on volumes, a channel is missing, or the image is of integers, is not finite, or has not one name
        per channel.

    Examples
    --------
    >>> import numpy as np
    >>> z, y, x = np.mgrid[:9, :24, :24]
    >>> ball = ((z - 4) * 2) ** 2 + (y - 12) ** 2 + (x - 12) ** 2 < 36
    >>> image = np.where(ball, 0.5, 0.02)[None].astype(np.float32)
    >>> labels = segment_volume(image, ["DNA"], pixel_size_um=1.0, z_step_um=2.0)
    >>> int(labels["Nuclei"].max()), bool(labels["Nuclei"][4, 12, 12])
    (1, True)
    """
    import numpy as np

    image = np.asarray(image)
    if image.ndim != 4 or len(image) != len(channels) or not image.size:
        raise ValueError(
            f"Expected an image (C, Z, Y, X) with a channel for each of {list(channels)}, found {image.shape}."
        )
    if image.dtype.kind != "f":
        raise ValueError(f"Expected intensities from 0 to 1, found {image.dtype}; divide by the largest value.")
    image = image.astype(np.float32, copy=False)
    if not np.isfinite(image).all():
        raise ValueError("The image has pixels that are not finite numbers; mend or leave out the field.")
    module = load_method(METHODS, method, "segmentation method")
    if not works_on_volumes(method):
        raise ValueError(f"{method} segments planes; call segment_image.")
    if not isinstance(params, module.Params):
        params = module.Params(**(params or {}))
    return module.segment(image, channels, params, pixel_size_um=pixel_size_um, z_step_um=z_step_um)


def works_on_volumes(method):
    """Whether a method segments volumes rather than planes; its module's ``VOLUMES``."""
    if method not in METHODS:  # which the config's checks report
        return False
    return getattr(load_method(METHODS, method, "segmentation method"), "VOLUMES", False)


def explain_planes(method, kept):
    """Say why a method does not fit images that keep their z planes, or do not; empty where it does."""
    if works_on_volumes(method) == kept:
        return ""
    if kept:
        fitting = " or ".join(name for name in METHODS if works_on_volumes(name))
        return f"{method} segments one plane, and z planes are kept (conversion.z: keep): choose the method {fitting}, or a projection"
    return f"{method} segments volumes, and no z planes are kept: set conversion.z: keep"


def memory_of_volume(stage, shape, channels):
    """What ``segmentation`` or ``features`` of a volume of shape (Z, Y, X) take at most in so many channels [MB]."""
    planes, height, width = shape
    fixed, per_channel = BYTES_PER_VOXEL[stage]
    return 1e-6 * planes * height * width * (fixed + per_channel * channels)


def make_method(module, params, channels, *, pixel_size_um, shape, device):
    """Make a method for one image; `device` goes to those that take it."""
    more = {"device": device} if takes_device(module) else {}
    return module.Method(params, channels, pixel_size_um=pixel_size_um, shape=shape, **more)


def needed_channels(method, parameters):
    """Channels without which a method cannot work: set of str, by its name and its parameters as a dict."""
    named = {name for key, name in parameters.items() if key.endswith("_channel") and name}
    module = load_method(METHODS, method, "segmentation method")
    if hasattr(module, "needed_channels"):
        named |= set(module.needed_channels(module.Params(**parameters)))
    return named


def find_misfits(method, parameters, *, pixel_size_um):
    """Why a method cannot work on images of a pixel size [µm/px]: list of str."""
    module = load_method(METHODS, method, "segmentation method")
    return module.find_misfits(module.Params(**parameters), pixel_size_um) if hasattr(module, "find_misfits") else []


def measured_compartments(method):
    """Compartments of a method's labels that are worth measuring: all but those that its module's ``MEASURED`` leaves out."""
    if method not in METHODS:  # which the config's checks report
        return COMPARTMENTS
    return getattr(load_method(METHODS, method, "segmentation method"), "MEASURED", COMPARTMENTS)


def describe_objects(method):
    """What the objects of a method are, as a sentence, where they are no cells; its module's ``OBJECTS``."""
    return getattr(load_method(METHODS, method, "segmentation method"), "OBJECTS", "")


def takes_device(module):
    """Whether a method can compute on a GPU."""
    import inspect

    return hasattr(module, "Method") and "device" in inspect.signature(module.Method).parameters


def count_together(module, device):
    """How many images or tiles a worker is to work on side by side: one, but on a GPU as many as the method says."""
    from plateloom.devices import has_gpu

    return getattr(module, "TOGETHER", 1) if takes_device(module) and has_gpu(device) else 1


def describe_run(module, params, device):
    """What a job's record says of how a method runs in this process; nothing of methods that know no device."""
    from plateloom.devices import choose_device

    if not takes_device(module):
        return {}
    describe = getattr(module, "describe_run", None)
    return describe(params, device) if describe else {"device": choose_device(device)}


def number(ids):
    """Collect the ids of all tiles in the order of their labels.

    Parameters
    ----------
    ids : iterable of ndarray of int64
        What ``seed`` returned for the tiles, or the unique values of it; 0 is background.

    Returns
    -------
    ndarray of int64, shape (N,)
        Sorted ids; the label of an id is 1 + its place here.

    Examples
    --------
    >>> import numpy as np
    >>> number([np.array([0, 40, 7]), np.array([7, 90])])
    array([ 7, 40, 90])
    """
    import numpy as np

    found = [np.unique(some) for some in ids]
    found = np.unique(np.concatenate(found)) if found else np.zeros(0, np.int64)
    return found[found != 0].astype(np.int64)


def relabel(ids, numbers):
    """Turn ids into labels.

    Parameters
    ----------
    ids : ndarray of int64, shape (Y, X)
        Ids of nuclei; 0 is background.
    numbers : ndarray of int64, shape (N,)
        What `number` returned.

    Returns
    -------
    ndarray of uint32, shape (Y, X)
        Labels 1 … N; 0 is background.

    Examples
    --------
    >>> import numpy as np
    >>> relabel(np.array([[0, 40, 7]]), np.array([7, 40, 90]))
    array([[0, 2, 1]], dtype=uint32)
    """
    import numpy as np

    labels = np.zeros(ids.shape, np.uint32)
    inside = ids != 0
    labels[inside] = np.searchsorted(numbers, ids[inside]) + 1
    return labels


def subtract_nuclei(cells, nuclei):
    """Return the cytoplasm: cells without their nuclei.

    Parameters
    ----------
    cells, nuclei : ndarray of uint32, shape (Y, X) or (Z, Y, X)
        Labels; 0 is background.

    Returns
    -------
    ndarray of uint32, their shape
        Labels of the cytoplasm; a cell that is all nucleus has none.
    """
    import numpy as np

    return np.where(nuclei == 0, cells, 0).astype(np.uint32, copy=False)
