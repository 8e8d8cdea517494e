"""A screen with known truth: plates, plate map, cells, phenotypes and defects, all from one seed.

The pictures resemble U2OS cells at 20x. Every field is rendered from a random stream of its own, keyed by seed, plate,
well and field, so a field rendered alone, in any order or in any process has the same pixels.
"""

import itertools
import zlib
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import pandas as pd
from scipy import ndimage

from plateloom.wells import well_name

CLASSES = ("normal", "translocated", "condensed", "swollen", "speckled")
PHENOTYPES = ("none", *CLASSES[1:])
STAINS = ("dna", "er", "marker", "actin")
DEFECTS = ("blurred", "debris", "saturated", "empty", "truncated", "missing")

_ANGLES = 256
_CAMERA_OFFSET = 110.0  # [counts]
_READ_NOISE = 3.0  # [counts]
_COUNTS_PER_ELECTRON = 0.9
_DEFOCUS_UM = 3.2, 5.0  # [µm]: of a blurred field, standard deviation of the blur
_PSF_UM = 0.62  # Gaussian sigma [µm]
_SATURATING_GAIN = 9.0


@dataclass(frozen=True)
class Channel:
    """One channel of the microscope.

    Parameters
    ----------
    name : str
        Name in tables and file names.
    stain : {'dna', 'er', 'marker', 'actin'}
        What is stained; ``marker`` is the protein that moves into the nucleus.
    brightness : float
        Signal of a typical cell above background [counts].
    background : float
        Autofluorescence of the medium [counts].
    """

    name: str
    stain: str
    brightness: float = 700.0
    background: float = 45.0

    def __post_init__(self):
        if self.stain not in STAINS:
            raise ValueError(f"Channel {self.name!r}: stain is {self.stain!r}, expected one of {', '.join(STAINS)}.")


@dataclass(frozen=True)
class Treatment:
    """One compound: which phenotype it causes, in which fraction of cells at which dose.

    The fraction of responding cells at dose d is ``top * d**hill / (d**hill + ec50**hill)``.

    Parameters
    ----------
    name : str
        Name in the plate map.
    phenotype : {'none', 'translocated', 'condensed', 'swollen', 'speckled'}
        Class of a responding cell; ``condensed`` also lowers the number of cells, ``swollen`` cells are large and flat,
        in ``speckled`` ones the ER and the marker gather in spots.
    ec50 : float
        Dose of half effect [µM].
    hill : float
        Steepness of the dose-response curve.
    top : float in [0, 1]
        Fraction of cells that respond to an infinite dose.
    doses : tuple of float
        Doses on the plate [µM], ascending. A small plate carries fewer of them, always the highest.
    labeled : bool
        Whether the wells of the highest dose are said to be of the phenotype's class; not where few cells respond, nor where the
        phenotype shall be one that nobody knows.
    """

    name: str
    phenotype: str = "none"
    ec50: float = 1.0
    hill: float = 1.5
    top: float = 0.95
    doses: tuple = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
    labeled: bool = True

    def __post_init__(self):
        object.__setattr__(self, "doses", tuple(float(dose) for dose in self.doses))
        if self.phenotype not in PHENOTYPES:
            known = ", ".join(PHENOTYPES)
            raise ValueError(f"Treatment {self.name!r}: phenotype is {self.phenotype!r}, expected one of {known}.")

    def response(self, dose):
        """Return the fraction of cells in [0, 1] that respond to a dose [µM]."""
        if self.phenotype == "none" or dose <= 0:
            return 0.0
        return self.top / (1.0 + (self.ec50 / dose) ** self.hill)


DEFAULT_CHANNELS = (
    Channel("DNA", "dna", brightness=800.0, background=35.0),
    Channel("ER", "er", brightness=620.0, background=55.0),
    Channel("GFP", "marker", brightness=520.0, background=45.0),
)
DEFAULT_TREATMENTS = (
    Treatment("nuclearin", "translocated", ec50=0.25, hill=1.6),
    Treatment("shrinkamide", "condensed", ec50=2.0, hill=1.3, top=0.85),
    Treatment("inertol", "none"),
)


@dataclass(frozen=True)
class ScreenDesign:
    """What is on the plates and how the microscope sees it.

    Parameters
    ----------
    plates : tuple of str
        Plate names. All plates carry the same layout.
    rows, columns : int
        Size of a plate [wells].
    fields : int
        Fields per well, numbered from 1.
    size_px : int or tuple of int (Y, X)
        Size of a field [px].
    pixel_size_um : float
        [µm/px]; cells keep their size in µm.
    channels : tuple of Channel
        In the order of the image's first axis.
    bit_depth : int
        Significant bits in the uint16 pixels: counts end at ``2**bit_depth - 1``.
    cells_per_field : float
        Mean number of cells in an untreated field.
    clumped : float in [0, 1)
        Fraction of nuclei placed so that they touch another one.
    treatments : tuple of Treatment
        The first one that is active is, at its highest dose, also the positive control.
    negative_control : str
        Name of the solvent.
    batch_strength : float
        Spread of each plate's staining intensity and background (standard deviation of the log).
    shifts : mapping of str to mapping of str to float
        Plates that were stained differently: by plate and channel what the signal is multiplied by.
    illumination_strength : float in [0, 0.8]
        Fall of light from the brightest point to the farthest corner, as a fraction.
    edge_effect : float in [0, 1)
        Fraction of cells and staining lost in the outermost wells.
    defects : mapping of str to int or to sequence of (plate, well, field)
        Defective fields by kind (see DEFECTS): where they are, or how many; a number is spread over the screen by the
        seed. ``truncated`` and ``missing`` only mark the field: they are faults of files, not of pictures.
    seed : int
        Every random number follows from it.
    """

    plates: tuple = ("P1", "P2")
    rows: int = 4
    columns: int = 6
    fields: int = 2
    size_px: tuple = (512, 512)
    pixel_size_um: float = 0.65
    channels: tuple = DEFAULT_CHANNELS
    bit_depth: int = 12
    cells_per_field: float = 50.0
    clumped: float = 0.28
    treatments: tuple = DEFAULT_TREATMENTS
    negative_control: str = "DMSO"
    batch_strength: float = 0.12
    shifts: tuple = field(default=())
    illumination_strength: float = 0.3
    edge_effect: float = 0.0
    defects: tuple = field(default=())
    seed: int = 0

    def __post_init__(self):
        size = (self.size_px, self.size_px) if isinstance(self.size_px, int) else tuple(self.size_px)
        named = {"plates": self.plates, "channels": self.channels, "treatments": self.treatments, "size_px": size}
        for name, value in named.items():
            object.__setattr__(self, name, tuple(value))
        defects = []
        for kind, where in dict(self.defects).items():
            if kind not in DEFECTS:
                raise ValueError(f"Unknown defect {kind!r}, expected one of {', '.join(DEFECTS)}.")
            defects.append((kind, where if isinstance(where, int) else tuple(tuple(one) for one in where)))
        object.__setattr__(self, "defects", tuple(sorted(defects)))
        shifts = {plate: dict(factors) for plate, factors in dict(self.shifts).items()}
        for plate, factors in shifts.items():
            for name, known in ((plate, self.plates), *((channel, self.channel_names) for channel in factors)):
                if name not in known:
                    raise ValueError(f"Unknown {name!r}, expected one of {', '.join(known)}.")
            if not all(np.isfinite(factor) and factor > 0 for factor in factors.values()):
                raise ValueError(f"The factors of {plate!r} must be above 0, found {factors}.")
        object.__setattr__(self, "shifts", tuple((p, tuple(sorted(shifts[p].items()))) for p in sorted(shifts)))

    @property
    def channel_names(self):
        """Names of the channels, in the order of the image's first axis."""
        return tuple(channel.name for channel in self.channels)

    @property
    def wells(self):
        """Names of all wells, row by row: ``A01``, ``A02``, …"""
        return tuple(well_name(row, column) for row in range(self.rows) for column in range(self.columns))


@dataclass(frozen=True, eq=False)
class Field:
    """A rendered field and its truth.

    Attributes
    ----------
    image : ndarray of uint16, shape (C, Y, X)
        Raw counts.
    nuclei, cells : ndarray of uint16, shape (Y, X)
        Labels 1 … N without gaps, the same value for one cell; 0 is background. A nucleus lies wholly in its cell.
    table : pandas.DataFrame, N rows
        Metadata_Plate, Metadata_Well, Metadata_Field, Metadata_ObjectNumber (the label), Class (one of CLASSES),
        Response in [0, 1] (strength of the phenotype in this cell), Center_Y and Center_X (centroid of the nucleus
        [px]), Nuclei_Area and Cells_Area [px²].
    defects : tuple of str
        Kinds of defect, sorted; empty for a good field.
    flatfield : ndarray of float32, shape (C, Y, X)
        What the light was multiplied by; mean 1 per channel.
    """

    image: np.ndarray
    nuclei: np.ndarray
    cells: np.ndarray
    table: pd.DataFrame
    defects: tuple
    flatfield: np.ndarray


def plate_map(design, plate):
    """Return what stands in each well of a plate.

    Controls are scattered over rows and columns by a low-discrepancy sequence; treatments and doses fill the other
    wells in whole replicates, shuffled by the seed; wells left over are negative controls.

    Parameters
    ----------
    design : ScreenDesign
    plate : str
        One of ``design.plates``.

    Returns
    -------
    list of dict
        One per well, row by row: plate, well, treatment, dose [µM], unit (``'uM'``, empty without a dose), control
        (``'negative'``, ``'positive'``, ``'empty'`` or ``''``), replicate (1 … R within the condition).
    """
    _check_plate(design, plate)
    return [{"plate": plate, **row} for row in _layout(design)]


def all_fields(design):
    """Return every (plate, well, field) of the screen in order; fields count from 1."""
    return list(itertools.product(design.plates, design.wells, range(1, design.fields + 1)))


@lru_cache(maxsize=16)
def all_defects(design):
    """Return the defective fields: dict of (plate, well, field) to a sorted tuple of kinds.

    A defect that was asked for by number never falls on an empty control well, nor on a field that has one already.

    Raises
    ------
    ValueError
        If a listed field is not in the design, or if more defects are asked for than there are fields.
    """
    everywhere = all_fields(design)
    known, found = set(everywhere), {}
    for kind, where in design.defects:
        for one in () if isinstance(where, int) else where:
            if one not in known:
                raise ValueError(f"Defect {kind!r} at {one!r}: no such (plate, well, field) in the design.")
            found.setdefault(one, set()).add(kind)
    empty = {row["well"] for row in _layout(design) if row["control"] == "empty"}
    free = [one for one in everywhere if one not in found and one[1] not in empty]
    free = [free[i] for i in _generator("defects", design.seed).permutation(len(free))]
    for kind, where in design.defects:
        if isinstance(where, int):
            if where > len(free):
                raise ValueError(f"{where} fields shall be {kind!r}, only {len(free)} are left.")
            for one in free[:where]:
                found[one] = {kind}
            free = free[where:]
    return {one: tuple(sorted(kinds)) for one, kinds in sorted(found.items())}


@lru_cache(maxsize=16)
def flatfields(design, plate):
    """Return the light of every channel on a plate.

    Parameters
    ----------
    design : ScreenDesign
    plate : str
        One of ``design.plates``.

    Returns
    -------
    ndarray of float32, shape (C, Y, X)
        Smooth, positive, mean 1 per channel; read-only.
    """
    _check_plate(design, plate)
    height, width = design.size_px
    stack = np.empty((len(design.channels), height, width), dtype=np.float32)
    for c in range(len(design.channels)):
        rng = _generator("light", design.seed, plate, c)
        half = max(height, width) / 2
        center_y, center_x = rng.uniform(-0.3, 0.3, 2)
        tilt, squeeze = rng.uniform(0, np.pi), rng.uniform(0.8, 1.0)
        dy = ((np.arange(height) - (height - 1) / 2) / half - center_y)[:, None]
        dx = ((np.arange(width) - (width - 1) / 2) / half - center_x)[None, :]
        along, across = np.cos(tilt) * dx + np.sin(tilt) * dy, np.cos(tilt) * dy - np.sin(tilt) * dx
        radius = np.hypot(along, across * squeeze)
        radius /= radius.max()
        light = 1 - design.illumination_strength * (0.75 * radius**2 + 0.25 * radius**4)
        stack[c] = light / light.mean()
    stack.flags.writeable = False
    return stack


def render_field(design, plate, well, field):
    """Render one field of the screen with its truth.

    Parameters
    ----------
    design : ScreenDesign
    plate : str
        One of ``design.plates``.
    well : str
        Such as ``'B03'``.
    field : int
        Counted from 1.

    Returns
    -------
    Field

    Notes
    -----
    Nuclei are ellipses with Fourier-perturbed outlines; cell bodies grow around them until they meet (a Voronoi
    tessellation weighted by star-shaped radial functions on warped coordinates). Light is stained structure, a wide
    haze of out-of-focus light and background, blurred by the PSF, shaded by the flat-field; photon noise is Gaussian
    of the Poisson variance, which at these light levels cannot be told from Poisson and is three times faster.
    """
    _check_plate(design, plate)
    if well not in design.wells or not 1 <= field <= design.fields:
        raise ValueError(f"No field {field!r} in well {well!r}: wells {design.wells[0]} to {design.wells[-1]}, "
                         f"fields 1 to {design.fields}.")  # fmt: skip
    defects = all_defects(design).get((plate, well, field), ())
    content = _layout(design)[design.wells.index(well)]
    edge = 1.0 - design.edge_effect * _is_edge(design, well)
    streams = ("cells", "texture", "noise", "junk")
    placing, texturing, noising, junking = (_generator(s, design.seed, plate, well, field) for s in streams)

    cells = [] if content["control"] == "empty" or "empty" in defects else _place(design, content, edge, placing)
    shape = design.size_px
    cells, nuclei, bodies, depth, reach = _grow(cells, shape, design.pixel_size_um, texturing)
    signal = _stain(design, cells, nuclei, bodies, depth, reach, texturing)
    flat = flatfields(design, plate)
    if "debris" in defects:
        _litter(signal, design.pixel_size_um, junking)
    image = _expose(design, plate, signal * np.float32(edge), flat, defects, noising)
    return Field(image, nuclei, bodies, _truth(cells, nuclei, bodies, (plate, well, field)), defects, flat)


# --- the plate -----------------------------------------------------------------------------------------------------


def _generator(purpose, *key):
    """A random stream for one purpose and one key of numbers and names."""
    words = [zlib.crc32(one.encode()) if isinstance(one, str) else int(one) for one in (purpose, *key)]
    return np.random.default_rng(np.random.SeedSequence(words))


def _check_plate(design, plate):
    if plate not in design.plates:
        raise ValueError(f"Unknown plate {plate!r}; the design has {', '.join(map(repr, design.plates))}.")


def _is_edge(design, well):
    row, column = divmod(design.wells.index(well), design.columns)
    return row in (0, design.rows - 1) or column in (0, design.columns - 1)


@lru_cache(maxsize=16)
def _layout(design):
    """The plate map without the plate: one dict per well, row by row."""
    count = design.rows * design.columns
    scattered, taken = [], set()
    for k in itertools.count():  # the R2 sequence: any run of it covers the plate evenly
        if len(scattered) == count or k > 50 * count:
            break
        row = int((0.5 + k * 0.7548776662466927) % 1 * design.rows)
        column = int((0.5 + k * 0.5698402909980532) % 1 * design.columns)
        if (row, column) not in taken:
            taken.add((row, column))
            scattered.append(row * design.columns + column)
    scattered += sorted(set(range(count)) - set(scattered))
    negative, positive = (max(1 if count < 8 else 2, round(share * count)) for share in (0.145, 0.08))
    empty = 0 if count < 12 else max(1, count // 48)
    active = [t for t in design.treatments if t.phenotype != "none"]
    if not active:
        positive = 0

    conditions = {}
    kinds = ["negative"] * negative + ["positive"] * positive + ["empty"] * empty
    for index, kind in zip(scattered, kinds, strict=False):
        if kind == "positive":
            conditions[index] = (active[0].name, active[0].doses[-1], kind)
        else:
            conditions[index] = (design.negative_control if kind == "negative" else "", 0.0, kind)
    rest = np.array([index for index in range(count) if index not in conditions], dtype=int)
    rest = rest[_generator("layout", design.seed).permutation(len(rest))].tolist()
    wanted = _conditions(design.treatments, len(rest))
    replicates = max(1, len(rest) // len(wanted)) if wanted else 0
    conditions.update(zip(rest, wanted * replicates, strict=False))

    seen, rows = {}, []
    for index, well in enumerate(design.wells):
        treatment, dose, control = conditions.get(index, (design.negative_control, 0.0, "negative"))
        seen[treatment, dose, control] = seen.get((treatment, dose, control), 0) + 1
        rows.append({"well": well, "treatment": treatment, "dose": dose, "unit": "uM" if dose > 0 else "",
                     "control": control, "replicate": seen[treatment, dose, control]})  # fmt: skip
    return rows


def _conditions(treatments, room):
    """Treatment and dose of the wells of one replicate, thinned so that two replicates fit."""
    wanted = []
    for treatment in treatments:
        count = max(1, min(len(treatment.doses), room // (2 * len(treatments))))
        chosen = np.linspace(len(treatment.doses) - 1, 0, count).round().astype(int)
        wanted.append([(treatment.name, treatment.doses[i], "") for i in chosen])
    return [one for group in itertools.zip_longest(*wanted) for one in group if one is not None]


# --- cells ---------------------------------------------------------------------------------------------------------


def _place(design, content, edge, rng):
    """Draw the cells of a field: class, size, brightness, and a center that respects its neighbors."""
    treatment = next((t for t in design.treatments if t.name == content["treatment"]), None)
    fraction = treatment.response(content["dose"]) if treatment else 0.0
    phenotype = treatment.phenotype if treatment else "none"
    mean = design.cells_per_field * edge * (1 - 0.5 * fraction * (phenotype == "condensed"))
    height, width = design.size_px
    crowd = _noise(rng, design.size_px, 90 / design.pixel_size_um)
    outlines = np.empty((0, _ANGLES))
    centers = np.empty((0, 2))
    cells = []
    for _ in range(rng.poisson(mean)):
        cell = _draw_cell(rng, phenotype, fraction, design.pixel_size_um)
        clump = len(cells) > 0 and rng.random() < design.clumped
        for _attempt in range(40):
            if clump:
                mate = rng.integers(len(cells))
                angle = rng.uniform(-np.pi, np.pi)
                gap = rng.uniform(0.86, 0.98)
                distance = gap * (_at(outlines[mate], angle) + _at(cell["outline"], angle + np.pi))
                center = centers[mate] + distance * np.array([np.sin(angle), np.cos(angle)])
            else:
                center = rng.uniform((0, 0), (height - 1, width - 1))
            y, x = np.round(center).astype(int)
            if not (0 <= y < height and 0 <= x < width):
                continue
            if not clump and crowd[y, x] + rng.normal(0, 0.5) < -0.5:
                continue
            if len(cells):
                dy, dx = (center - centers).T
                angle = np.arctan2(dy, dx)
                rows = np.arange(len(cells))
                near = outlines[rows, _slot(angle)] + cell["outline"][_slot(angle + np.pi)]
                room = np.hypot(dy, dx) / near
                if (room < (0.85 if clump else 1.2)).any():
                    continue
            cell["center"] = center
            cells.append(cell)
            centers = np.vstack([centers, center])
            outlines = np.vstack([outlines, cell["outline"]])
            break
    return cells


def _slot(angle):
    """Index of an angle [rad] in a radial table."""
    return ((np.asarray(angle) + np.pi) * (_ANGLES / (2 * np.pi))).astype(np.int64) % _ANGLES


def _at(table, angle):
    return table[_slot(angle)]


def _draw_cell(rng, phenotype, fraction, pixel_size_um):
    """Draw what a cell is, without its place; lengths in px."""
    responds = phenotype != "none" and rng.random() < fraction
    kind = phenotype if responds else "normal"
    level = float(np.clip(rng.normal(0.85, 0.12), 0.45, 1.0) if responds else np.clip(rng.gamma(1.5, 0.04), 0, 0.25))
    condensed, swollen = (level if kind == name else 0.0 for name in ("condensed", "swollen"))
    theta = (np.arange(_ANGLES) + 0.5) * (2 * np.pi / _ANGLES) - np.pi

    cycle = rng.choice([1.0, 1.45, 2.0], p=[0.6, 0.2, 0.2]) * rng.lognormal(0, 0.05)  # DNA content
    radius = 7.3 * cycle**0.4 * rng.lognormal(0, 0.1) * (1 - 0.42 * condensed) * (1 + 0.4 * swollen) / pixel_size_um
    aspect = 1 + rng.gamma(2.5, 0.16) * (1 - 0.6 * condensed)
    tilt = rng.uniform(-np.pi, np.pi)
    long, short = radius * np.sqrt(aspect), radius / np.sqrt(aspect)
    outline = long * short / np.hypot(short * np.cos(theta - tilt), long * np.sin(theta - tilt))
    rough = sum(
        rng.normal(0, (0.045 + 0.04 * condensed) / k**0.7) * np.cos(k * theta + rng.uniform(0, 7)) for k in range(2, 8)
    )
    outline = outline * np.exp(rough)

    span = 29.0 * rng.lognormal(0, 0.2) * (1 - 0.5 * condensed) * (1 + 0.4 * swollen) / pixel_size_um
    body = np.full(_ANGLES, 0.62)
    tips = rng.integers(3, 6)
    for k in range(tips):
        toward = 2 * np.pi * (k + rng.uniform(-0.3, 0.3)) / tips + tilt
        body += rng.uniform(0.15, 0.75) * (1 - condensed) * np.exp(rng.uniform(3, 9) * (np.cos(theta - toward) - 1))
    body *= 1 + (0.22 * np.cos(2 * (theta - tilt))) * (1 - condensed)
    ruffle = sum(
        rng.normal(0, 0.09 * (1 - 0.6 * condensed) / k**0.75) * np.cos(k * theta + rng.uniform(0, 7))
        for k in range(4, 22)
    )
    body = np.maximum(span * body * (1 + ruffle), outline * (1.2 + 0.05 * rng.random()) + 1.5)

    spots = rng.integers(1, 5)
    return {
        "class": kind,
        "response": level if responds else float(min(level, 0.25)),
        "condensed": condensed,
        "translocated": level if kind in ("normal", "translocated") else 0.0,
        "speckled": level if kind == "speckled" else 0.0,
        "outline": outline,
        "body": body,
        "tilt": tilt,
        "dna": cycle**0.25 * rng.lognormal(0, 0.3) * (1 + 1.1 * condensed) * (1 - 0.4 * swollen),
        "er": rng.lognormal(0, 0.28) * (1 + 0.7 * condensed) * (1 - 0.3 * swollen),
        "marker": rng.lognormal(0, 0.32) * (1 + 0.4 * condensed),
        "actin": rng.lognormal(0, 0.3) * (1 + 0.6 * condensed),
        "nucleoli": np.column_stack([
            rng.uniform(-np.pi, np.pi, spots), rng.uniform(0.1, 0.6, spots), rng.uniform(0.1, 0.19, spots) * radius,
        ]),
    }  # fmt: skip


def _noise(rng, shape, scale):
    """Smooth Gaussian noise of mean 0 and variance 1: cubic B-splines on a lattice of that spacing [px].

    Summed term by term and not by a matrix product, whose last bits depend on the number of threads.
    """
    (index_y, weight_y), (index_x, weight_x) = (_spline(size, float(scale)) for size in shape)
    lattice = rng.standard_normal((index_y.max() + 1, index_x.max() + 1), dtype=np.float32)
    half = sum(weight_y[k][:, None] * lattice[index_y[k]] for k in range(4))
    half = np.ascontiguousarray(half.T)
    return np.ascontiguousarray(sum(weight_x[k][:, None] * half[index_x[k]] for k in range(4)).T)


@lru_cache(maxsize=64)
def _spline(size, scale):
    """Lattice indices and unit-variance weights of cubic B-splines along an axis: two arrays of shape (4, size)."""
    position = np.arange(size) / scale
    whole = np.floor(position).astype(int)
    t = position - whole
    weights = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3])
    weights /= np.sqrt((weights**2).sum(0))
    return whole + np.arange(4)[:, None], weights.astype(np.float32)


def _grow(cells, shape, pixel_size_um, rng):
    """Give every pixel to the nucleus and the cell that reach it first.

    Returns the cells that are left, the labels of nuclei and cells, and per pixel how far out it lies in its nucleus
    (0 center, 1 outline, 9 outside) and in its cell (0 nuclear outline, 1 membrane).
    """
    unit = 1 / pixel_size_um
    warp = [_noise(rng, shape, 7 * unit) * np.float32(1.6 * unit) for _ in range(2)]
    labels = [np.zeros(shape, np.uint16) for _ in range(2)]
    nearest = [np.ones(shape, np.float32) for _ in range(2)]
    boxes = []
    for number, cell in enumerate(cells, 1):
        box, depth, reach = _rasterize(cell, shape, warp)
        boxes.append(box)
        for kind, value in enumerate((depth, reach)):
            closer = value < nearest[kind][box]
            nearest[kind][box][closer] = value[closer]
            labels[kind][box][closer] = number
    nuclei, bodies = labels
    bodies[nuclei > 0] = nuclei[nuclei > 0]

    kept, smallest = [], 12 * unit**2
    for number, (cell, box) in enumerate(zip(cells, boxes, strict=True), 1):
        inside, around = nuclei[box] == number, bodies[box] == number
        _keep_largest(inside)
        if inside.sum() >= smallest:
            around = _keep_touching(around, inside)
            kept.append((cell, box, inside, around))
    nuclei, bodies = np.zeros(shape, np.uint16), np.zeros(shape, np.uint16)
    depth, reach = np.full(shape, 9, np.float32), np.ones(shape, np.float32)
    for number, (cell, box, inside, around) in enumerate(kept, 1):
        cell["box"] = box
        bodies[box][around] = number
        nuclei[box][inside] = number
        depth[box][inside] = nearest[0][box][inside]
        reach[box][around] = np.maximum(nearest[1][box][around], 0)
    return [one[0] for one in kept], nuclei, bodies, depth, reach


def _rasterize(cell, shape, warp):
    """Box of a cell in the field, and in it how far out each pixel lies in the nucleus and in the cell."""
    y, x = cell["center"]
    margin = int(cell["body"].max() + 6)
    top, left = max(int(y) - margin, 0), max(int(x) - margin, 0)
    box = (slice(top, min(int(y) + margin + 1, shape[0])), slice(left, min(int(x) + margin + 1, shape[1])))
    dy = np.arange(box[0].start, box[0].stop, dtype=np.float32)[:, None] - np.float32(y)
    dx = np.arange(box[1].start, box[1].stop, dtype=np.float32)[None, :] - np.float32(x)
    wy, wx = dy + warp[0][box], dx + warp[1][box]
    slot = _slot(np.arctan2(wy, wx))
    outline, body = cell["outline"].astype(np.float32)[slot], cell["body"].astype(np.float32)[slot]
    reach = (np.hypot(wy, wx) - outline) / (body - outline)
    wy, wx = dy + 0.35 * warp[0][box], dx + 0.35 * warp[1][box]  # nuclei are stiffer than cells
    return box, np.hypot(wy, wx) / outline, reach


def _keep_largest(region):
    """Clear all but the largest connected piece of a boolean array, in place."""
    pieces, count = ndimage.label(region)
    if count > 1:
        region &= pieces == np.bincount(pieces.ravel())[1:].argmax() + 1


def _keep_touching(region, seed):
    """The piece of a boolean array that holds the seed."""
    region = region | seed
    pieces, count = ndimage.label(region)
    if count > 1:
        region = pieces == pieces[seed][0]
    return region


# --- light ---------------------------------------------------------------------------------------------------------


def _stain(design, cells, nuclei, bodies, depth, reach, rng):
    """Draw the stained structures: float32 (C, Y, X), 1 is the brightness of a typical cell."""
    shape, unit = nuclei.shape, 1 / design.pixel_size_um
    chromatin = 0.6 * _noise(rng, shape, max(1.0 * unit, 1.0)) + 0.8 * _noise(rng, shape, 2.2 * unit)
    mesh = 1 - np.abs(_noise(rng, shape, max(1.1 * unit, 1.0)))
    patch = _noise(rng, shape, 5 * unit)
    grain = _noise(rng, shape, max(1.1 * unit, 1.0))
    ramp = np.arange(max(shape), dtype=np.float32)
    signal = np.zeros((len(design.channels), *shape), np.float32)
    for number, cell in enumerate(cells, 1):
        box = cell["box"]
        around = bodies[box] == number
        inside = nuclei[box][around] > 0
        pixel_y, pixel_x = np.nonzero(around)
        dy = ramp[pixel_y] + np.float32(box[0].start - cell["center"][0])
        dx = ramp[pixel_x] + np.float32(box[1].start - cell["center"][1])
        far, out = depth[box][around], reach[box][around]
        tone, web, blotch, dust = (a[box][around] for a in (chromatin, mesh, patch, grain))
        holes = np.zeros(len(dy), np.float32)
        for angle, share, size in cell["nucleoli"]:
            away = share * _at(cell["outline"], angle)
            squared = (dy - away * np.sin(angle)) ** 2 + (dx - away * np.cos(angle)) ** 2
            np.maximum(holes, np.exp(squared * np.float32(-0.5 / size**2)), out=holes)
        thick = 0.14 + 0.86 * np.exp(-2.6 * out)
        spots = 1 + np.float32(cell["speckled"]) * (3 * np.maximum(tone - 0.5, 0) - 0.6)  # mean 1
        for c, channel in enumerate(design.channels):
            level = np.float32(cell[channel.stain] * channel.brightness)
            if channel.stain == "dna":
                dome = 1 - 0.5 * np.minimum(far, 1) ** 4
                light = dome * (1 + 0.17 * tone) * (1 - 0.4 * holes * (1 - cell["condensed"]))
                light = np.where(inside, np.maximum(light, 0.12), 0.012)
            elif channel.stain == "er":
                light = thick * (0.8 + 0.2 * web + 0.16 * blotch + 0.09 * dust) * spots
                light += 0.22 * np.exp(-((out / 0.09) ** 2)) * ~inside
                light = np.where(inside, 0.42 + 0.06 * tone + 0.16 * holes, np.maximum(light, 0.03))
            elif channel.stain == "marker":
                moved = cell["translocated"]
                whole = (
                    (0.42 + 1.9 * moved) * (1 + 0.1 * tone) * (1 - 0.55 * holes) * (1 - 0.25 * np.minimum(far, 1) ** 4)
                )
                light = (0.95 - 0.6 * moved) * thick * (1 + 0.15 * blotch + 0.12 * dust + 0.1 * web) * spots
                light = np.where(inside, whole, np.maximum(light, 0.02))
            else:
                across = dy * np.cos(cell["tilt"]) - dx * np.sin(cell["tilt"])
                fiber = np.maximum(np.sin(across * np.float32(2.4 / unit) + 1.7 * blotch), 0) ** 3
                light = 0.12 + 0.2 * thick + 0.45 * fiber * (1 + 0.4 * dust) + 0.4 * np.exp(-(((out - 1) / 0.07) ** 2))
            signal[c][box][around] = light * level
    return signal


def _litter(signal, pixel_size_um, rng):
    """Add bright irregular fluorescent junk to the stained structures, in place."""
    channels, height, width = signal.shape
    unit = 1 / pixel_size_um
    speckle = _noise(rng, (height, width), max(2 * unit, 1.0))
    for _ in range(rng.integers(2, 5)):
        weights = rng.lognormal(np.log(2800), 0.35, channels)
        junk = np.zeros((height, width), np.float32)
        y, x = rng.uniform((0.1 * height, 0.1 * width), (0.9 * height, 0.9 * width))
        if rng.random() < 0.45:  # a fiber
            heading, length = rng.uniform(0, 2 * np.pi), int(rng.uniform(60, 160) * unit)
            bend = np.cumsum(rng.normal(0, 0.02, length)) + heading
            along_y, along_x = y + np.cumsum(np.sin(bend)), x + np.cumsum(np.cos(bend))
            on = (along_y >= 0) & (along_y < height - 1) & (along_x >= 0) & (along_x < width - 1)
            junk[along_y[on].astype(int), along_x[on].astype(int)] = 5.5 * unit
            junk = ndimage.gaussian_filter(junk, 1.5 * unit)
        else:  # a flake
            theta = (np.arange(_ANGLES) + 0.5) * (2 * np.pi / _ANGLES) - np.pi
            rough = sum(rng.normal(0, 0.22 / k**0.7) * np.cos(k * theta + rng.uniform(0, 7)) for k in range(1, 14))
            edge = (rng.uniform(7, 20) * unit * np.exp(rough)).astype(np.float32)
            dy = np.arange(height, dtype=np.float32)[:, None] - np.float32(y)
            dx = np.arange(width, dtype=np.float32)[None, :] - np.float32(x)
            share = np.hypot(dy, dx) / edge[_slot(np.arctan2(dy, dx))]
            junk = np.clip(1.6 - 1.6 * share, 0, 1) * (1 + 0.35 * speckle)
        junk = np.maximum(junk, 0)
        for c in range(channels):
            signal[c] += junk * np.float32(weights[c])


def staining(design, plate):
    """Return how a plate's batch was stained: of each channel the brightness and the background, as factors, ndarray (C, 2)."""
    _check_plate(design, plate)
    generators = [_generator("batch", design.seed, plate, c) for c in range(len(design.channels))]
    return np.exp([generator.normal(0, design.batch_strength, 2) for generator in generators])


def _expose(design, plate, signal, flat, defects, rng):
    """Turn stained structures into counts: haze, PSF, background, shading, noise, camera."""
    top = 2**design.bit_depth - 1
    unit = 1 / design.pixel_size_um
    image = np.empty(signal.shape, np.uint16)
    blur = rng.uniform(*_DEFOCUS_UM) * unit
    spread = rng.normal(0, 1, 3)
    shifts, batches = dict(dict(design.shifts).get(plate, ())), staining(design, plate)
    for c, channel in enumerate(design.channels):
        batch = batches[c]
        gain = batch[0] * np.exp(0.03 * spread[0]) * (_SATURATING_GAIN if "saturated" in defects else 1)
        light = signal[c] * np.float32(gain * shifts.get(channel.name, 1))
        haze = _wide_blur(light, 14 * unit)
        light = ndimage.gaussian_filter(light, blur if "blurred" in defects else _PSF_UM * unit * (1 + 0.06 * c))
        light += 0.16 * haze
        medium = channel.background * batch[1] * np.exp(0.05 * spread[1])
        light += np.float32(medium) * (1 + 0.05 * _noise(rng, light.shape, 110 * unit))
        light = np.maximum(light, 1) * flat[c]
        noise = rng.standard_normal(light.shape, dtype=np.float32)
        noise *= np.sqrt(light * np.float32(_COUNTS_PER_ELECTRON) + np.float32(_READ_NOISE**2))
        light += noise
        light += np.float32(_CAMERA_OFFSET + 0.5)
        image[c] = np.clip(light, 0, top)
    return image


def _wide_blur(plane, sigma):
    """Blur widely at a quarter of the resolution."""
    height, width = plane.shape
    step = 4
    padded = np.pad(plane, ((0, -height % step), (0, -width % step)), mode="edge")
    small = padded.reshape(padded.shape[0] // step, step, padded.shape[1] // step, step).mean((1, 3))
    small = ndimage.gaussian_filter(small, sigma / step, truncate=3)
    rows = (np.arange(height, dtype=np.float32) - 1.5) / step
    columns = (np.arange(width, dtype=np.float32) - 1.5) / step
    return _linear(_linear(small, rows).T, columns).T


def _linear(array, position):
    """Read an array along its first axis at fractional positions."""
    low = np.clip(np.floor(position).astype(int), 0, array.shape[0] - 1)
    high = np.minimum(low + 1, array.shape[0] - 1)
    share = np.clip(position - low, 0, 1).astype(np.float32)[:, None]
    return array[low] * (1 - share) + array[high] * share


def _truth(cells, nuclei, bodies, key):
    """Per-cell table of a field."""
    count = len(cells)
    area = np.bincount(nuclei.ravel(), minlength=count + 1)[1:]
    pixel_y, pixel_x = np.nonzero(nuclei)
    owner = nuclei[pixel_y, pixel_x]
    center_y, center_x = (np.bincount(owner, p, count + 1)[1:] / np.maximum(area, 1) for p in (pixel_y, pixel_x))
    plate, well, number = key
    return pd.DataFrame(
        {
            "Metadata_Plate": pd.Series([plate] * count, dtype=object),
            "Metadata_Well": pd.Series([well] * count, dtype=object),
            "Metadata_Field": np.full(count, number, np.int64),
            "Metadata_ObjectNumber": np.arange(1, count + 1, dtype=np.int64),
            "Class": pd.Series([cell["class"] for cell in cells], dtype=object),
            "Response": np.array([cell["response"] for cell in cells], dtype=np.float64),
            "Center_Y": center_y.astype(np.float64),
            "Center_X": center_x.astype(np.float64),
            "Nuclei_Area": area.astype(np.int64),
            "Cells_Area": np.bincount(bodies.ravel(), minlength=count + 1)[1:].astype(np.int64),
        }
    )
