"""Volumes: sizes, positions and intensities of objects in three dimensions, by CellProfiler's names for volumes.

Notes
-----
A voxel has the length 1 along every axis. The Euler number is that of 26-connected objects. The edge is the inner
boundary by 6-neighbors. The surface is the mesh of marching cubes at the level 0, so it runs through the centers of
the voxels around the object. The border of the volume is neither edge nor surface. MADIntensity is the median
of the deviations, as in planes, where CellProfiler takes their lower third in volumes.
"""

import functools
import itertools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from plateloom.compilation import kernel
from plateloom.errors import UnknownMethodError
from plateloom.features import intensity
from plateloom.features.pixels import PixelIndex, check_image


def measure_volume(image, labels, channels, *, families=None):
    """Measure every object of every compartment in three dimensions.

    Distances count voxels along each axis, whatever their physical size: where planes lie farther apart than pixels,
    lengths, the surface and the axes of an object are those of the squeezed object. Resample the volume to voxels of
    equal sides first, where this matters. CellProfiler does the same but for the surface, which it scales by the
    spacing that its pipeline names.

    Parameters
    ----------
    image : ndarray of uint8, uint16 or float, shape (C, Z, Y, X)
        Intensities. Integers are divided by the largest value of their type, floats are taken as they are (0 … 1).
    labels : dict of str to ndarray of int, shape (Z, Y, X)
        Label volume per compartment; 0 is background. Labels may have gaps and need not occur in every compartment.
    channels : sequence of str, length C
        Channel names, as they shall stand in the columns.
    families : iterable of str, optional
        Of ``AreaShape``, ``Location`` and ``Intensity``; all of them when not given. Their order does not matter.

    Returns
    -------
    dict of str to pandas.DataFrame
        Per compartment the columns in float64. One row per label that occurs in this compartment, ascending; the index,
        ``ObjectNumber``, is the label. No label, no row: an empty label volume gives a table without rows and with all
        columns.

        Lengths and positions in [voxel]. SurfaceArea is open where the object touches the border of the volume, 0 where
        it fills the volume, and NaN in a volume of one plane, row or column. MinorAxisLength is 0 for a flat object.
        Where the object has no intensity, its center of mass and MassDisplacement are NaN; where it has no edge, sum,
        minimum and maximum there are 0, mean and standard deviation NaN.

    Raises
    ------
    TypeError
        If the image or a label volume has another type.
    ValueError
        If shapes or channel names do not match, a label is negative, or a float image is not finite.
    UnknownMethodError
        If a family is not measured in volumes.

    Examples
    --------
    >>> import numpy as np
    >>> nuclei = np.zeros((3, 3, 4), int)
    >>> nuclei[1:, 1:, 1:] = 7
    >>> tables = measure_volume(np.full((1, 3, 3, 4), 0.25), {"Nuclei": nuclei}, ["DNA"])
    >>> tables["Nuclei"].loc[7, ["Nuclei_AreaShape_Volume", "Nuclei_Intensity_MeanIntensity_DNA"]].tolist()
    [12.0, 0.25]
    """
    import pandas as pd

    image, names = np.asarray(image), _resolve(families)
    if image.ndim != 4 or len(image) != len(channels):
        raise ValueError(f"Expected an image of shape ({len(channels)}, Z, Y, X) for {channels}, found {image.shape}.")
    shape = image.shape[1:]
    # Planes one below the other are an image whose pixels come in the order of the volume's voxels.
    image = check_image(image.reshape(len(channels), shape[0] * shape[1], shape[2]), channels)
    tables = {}
    for compartment, label_volume in labels.items():
        index = VoxelIndex(np.asarray(label_volume), image, shape)
        blocks = [FAMILIES[name].measure(index) for name in names]
        tables[compartment] = pd.DataFrame(
            np.hstack(blocks) if blocks else np.empty((len(index.labels), 0)),
            index=pd.Index(index.labels, name="ObjectNumber"),
            columns=[f"{compartment}_{column}" for name in names for column in FAMILIES[name].columns(channels)],
        )
    return tables


class VoxelIndex(PixelIndex):
    """Where every object's voxels are: the `PixelIndex` of the planes one below the other, and what lies in 3D.

    Parameters
    ----------
    labels : ndarray of int, shape (Z, Y, X)
        Label volume; 0 is background.
    image : ndarray of uint8, uint16 or float64, shape (C, Z * Y, X)
        Intensities, as `check_image` returns them.
    shape : (int, int, int)
        Planes, rows and columns.

    Attributes
    ----------
    positions : ndarray of int32, shape (3, P)
        Plane, row and column of the voxels.
    first, last : ndarray of int32, shape (3, N)
        The bounding boxes; `last` is not in them.
    volume : ndarray of int32, shape (Z + 2, Y + 2, X + 2)
        Object number 1 … N of every voxel, 0 for background, inside a frame of -1.
    middles : ndarray of float64, shape (N, 3)
        Mean position in the bounding box, along planes, rows and columns.
    covariances : ndarray of float64, shape (N, 3, 3)
        Of the positions.
    """

    def __init__(self, labels, image, shape):
        if labels.shape != shape:
            raise ValueError(f"Labels of shape {labels.shape} do not fit an image of shape {shape}.")
        super().__init__(labels.reshape(image.shape[1:]), image)
        self.positions = np.stack([*np.divmod(self.rows, np.int32(shape[1])), self.columns])
        self.first = np.minimum.reduceat(self.positions, self.offsets[:-1], axis=1)
        self.last = np.maximum.reduceat(self.positions, self.offsets[:-1], axis=1) + 1
        self.volume = np.pad(self.objects[1:-1, 1:-1].reshape(shape), 1, constant_values=-1)
        self.middles, self.covariances = _sum_moments(self.offsets, self.positions, self.first)

    @functools.cached_property
    def centers(self):
        """Mean plane, row and column of every object: ndarray of float64, shape (N, 3)."""
        return self.first.T + self.middles

    @property
    def axes(self):
        """As of `PixelIndex`, of planes, rows and columns."""
        return list(zip(self.positions, self.first, strict=True))


def _resolve(families):
    """Return the names asked for, in the order of the columns."""
    asked = [families] if isinstance(families, str) else list(FAMILIES if families is None else families)
    for name in asked:
        if name not in FAMILIES:
            raise UnknownMethodError("feature family of volumes", name, FAMILIES)
    return [name for name in FAMILIES if name in asked]


def _shape_columns(channels, **_):
    return [
        *(f"AreaShape_BoundingBox{end}_{axis}" for end in ("Maximum", "Minimum") for axis in "XYZ"),
        "AreaShape_BoundingBoxVolume",
        *(f"AreaShape_Center_{axis}" for axis in "XYZ"),
        "AreaShape_EquivalentDiameter",
        "AreaShape_EulerNumber",
        "AreaShape_Extent",
        "AreaShape_MajorAxisLength",
        "AreaShape_MinorAxisLength",
        "AreaShape_SurfaceArea",
        "AreaShape_Volume",
    ]


def _measure_shapes(index):
    volumes = index.areas.astype(np.float64)
    boxes = (index.last - index.first).prod(axis=0, dtype=np.float64)
    # Of the ellipsoid with the same moments, the longest and the shortest axis; rounding must not make one imaginary.
    axes = np.sqrt(20 * np.maximum(np.linalg.eigvalsh(index.covariances), 0.0))
    return np.column_stack(
        [
            *index.last[::-1],
            *index.first[::-1],
            boxes,
            *index.centers.T[::-1],
            np.cbrt(6 * volumes / np.pi),
            _count_euler(index.volume, index.offsets, index.positions, _euler_changes()),
            volumes / boxes,
            axes[:, 2],
            axes[:, 0],
            _measure_surfaces(index),
            volumes,
        ]
    )


def _measure_surfaces(index):
    """Area of the mesh around each object, at CellProfiler's level."""
    from skimage.measure import marching_cubes, mesh_surface_area

    inside = index.volume[1:-1, 1:-1, 1:-1]
    if min(inside.shape) < 2:
        return np.full(len(index.labels), np.nan)
    areas = np.zeros(len(index.labels))
    # One voxel more on each side, where there is one.
    for i, (first, last) in enumerate(zip(np.maximum(index.first.T - 1, 0), index.last.T + 1, strict=True)):
        mask = inside[tuple(map(slice, first, last))] == i + 1
        if not mask.all():
            vertices, faces, _, _ = marching_cubes(mask, level=0)
            areas[i] = mesh_surface_area(vertices.astype(np.float64), faces)
    return areas


def _euler_changes():
    """What a voxel adds to its object's vertices - edges + faces - voxels, by which of the 13 before it are of the object.

    A vertex, edge or face is new unless a voxel before this one has it, too. Bit 9 z + 3 y + x of the 13 stands for
    the neighbor at (z, y, x) of the 3 × 3 × 3 around the voxel, which is number 13 itself.
    """
    before = np.arange(1 << 13)
    changes = np.zeros(len(before), np.int64)
    for towards in itertools.product((0, 1, 2), repeat=3):
        sharing = {9 * z + 3 * y + x for z, y, x in itertools.product(*((1, side) for side in towards))}
        known = before & sum(1 << number for number in sharing if number < 13)
        changes += np.where(known, 0, (-1) ** towards.count(1))
    return changes


def _location_columns(channels, **_):
    return [f"Location_Center_{axis}" for axis in "XYZ"] + [
        f"Location_{point}_{axis}_{channel}"
        for channel in channels
        for point in ("CenterMassIntensity", "MaxIntensity")
        for axis in "XYZ"
    ]


def _measure_locations(index):
    blocks = [index.centers[:, ::-1]]
    for masses, brightest in zip(index.masses, index.sums.brightest, strict=True):
        blocks += [(index.first.T + masses)[:, ::-1], index.positions[::-1, brightest].T]
    return np.hstack(blocks)


def _measure_intensities(index):
    measured = intensity.measure_values(index, _find_edges(index.volume, index.positions))
    return measured.reshape(len(measured), measured.shape[1] * measured.shape[2])


class Family(NamedTuple):
    """A family of features of volumes: `columns` as of a family's module, and `measure` of a `VoxelIndex`."""

    columns: Callable
    measure: Callable


FAMILIES = {
    "AreaShape": Family(_shape_columns, _measure_shapes),
    "Location": Family(_location_columns, _measure_locations),
    "Intensity": Family(intensity.columns, _measure_intensities),
}


@kernel
def _sum_moments(offsets, positions, first):
    """Mean and covariance of the positions in the bounding box, where a shifted object has the same ones."""
    count = len(offsets) - 1
    means, covariances = np.empty((count, 3)), np.empty((count, 3, 3))
    for i in range(count):
        size = offsets[i + 1] - offsets[i]
        for a in range(3):
            total = 0
            for k in range(offsets[i], offsets[i + 1]):
                total += positions[a, k] - first[a, i]
            means[i, a] = total / size
        for a in range(3):
            for b in range(a + 1):
                product = 0.0
                origin_a, origin_b = first[a, i] + means[i, a], first[b, i] + means[i, b]
                for k in range(offsets[i], offsets[i + 1]):
                    product += (positions[a, k] - origin_a) * (positions[b, k] - origin_b)
                covariances[i, a, b] = covariances[i, b, a] = product / size
    return means, covariances


@kernel
def _find_edges(volume, positions):
    """Flag the voxels with a 6-neighbor inside the volume that is not of the same object."""
    edge = np.zeros(positions.shape[1], np.bool_)
    for k in range(len(edge)):
        z, y, x = positions[0, k] + 1, positions[1, k] + 1, positions[2, k] + 1
        for step in (-1, 1):
            for number in (volume[z + step, y, x], volume[z, y + step, x], volume[z, y, x + step]):
                if number != volume[z, y, x] and number >= 0:
                    edge[k] = True
    return edge


@kernel
def _count_euler(volume, offsets, positions, changes):
    """Euler numbers: the sum of what each voxel changes, in reading order."""
    euler = np.zeros(len(offsets) - 1)
    for i in range(len(euler)):
        for k in range(offsets[i], offsets[i + 1]):
            before = 0
            for number in range(13):
                z, y, x = positions[0, k] + number // 9, positions[1, k] + number // 3 % 3, positions[2, k] + number % 3
                if volume[z, y, x] == i + 1:
                    before |= 1 << number
            euler[i] += changes[before]
    return euler
