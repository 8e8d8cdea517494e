"""Features of cells: CellProfiler's measurements, by CellProfiler's column names, from arrays.

A family is one module plus one line in `FAMILIES`. Its contract is two functions:

``columns(channels, **options)``
    The family's column names without the compartment, in order.
``measure(index, image, channels, **options)``
    ndarray of float64, shape (N, F): one row per object of the `PixelIndex`, one column per name.

The options are those of `measure_image`, and `compartment`, `compartments` (names, for columns) and `labels` (for
values); a family names the ones that it needs and swallows the others.
"""

from plateloom.registry import load_method

FAMILIES = {
    "AreaShape": "plateloom.features.shape",
    "Location": "plateloom.features.location",
    "Intensity": "plateloom.features.intensity",
    "Texture": "plateloom.features.texture",
    "Correlation": "plateloom.features.correlation",
    "RadialDistribution": "plateloom.features.radial",
    "Neighbors": "plateloom.features.neighbors",
    "Links": "plateloom.features.links",
    "Zernike": "plateloom.features.zernike",
    "Granularity": "plateloom.features.granularity",
}

VOLUME_FAMILIES = ("AreaShape", "Location", "Intensity")  # all of them in `plateloom.features.volume`

__all__ = ["FAMILIES", "VOLUME_FAMILIES", "feature_columns", "measure_image", "measure_volume"]


def __getattr__(name):
    """Import what measures volumes when it is asked for: its module needs numpy."""
    if name == "measure_volume":
        return load_volumes().measure_volume
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def load_volumes():
    """The module that measures volumes, named as families are: no part of the code that measures planes."""
    return load_method({"volumes": "plateloom.features.volume"}, "volumes", "module")


def measure_image(
    image,
    labels,
    channels,
    *,
    families=None,
    bit_depth=None,
    texture_scales=(3,),
    neighbor_distance=5,
    threads=1,
):
    """Measure every object of every compartment.

    Parameters
    ----------
    image : ndarray of uint8, uint16 or float, shape (C, Y, X)
        Intensities. Integers are divided by the largest value of their type, floats are taken as they are (0 … 1).
    labels : dict of str to ndarray of int, shape (Y, X)
        Label image per compartment; 0 is background. A cell has the same label in all of them; labels may have gaps
        and need not occur in every compartment.
    channels : sequence of str, length C
        Channel names, as they shall stand in the columns.
    families : iterable of str, optional
        Families to measure, of `FAMILIES`; all of them when not given. Their order does not matter.
    bit_depth : int, optional
        Bits that a float image was digitized with [bit]; 16 when not given. Integer images know theirs.
    texture_scales : sequence of int
        Distances between the pixels of a pair [px].
    neighbor_distance : int
        Objects are neighbors within this distance [px].
    threads : int
        Families measured at the same time. The result does not depend on it.

    Returns
    -------
    dict of str to pandas.DataFrame
        Per compartment the columns of `feature_columns` in float64. One row per label that occurs in this compartment,
        ascending; the index, ``ObjectNumber``, is the label. No label, no row: an empty label image gives a table
        without rows and with all columns.

    Raises
    ------
    TypeError
        If the image or a label image has another type.
    ValueError
        If shapes or channel names do not match, a label is negative, or a float image is not finite.
    UnknownMethodError
        If a family is not registered.

    Examples
    --------
    >>> import numpy as np
    >>> nuclei = np.array([[7, 7, 0], [7, 7, 0]])
    >>> tables = measure_image(np.full((1, 2, 3), 51, np.uint8), {"Nuclei": nuclei}, ["DNA"])
    >>> tables["Nuclei"].loc[7, ["Nuclei_AreaShape_Area", "Nuclei_Intensity_MeanIntensity_DNA"]].tolist()
    [4.0, 0.2]
    """
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np
    import pandas as pd

    from plateloom.features.pixels import PixelIndex, Shared, check_image

    image = check_image(image, channels)
    names = _resolve(families)
    if image.dtype.kind == "u":
        bit_depth = 8 * image.dtype.itemsize
    options = {
        "bit_depth": 16 if bit_depth is None else bit_depth,
        "texture_scales": tuple(texture_scales),
        "neighbor_distance": neighbor_distance,
    }
    tables, shared = {}, Shared()
    with ThreadPoolExecutor(max_workers=threads) as pool:
        # A compartment at a time: its pixel values are the largest thing in memory.
        for compartment, label_image in labels.items():
            index = PixelIndex(label_image, image, shared)

            def measure(name, index=index, compartment=compartment):
                family = load_method(FAMILIES, name, "feature family")
                return family.measure(index, image, channels, labels=labels, compartment=compartment, **options)

            # One thread runs in the caller's: no handing over.
            blocks = list((pool.map if threads > 1 else map)(measure, names))
            columns = feature_columns(
                compartment,
                channels,
                families=names,
                compartments=tuple(labels),
                neighbor_distance=neighbor_distance,
                texture_scales=texture_scales,
            )
            tables[compartment] = pd.DataFrame(
                np.hstack(blocks) if blocks else np.empty((len(index.labels), 0)),
                index=pd.Index(index.labels, name="ObjectNumber"),
                columns=columns,
            )
    return tables


def feature_columns(
    compartment, channels, *, families=None, compartments=None, neighbor_distance=5, texture_scales=(3,)
):
    """List the columns that `measure_image` gives, in its order, without an image.

    An empty well, or a field that lacks a channel, has all of its columns nevertheless.

    Parameters
    ----------
    compartment : str
        The prefix of every column.
    channels, families, neighbor_distance, texture_scales
        As in `measure_image`.
    compartments : sequence of str, optional
        All compartments that are measured, in order; default: this one alone.

    Returns
    -------
    list of str

    Examples
    --------
    >>> feature_columns("Nuclei", ["DNA", "ER"], families=["Correlation"])[:2]
    ['Nuclei_Correlation_Correlation_DNA_ER', 'Nuclei_Correlation_Overlap_DNA_ER']
    """
    options = {
        "compartment": compartment,
        "compartments": (compartment,) if compartments is None else tuple(compartments),
        "neighbor_distance": neighbor_distance,
        "texture_scales": tuple(texture_scales),
    }
    return [
        f"{compartment}_{column}"
        for name in _resolve(families)
        for column in load_method(FAMILIES, name, "feature family").columns(channels, **options)
    ]


def _resolve(families):
    """Return the names asked for in the registry's order, so that tables do not depend on the order in a config."""
    if families is None:
        return list(FAMILIES)
    asked = [families] if isinstance(families, str) else list(families)
    for name in asked:
        load_method(FAMILIES, name, "feature family")
    return [name for name in FAMILIES if name in asked]
