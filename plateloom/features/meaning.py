"""What a column means: its family, its channels, its unit, and which module of CellProfiler measures it."""

import itertools
import re
from functools import cache

from plateloom.features import FAMILIES, load_volumes
from plateloom.registry import load_method

# CellProfiler's module by the beginning of a name without its compartment; the first that fits holds, and else there is none.
SOURCES = (
    (r"Location_Center_", "IdentifyPrimaryObjects, IdentifySecondaryObjects, IdentifyTertiaryObjects"),
    (r"Number_", "IdentifyPrimaryObjects, IdentifySecondaryObjects, IdentifyTertiaryObjects"),
    (r"Children_|Parent_", "RelateObjects"),
    (r"AreaShape_", "MeasureObjectSizeShape"),
    (r"Location_|Intensity_", "MeasureObjectIntensity"),
    (r"Texture_", "MeasureTexture"),
    (r"Granularity_", "MeasureGranularity"),
    (r"RadialDistribution_", "MeasureObjectIntensityDistribution"),
    (r"Correlation_", "MeasureColocalization"),
    (r"Neighbors_", "MeasureObjectNeighbors"),
)

# Units by the beginning of a name without its compartment; the first that fits holds, and else it is "1".
_UNITS = (
    (r"AreaShape_(Area|BoundingBoxArea|ConvexArea|InertiaTensor\w*|SurfaceArea)(_|$)", "px^2"),
    (r"AreaShape_(Volume|BoundingBoxVolume)$", "px^3"),
    (
        r"AreaShape_(BoundingBoxM\w+|Center|EquivalentDiameter|MajorAxisLength|MinorAxisLength|MaxFeretDiameter|"
        r"MinFeretDiameter|MaximumRadius|MeanRadius|MedianRadius|Perimeter)(_|$)",
        "px",
    ),
    (r"AreaShape_Orientation$", "degree"),
    (r"AreaShape_(Spatial|Central)Moment_", "px^n"),
    (r"Location_", "px"),
    (r"Intensity_MassDisplacement_", "px"),
    (r"Granularity_", "%"),
    (r"RadialDistribution_ZernikePhase_", "rad"),
    (r"Neighbors_(First|Second)ClosestDistance_", "px"),
    (r"Neighbors_(First|Second)ClosestObjectNumber_|Number_|Parent_", "label"),
    (r"Neighbors_NumberOfNeighbors_|Children_|AreaShape_EulerNumber", "count"),
    (r"Neighbors_PercentTouching_", "%"),
    (r"Neighbors_AngleBetweenNeighbors_", "degree"),
)


# Unit in pixels -> unit and ending of its twin in micrometers, and the power of the pixel's size between them.
PHYSICAL = {"px": ("um", "um", 1), "px^2": ("um^2", "um2", 2)}
# A volume's z is not as long as its x and y: of what counts voxel sides only the number of voxels has a physical size.
PHYSICAL_OF_VOLUMES = {"px^3": ("um^3", "um3")}


def unit_of(column, compartment="Nuclei|Cells|Cytoplasm"):
    """Unit of a column, with or without its compartment.

    Examples
    --------
    >>> unit_of("Nuclei_AreaShape_Area"), unit_of("Cells_Texture_Contrast_DNA_3_00_256")
    ('px^2', '1')
    """
    for pattern, unit in _patterns(compartment):
        if pattern.match(column):
            # The n of a moment: p + q, and the pixels that it sums.
            if moment := unit == "px^n" and re.search(r"Moment_(\d)_(\d)$", column):
                return f"px^{2 + int(moment[1]) + int(moment[2])}"
            return unit
    return "1"


@cache
def source_of(name):
    """CellProfiler's module that measures a column, by its name without its compartment; empty where none does.

    Examples
    --------
    >>> source_of("AreaShape_Zernike_0_0"), source_of("Sparkle_DNA")
    ('MeasureObjectSizeShape', '')
    """
    return next((module for pattern, module in SOURCES if re.match(pattern, name)), "")


@cache
def _patterns(compartment):
    """Patterns of whole names, and their units."""
    return [(re.compile(rf"(({compartment})_)?({pattern})"), unit) for pattern, unit in _UNITS]


def describe_columns(compartments, channels, *, families=None, physical_units=False, volumes=False, **options):
    """Describe every column that `measure_image` gives, or `measure_volume`.

    Parameters
    ----------
    compartments, channels : sequence of str
    families, **options
        As in `measure_image`.
    physical_units : bool
        Every length and area in pixels is followed by its twin in micrometers, ``…_um`` or ``…_um2``; in volumes, whose voxels
        need not be cubes, volumes only, ``…_um3``.
    volumes : bool
        Of `measure_volume`. Lengths in [px] are counted in voxels along each axis.

    Returns
    -------
    dict of str to dict
        By column, in the order of the tables: `compartment`, `family`, `channel` (``DNA``, ``DNA/ER`` of a pair, empty
        where no intensity is needed), `unit`, `source` (CellProfiler's module).
    """
    if volumes:
        known = load_volumes().FAMILIES
    else:
        known = {name: load_method(FAMILIES, name, "feature family") for name in FAMILIES}
    described, physical = {}, PHYSICAL_OF_VOLUMES if volumes else PHYSICAL
    for compartment in compartments:
        common = {"compartment": compartment, "compartments": tuple(compartments), **options}
        for family in [name for name in known if families is None or name in families]:
            owners = _channels_of(known[family], channels, common)
            for name in known[family].columns(channels, **common):
                column = f"{compartment}_{name}"
                unit = unit_of(column, re.escape(compartment))
                described[column] = {
                    "compartment": compartment,
                    "family": family,
                    "channel": owners[name],
                    "unit": unit,
                    "source": source_of(name),
                }
                if physical_units and unit in physical:
                    described[f"{column}_{physical[unit][1]}"] = described[column] | {"unit": physical[unit][0]}
    return described


def list_measurements():
    """List what is measured, a line for columns that differ in channel or numbers only.

    Returns
    -------
    list of (str, str, int, str, str)
        Family; name with ``C``, ``C1_C2`` for channels and ``#`` for numbers; how many columns of one compartment that has it
        it stands for, per channel or pair; unit; CellProfiler's module.
    """
    counted = {}
    for name, column in describe_columns(("Nuclei", "Cells", "Cytoplasm"), ("C1", "C2")).items():
        if column["channel"] == "C2":
            continue
        name = name.removeprefix(f"{column['compartment']}_")
        if column["channel"] == "C1":
            name = name.replace("_C1", "_C")
        name = re.sub(r"_\d+(?=_|$|of)", "_#", name)
        unit = "px^n" if "Moment" in name and "px" in column["unit"] else column["unit"]
        counts = counted.setdefault((column["family"], name, unit, column["source"]), {})
        counts[column["compartment"]] = counts.get(column["compartment"], 0) + 1
    return [
        (family, name, max(counts.values()), unit, source) for (family, name, unit, source), counts in counted.items()
    ]


def add_physical(table, pixel_size_um, described, *, z_step_um=None):
    """Give lengths and areas in micrometers beside those in pixels.

    Parameters
    ----------
    table : DataFrame
        Columns in pixels.
    pixel_size_um : float
        [µm/px].
    described : dict of str to dict
        As `describe_columns` gives it; twins that are not in it are not made.
    z_step_um : float, optional
        Distance of planes [µm], where the table is of volumes.

    Returns
    -------
    DataFrame
    """
    import pandas as pd

    units = {unit: (ending, pixel_size_um**power) for unit, (_, ending, power) in PHYSICAL.items()}
    if z_step_um is not None:
        units = {unit: (one[1], pixel_size_um**2 * z_step_um) for unit, one in PHYSICAL_OF_VOLUMES.items()}
    twins = {}
    for name, column in described.items():
        if column["unit"] in units and name in table:
            ending, size = units[column["unit"]]
            if f"{name}_{ending}" in described:
                twins[f"{name}_{ending}"] = table[name] * size
    return pd.concat([table, pd.DataFrame(twins, index=table.index)], axis=1) if twins else table


def _channels_of(module, channels, options):
    """Channel, or pair of channels, that each of a family's columns needs: what is added when one joins."""
    owners = dict.fromkeys(module.columns([], **options), "")
    for channel in channels:
        owners = dict.fromkeys(module.columns([channel], **options), channel) | owners
    for pair in itertools.combinations(channels, 2):
        owners = dict.fromkeys(module.columns(list(pair), **options), "/".join(pair)) | owners
    return owners
