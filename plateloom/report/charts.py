"""Charts as inline SVG: plate maps, intervals, dose-response, maps of wells and cells, confusion matrices, lines.

Each chart is a function from arrays to `Markup`. Every text passes through `element`, which escapes it; nothing here
needs an id, a style attribute, a script or a font file, so that a chart can stand anywhere under a strict CSP.
"""

import base64
import io
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from markupsafe import Markup, escape

from plateloom.wells import parse_well, row_name, well_name

SEQUENTIAL = (  # viridis (CC0, Smith and van der Walt), 16 samples
    *("#440154", "#481a6c", "#472f7d", "#414487", "#39568c", "#31688e", "#2a788e", "#23888e"),
    *("#1f988b", "#22a884", "#35b779", "#54c568", "#7ad151", "#a5db36", "#d2e21b", "#fde725"),
)
DIVERGING = ("#2166ac", "#4393c3", "#92c5de", "#d1e5f0", "#f7f7f7", "#fddbc7", "#f4a582", "#d6604d", "#b2182b")
FRACTIONS = ("#f7fbff", "#deebf7", "#c6dbef", "#9ecae1", "#6baed6", "#4292c6", "#2171b5", "#08519c", "#08306b")
NEGATIVE, POSITIVE = "#0072b2", "#d55e00"
EMPTY = "#6b7785"
CONTROLS = {  # the same in every chart, and nothing else has these colors
    "negative": NEGATIVE,
    "positive": POSITIVE,
    "empty": EMPTY,
}
CATEGORIES = (  # what Okabe and Ito have besides these two, yellow and black, then Paul Tol's muted, and a brown
    *("#e69f00", "#009e73", "#56b4e9", "#cc79a7", "#332288"),
    *("#999933", "#882255", "#44aa99", "#8c6d46", "#7b5fc4"),
)
PALETTES = {  # kind of category -> colors: one color must not mean a treatment here and a plate beside it
    "plate": (
        *("#1f3a5f", "#c99a6b", "#4a5d23", "#bd86c2", "#7a4419"),
        *("#8fb0cc", "#5b2a5e", "#a3b86c", "#8a1c2b", "#d98080"),
    ),
    "batch": (
        *("#7d2e68", "#8cbf9c", "#0b3c49", "#e59a86", "#5c4b00"),
        *("#a891d6", "#400d12", "#6fbfbc", "#2d2a32", "#c4a86a"),
    ),
    "cluster": (
        *("#3b6fb6", "#e8a33d", "#c2457a", "#3f9c6b", "#8457a8"),
        *("#9bc53d", "#e4572e", "#56b4c9", "#8d6e63", "#2f3e56"),
    ),
    "class": (
        *("#e7298a", "#66a61e", "#6a3d9a", "#00a6b6", "#a6761d"),
        *("#b2df8a", "#fb9a99", "#1a1a1a", "#9e0142", "#5e9ea0"),
    ),
}
LINES = ("#243b53", "#8a7ca8", "#b0a160", "#7f9172")  # that stand for no category of the page
OTHER = "#c4c8cd"
INK, QUIET, RULE, NO_VALUE = "#1f2933", "#616e7c", "#d5dae0", "#e4e7eb"
PLAIN = "#52606d"  # points that belong to no group

SMALL_MARGIN = (18, 13)  # left of and above a small plate map, for letters and numbers [px]
SVG_POINTS = 2000  # a map with more points than this is drawn as a picture
CHARACTER = 0.58  # mean width of a character, in font sizes, of a wide system font


@dataclass(frozen=True, eq=False, kw_only=True)
class HeatMap:
    """One number per well, to be drawn on the grid of the plate.

    Parameters
    ----------
    title : str
        What is shown, e.g. ``"Focus, DNA"``.
    values : mapping or Series of str to float
        Well name (``"B03"``) to value [`unit`]; NaN is drawn as 'no value'.
    unit : str, optional
        Printed at the legend.
    group : str, optional
        Heading under which maps stand together: ``"Cells"``, ``"Image quality"``, ``"Readout"``, ``"Classes"``.
    diverging : bool, optional
        Blue, white, red around 0 instead of viridis: for z-scores.
    limits : tuple of float, optional
        Ends of the color scale; without it the 1st and the 99th percentile.
    note : str, optional
        One sentence below the map.
    """

    title: str
    values: Mapping
    unit: str = ""
    group: str = ""
    diverging: bool = False
    limits: tuple | None = None
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class HillCurve:
    """A fitted curve ``bottom + (top - bottom) / (1 + (ec50 / dose) ** slope)``.

    `bottom` is the response at dose 0 and `top` the one at infinite dose, both in the unit of the readout; `ec50` and
    its interval (NaN if unknown) in the unit of the dose; `slope` > 0 has no unit.
    """

    bottom: float
    top: float
    ec50: float
    slope: float
    ec50_low: float = math.nan
    ec50_high: float = math.nan

    def __call__(self, dose):
        """Response at doses > 0."""
        return self.bottom + (self.top - self.bottom) / (1 + (self.ec50 / np.asarray(dose, float)) ** self.slope)


@dataclass(frozen=True, eq=False, kw_only=True)
class DoseResponse:
    """The wells of one treatment and one readout.

    Parameters
    ----------
    treatment, readout : str
    doses : array of float, shape (W,)
        Dose of each well [`dose_unit`]; 0 stands apart from the log axis, NaN is left out.
    values : array of float, shape (W,)
        Readout of each well [`unit`]; NaN is left out. The unit stands at the axis, the readout in the heading.
    dose_unit, unit : str, optional
    wells : sequence of str, shape (W,), optional
        Shown when the pointer rests on a point.
    groups : sequence of str, shape (W,), optional
        For example the plate of each well: up to ten colors.
    hill : HillCurve, optional
    reason : str, optional
        Why there is no `hill`.
    controls : mapping of str to tuple of float, optional
        Bands ``{"negative": (low, median, high), "positive": ...}`` [`unit`].
    """

    treatment: str
    readout: str
    doses: np.ndarray
    values: np.ndarray
    dose_unit: str = ""
    unit: str = ""
    wells: tuple | None = None
    groups: tuple | None = None
    hill: HillCurve | None = None
    reason: str = ""
    controls: Mapping = field(default_factory=dict)


@dataclass(frozen=True, eq=False, kw_only=True)
class Embedding:
    """Wells or cells in two dimensions, drawn once per coloring.

    Parameters
    ----------
    title : str
        For example ``"Wells, before batch correction"``.
    x, y : array of float, shape (N,)
        Positions; not finite ones are left out.
    colorings : mapping of str to array, shape (N,)
        Name of the coloring (``"treatment"``, ``"plate"``, ``"class"``) to one text per point (the ten most frequent
        get a color, the rest is gray) or one number per point (viridis).
    labels : sequence of str, shape (N,), optional
        Shown when the pointer rests on a point; only where there are at most 2000 points.
    axes : tuple of str, optional
        Names of the two axes.
    note : str, optional
        For example how many cells were sampled out of how many.
    """

    title: str
    x: np.ndarray
    y: np.ndarray
    colorings: Mapping
    labels: tuple | None = None
    axes: tuple = ("UMAP 1", "UMAP 2")
    note: str = ""


def element(tag, *children, **attributes):
    """Build one element; texts and attributes are escaped, `Markup` children are kept.

    Parameters
    ----------
    tag : str
    *children : str, number or Markup
        None is left out.
    **attributes : str or number
        ``class_`` becomes ``class``, ``text_anchor`` becomes ``text-anchor``; None is left out.

    Returns
    -------
    Markup

    Examples
    --------
    >>> print(element("text", "a < b", x=1.50001, text_anchor="end"))
    <text x="1.5" text-anchor="end">a &lt; b</text>
    """
    names = (
        f' {name.rstrip("_").replace("_", "-")}="{escape(coordinate(value))}"'
        for name, value in attributes.items()
        if value is not None
    )
    inner = "".join(str(escape(child)) for child in children if child is not None)
    return Markup(f"<{tag}{''.join(names)}>{inner}</{tag}>")


def coordinate(value):
    """Write a number with at most two decimals; leave a text as it is."""
    if isinstance(value, str):
        return value
    text = f"{float(value):.2f}".rstrip("0").rstrip(".")
    return "0" if text in ("-0", "") else text


def format_number(value):
    """Write a value for a reader: about three digits, thousands separated, '–' where there is none.

    >>> [format_number(value) for value in (12345, 0.123456, 12345.6, 0.0000123, float("nan"), True)]
    ['12,345', '0.123', '12,346', '1.2e-05', '–', 'yes']
    """
    if value is None or isinstance(value, (bool, np.bool_)):
        return {None: "–", True: "yes", False: "no"}[None if value is None else bool(value)]
    if not isinstance(value, (int, float, np.integer, np.floating)):
        return str(value)
    number = float(value)
    if math.isnan(number):
        return "–"
    if math.isinf(number):
        return "∞" if number > 0 else "-∞"
    if number == round(number) and abs(number) < 1e15:
        return f"{int(round(number)):,}"
    if abs(number) >= 1000:
        return f"{number:,.0f}"
    return f"{number:.1e}" if abs(number) < 1e-3 else f"{number:.3g}"


def significant(value):
    """Write a measured value with three digits, zeros at the end included, so that those of a column look alike.

    >>> [significant(value) for value in (3.1, 39.04, 0.09841, 1234.5, 0, 0.00001)]
    ['3.10', '39.0', '0.0984', '1,234', '0', '1.0e-05']
    """
    number = number_of(value)
    if not math.isfinite(number) or number == 0 or not 1e-3 <= abs(number) < 100:
        return format_number(number)
    return f"{number:#.3g}".rstrip(".")


def whole(values):
    """Whether all finite values are whole numbers: counts."""
    values = finite(values)
    return bool(len(values)) and bool((values == np.round(values)).all())


def short_number(value, spread=math.inf):
    """Write a value for the inside of a well, with two to three digits of the spread of all wells; at most six characters.

    >>> short_number(0.0312, spread=0.2), short_number(12345.0, spread=9000), short_number(912.0)
    ('0.031', '12k', '912')
    """
    decimals = 0 if not 0 < spread < math.inf else min(max(1 - math.floor(math.log10(spread / 5)), 0), 3)
    for digits in range(decimals, -1, -1):
        text = f"{value:.{digits}f}"
        if len(text) <= (5 if "." in text else 4):
            return text
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size * 0.9995:
            return f"{value / size:.0f}{letter}" if abs(value) >= 9.95 * size else f"{value / size:.1f}{letter}"
    return f"{value:.2g}"


def shorten(text, characters):
    """Cut a text that is too long for its place."""
    text = str(text)
    return text if len(text) <= characters else text[: max(characters - 1, 1)] + "…"


def wrap_text(text, characters):
    """Break a text into lines, where possible after a blank, an underscore or a slash; nothing is cut off.

    >>> wrap_text("Nuclei_Intensity_MeanIntensity_GFP / Cells_AreaShape_Area", 24)
    ['Nuclei_Intensity_', 'MeanIntensity_GFP /', 'Cells_AreaShape_Area']
    """
    pieces = [piece for piece in re.split(r"(?<=[\s_/·,])", str(text)) if piece]
    lines = [""]
    for piece in pieces:
        if lines[-1] and len(lines[-1]) + len(piece.rstrip()) > characters:
            lines.append("")
        while len(piece.rstrip()) > characters:
            lines[-1], piece = piece[:characters], piece[characters:]
            lines.append("")
        lines[-1] += piece
    return [line.strip() for line in lines if line.strip()] or [""]


def well_position(name, shape):
    """Row and column counted from 0 of a well such as ``B03``.

    >>> well_position("B03", (8, 12))
    (1, 2)
    """
    row, column = parse_well(name)
    if row >= shape[0] or column >= shape[1]:
        raise ValueError(f"{name!r} is no well of a plate of {shape[0]} rows and {shape[1]} columns")
    return row, column


def palette_colors(positions, palette):
    """Interpolate a palette.

    Parameters
    ----------
    positions : array of float in [0, 1], shape (N,)
    palette : sequence of str
        Colors as ``#rrggbb``.

    Returns
    -------
    array of uint8, shape (N, 3)
    """
    anchors = np.array([[int(color[i : i + 2], 16) for i in (1, 3, 5)] for color in palette], float)
    where = np.clip(np.asarray(positions, float), 0, 1) * (len(anchors) - 1)
    steps = np.arange(len(anchors))
    return np.stack([np.interp(where, steps, anchors[:, c]) for c in range(3)], -1).round().astype(np.uint8)


def hex_color(rgb):
    return "#{:02x}{:02x}{:02x}".format(*(int(value) for value in rgb))


def ink_on(rgb):
    """Black or white, whichever can be read on this color."""
    red, green, blue = (int(value) / 255 for value in rgb)
    return "#ffffff" if 0.299 * red + 0.587 * green + 0.114 * blue < 0.55 else INK


def data_uri(picture, lossy=False):
    """Encode a picture for an image's address.

    Parameters
    ----------
    picture : array of uint8, shape (H, W, 3) or (H, W, 4), or a PIL image
    lossy : bool, optional
        WebP of quality 88 instead of PNG: for micrographs.

    Returns
    -------
    str
        ``data:image/…;base64,…``
    """
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(picture)) if isinstance(picture, np.ndarray) else picture
    buffer = io.BytesIO()
    if lossy:
        image.save(buffer, "WEBP", quality=88, method=4)
    else:
        image.save(buffer, "PNG", optimize=True)
    kind = "webp" if lossy else "png"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def nice_ticks(low, high, count=5, *, counts=False):
    """Round numbers between two ends; whole ones where the axis has `counts`.

    >>> nice_ticks(0, 1, 5)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    >>> nice_ticks(1, 12, 5, counts=True)
    [5, 10]
    """
    if not high > low:
        return [float(low)]
    raw = (high - low) / count
    power = 10 ** math.floor(math.log10(raw))
    step = next(m * power for m in ((1, 2, 5, 10) if counts else (1, 2, 2.5, 5, 10)) if m * power >= raw * 0.999)
    step = max(step, 1) if counts else step
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def number_of(value):
    """A value as float; NaN where there is none (None, NaN, pandas.NA)."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def floats(values):
    """Values as an array of float; NaN where there is none."""
    return np.array([number_of(value) for value in values], float)


def finite(values):
    """The finite ones of some values, as an array."""
    array = floats(values)
    return array[np.isfinite(array)]


def text_of(value):
    """A value's text; nothing where there is none."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return ""
    if isinstance(value, (float, np.floating)) and math.isnan(value):
        return ""
    return format_number(value) if isinstance(value, (bool, int, float, np.number)) else str(value)


def scale_limits(values, limits=None, diverging=False):
    """Ends of a color scale: as given, or from the 1st to the 99th percentile; symmetric if diverging, whole for counts.

    One well out of range must not flatten a whole plate. Without finite values or without spread the ends still differ;
    a scale of values that are all 0 begins there, since most quantities cannot be negative.
    """
    values = finite(values)
    if limits is not None:
        low, high = (float(limit) for limit in limits)
    elif not len(values):
        low, high = 0.0, 1.0
    else:
        low, high = (float(limit) for limit in np.percentile(values, [1, 99]))
        if len(values) < 30:
            low, high = float(values.min()), float(values.max())
        if whole(values):
            low, high = float(math.floor(low)), float(math.ceil(high))
    if diverging and limits is None:
        high = max(abs(low), abs(high))
        low = -high
    if not high > low:
        spread = abs(low) * 0.1 or 1.0
        low, high = low - (spread if low or diverging else 0.0), high + spread
    return low, high


def svg(width, height, *children, label, class_=None):
    """Wrap a drawing; `label` is what a screen reader says."""
    return element(
        "svg",
        *children,
        viewBox=f"0 0 {coordinate(width)} {coordinate(height)}",
        width=width,
        height=height,
        role="img",
        aria_label=label,
        class_=class_,
    )


def figure(title, drawing, note=""):
    """A drawing with its title above and a sentence below."""
    return element(
        "figure",
        element("figcaption", title),
        drawing,
        element("p", note, class_="note") if note else None,
    )


def color_bar(x, y, width, values, limits, unit, palette):
    """A horizontal legend: 48 steps of color, three numbers, and ≤ ≥ where values lie beyond its ends."""
    low, high = limits
    values = finite(values)
    steps = 48
    colors = palette_colors((np.arange(steps) + 0.5) / steps, palette)
    bars = [
        element("rect", x=x + i * width / steps, y=y, width=width / steps + 0.4, height=9, fill=hex_color(colors[i]))
        for i in range(steps)
    ]
    below = "≤ " if len(values) and values.min() < low else ""
    above = "≥ " if len(values) and values.max() > high else ""
    texts = ((x, "start", below + format_number(rounded(low, low, high))),)
    middle = round((low + high) / 2) if whole(values) and high - low > 2 else rounded((low + high) / 2, low, high)
    texts += ((x + width / 2, "middle", format_number(middle)),)
    texts += ((x + width, "end", above + format_number(rounded(high, low, high))),)
    marks = [element("text", text, x=at, y=y + 21, text_anchor=anchor, class_="tick") for at, anchor, text in texts]
    name = element("text", shorten(unit, 24), x=x + width + 8, y=y + 8, class_="tick") if unit else None
    return Markup("").join([*bars, *marks, name or Markup("")])


def rounded(value, low, high):
    """A limit with as many decimals as the width of its scale deserves."""
    digits = 2 - math.floor(math.log10(high - low))
    return round(value, max(digits, 0)) if digits < 15 else value


def hatch(x, y, side):
    """Diagonal lines that fill a square, as one path (a pattern would need an id)."""
    step = max(side / 4, 3)
    parts = []
    offset = step
    while offset < 2 * side:
        x0, y0 = (0, offset) if offset <= side else (offset - side, side)
        x1, y1 = (offset, 0) if offset <= side else (side, offset - side)
        parts.append(f"M{coordinate(x + x0)} {coordinate(y + y0)}L{coordinate(x + x1)} {coordinate(y + y1)}")
        offset += step
    return element("path", d="".join(parts), stroke="#66717d", stroke_width=max(side / 24, 0.8), class_="hatch")


def control_mark(x, y, side, kind):
    """N, P or E in the corner of a well, or a ring or a dot where a letter would be too small; in the control's color."""
    color = CONTROLS[kind]
    if side < 15:
        paint = {"fill": "#ffffff", "stroke": color} if kind == "negative" else {"fill": color, "stroke": "#ffffff"}
        at = {"cx": x + side / 2, "cy": y + side / 2, "r": side * 0.26, "stroke_width": max(side * 0.13, 0.8)}
        return element("circle", **at, **paint)
    box = min(side * 0.66, 13)
    left, top = (x + (side - box) / 2, y + (side - box) / 2) if side < 30 else (x + 1.5, y + 1.5)
    text = {"x": left + box / 2, "y": top + box * 0.78, "text_anchor": "middle", "font_size": box * 0.76}
    return Markup("").join(
        [
            element("rect", x=left, y=top, width=box, height=box, rx=2, fill=color, stroke="#ffffff", class_="mark"),
            element("text", kind[0].upper(), font_weight=700, fill="#ffffff", class_="mark", **text),
        ]
    )


def plate_axes(left, top, side, shape):
    """Letters of the rows and numbers of the columns, as many as can be read."""
    size = min(10, max(side * 0.85, 7))
    every = next(step for step in (1, 2, 4, 6, 8, 12, 48) if step * side >= size * 1.25)
    drawn = []
    for column in range(shape[1]):
        if column == 0 or (column + 1) % every == 0:
            at = {"x": left + (column + 0.5) * side, "y": top - 4, "text_anchor": "middle", "font_size": size}
            drawn.append(element("text", column + 1, class_="axis", **at))
    every = next(step for step in (1, 2, 4, 8, 32) if step * side >= size)
    for row in range(0, shape[0], every):
        at = {"x": left - 4, "y": top + (row + 0.5) * side + size * 0.36, "text_anchor": "end", "font_size": size}
        drawn.append(element("text", row_name(row), class_="axis", **at))
    return drawn


def plate_chart(heat_map, shape, *, states=None, controls=None, hover=None, width=432, legend=True, limits=None):
    """Draw one number per well on the grid of the physical plate, however few of its wells were imaged.

    Wells that shall be empty do not stretch the color scale.

    Parameters
    ----------
    heat_map : HeatMap
    shape : tuple of int
        Rows and columns of the plate: (8, 12), (16, 24), (32, 48).
    states : mapping of str to str, optional
        ``done`` or ``failed`` for each well that was imaged; a well in neither `states` nor the values is empty.
    controls : mapping of str to str, optional
        ``negative``, ``positive`` or ``empty``; other words are not marked.
    hover : mapping of str to str, optional
        More to say about a well, e.g. its treatment or why it failed.
    width : float, optional
        Of the grid [px].
    legend : bool, optional
        False for a small map without legend and without marks in its wells.
    limits : tuple of float, optional
        Ends of the color scale, if several maps share one.

    Returns
    -------
    Markup
        One ``<svg>`` with exactly rows x columns ``<rect class="well …">``.
    """
    states, controls, hover = states or {}, controls or {}, hover or {}
    rows, columns = shape
    side = width / columns
    gap = 1 if side >= 7 else 0.4
    palette = DIVERGING if heat_map.diverging else SEQUENTIAL
    values = {str(well): number_of(value) for well, value in dict(heat_map.values).items()}
    grid = np.full(shape, np.nan)
    known = {}
    for well in [*states, *values]:
        known.setdefault(well_position(well, shape), well)
    for well, value in values.items():
        at = well_position(well, shape)
        if states.get(known[at]) != "failed":
            grid[at] = value
    scaled = [grid[at] for at, name in known.items() if controls.get(name) != "empty"]
    limits = limits or scale_limits(scaled, heat_map.limits, heat_map.diverging)
    colors = palette_colors(
        (np.nan_to_num(grid.ravel(), posinf=limits[1], neginf=limits[0]) - limits[0]) / (limits[1] - limits[0]), palette
    )
    spread = math.inf if whole(grid.ravel()) else limits[1] - limits[0]
    left, top = (24, 16) if legend else SMALL_MARGIN
    wells, marks = [], []
    seen = set()
    for index in range(rows * columns):
        row, column = divmod(index, columns)
        x, y = left + column * side, top + row * side
        value = grid[row, column]
        name = known.get((row, column), well_name(row, column))
        control = controls.get(name) if controls.get(name) in CONTROLS else None
        if (row, column) not in known:
            kind, fill, says, ink = "empty", "#ffffff", "not imaged", INK
        elif states.get(name) == "failed":
            kind, fill, says, ink = "failed", "#f4f5f7", "failed", INK
            marks.append(hatch(x + gap / 2, y + gap / 2, side - gap))
        elif math.isnan(value):
            kind, fill, says, ink = "novalue", NO_VALUE, "no value", INK
            third = side * 0.3
            line = {"stroke": "#9aa5b1", "stroke_width": max(side / 26, 0.6)}
            marks.append(element("line", x1=x + third, y1=y + side / 2, x2=x + side - third, y2=y + side / 2, **line))
        else:
            kind, fill, ink = "value", hex_color(colors[index]), ink_on(colors[index])
            says = f"{format_number(value)} {heat_map.unit}".strip()
            if legend and side >= 30:
                text = short_number(value, spread) if math.isfinite(value) else "∞"
                middle = {"x": x + side / 2, "y": y + side / 2 + (7 if control else 3.5), "text_anchor": "middle"}
                marks.append(element("text", text, font_size=9.5, fill=ink, class_="mark", **middle))
        seen.add(kind)
        if control and kind != "empty":
            seen.add(f"{control} control")
            if legend:
                marks.append(control_mark(x, y, side, control))
        title = ": ".join([name, " · ".join(filter(None, [says, hover.get(name), control and f"{control} control"]))])
        box = {"x": x + gap / 2, "y": y + gap / 2, "width": side - gap, "height": side - gap}
        box |= {"rx": 2} if side >= 15 else {}
        edge = {"empty": RULE, "novalue": RULE, "failed": "#7b8794"}.get(kind)
        wells.append(element("rect", element("title", title), fill=fill, stroke=edge, class_=f"well {kind}", **box))
    height = top + rows * side
    marks += plate_axes(left, top, side, shape)
    if not legend:
        frame = element("rect", x=left, y=top, width=width, height=rows * side, fill="none", stroke=RULE)
        return svg(left + width + 2, height + 2, *wells, *marks, frame, label=heat_map.title, class_="plate")
    valued = np.isfinite(grid).any()
    if valued:
        marks.append(color_bar(left, height + 9, 170, grid.ravel(), limits, heat_map.unit, palette))
    foot = height + (47 if valued else 18)
    explained, rows = state_legend(left, foot, seen, side, width)
    marks.append(explained)
    return svg(left + width + 4, foot + 9 + 16 * max(rows - 1, 0), *wells, *marks, label=heat_map.title, class_="plate")


def wrap_row(widths, room):
    """Where the entries of a legend stand: from the left [px], and in which row, as many to a row as there is room for.

    >>> wrap_row([40, 50, 30], 100)
    [(0, 0), (40, 0), (0, 1)]
    """
    places, along, row = [], 0, 0
    for width in widths:
        if along and along + width > room:
            along, row = 0, row + 1
        places.append((along, row))
        along += width
    return places


def state_legend(left, top, seen, side, room):
    """Say what the marks on a plate mean, only those that occur: the drawing, and its number of rows."""
    items = []
    states = {"empty": "not imaged", "failed": "failed", "novalue": "no value"}
    marked = {f"{control} control": control for control in CONTROLS}
    shown = [(kind, text) for kind, text in (states | {name: name for name in marked}).items() if kind in seen]
    places = wrap_row([26 + len(text) * 10 * CHARACTER for _, text in shown], room + 10)
    for (kind, text), (along, row) in zip(shown, places, strict=True):
        x, y = left + along, top + 16 * row
        paint = {"fill": "#ffffff", "stroke": RULE}
        if kind == "novalue":
            paint["fill"] = NO_VALUE
        if kind in marked:
            size = min(side, 15)
            items.append(control_mark(x, y - 2.5 - size / 2, size, marked[kind]))
            if side < 15:
                x -= 4
        else:
            items.append(element("rect", x=x, y=y - 8, width=11, height=11, class_="legend", **paint))
        if kind == "failed":
            items.append(hatch(x, y - 8, 11))
        if kind == "novalue":
            items.append(element("line", x1=x + 3, x2=x + 8, y1=y - 2.5, y2=y - 2.5, stroke="#9aa5b1"))
        items.append(element("text", text, x=x + 16, y=y + 1, class_="tick"))
    return Markup("").join(items), max((row + 1 for _, row in places), default=0)


def plate_picture(heat_map, shape, *, width, limits):
    """Draw a small plate map as a picture, one pixel per well: for so many wells that rectangles would be too heavy."""
    grid = np.full(shape, np.nan)
    alpha = np.zeros(shape, np.uint8)
    for well, value in dict(heat_map.values).items():
        at = well_position(well, shape)
        grid[at], alpha[at] = number_of(value), 255
    where = (np.nan_to_num(grid.ravel(), posinf=limits[1], neginf=limits[0]) - limits[0]) / (limits[1] - limits[0])
    rgb = palette_colors(where, DIVERGING if heat_map.diverging else SEQUENTIAL).reshape(*shape, 3)
    rgb[np.isnan(grid)] = 228
    height = width * shape[0] / shape[1]
    left, top = SMALL_MARGIN
    box = {"x": left, "y": top, "width": width, "height": height}
    picture = element(
        "image", href=data_uri(np.dstack([rgb, alpha])), preserveAspectRatio="none", class_="pixels", **box
    )
    frame = element("rect", fill="none", stroke=RULE, **box)
    axes = plate_axes(left, top, width / shape[1], shape)
    return svg(left + width + 2, top + height + 2, picture, frame, *axes, label=heat_map.title, class_="plate")


def scale_chart(values, limits, unit, diverging=False):
    """The legend that many maps share."""
    palette = DIVERGING if diverging else SEQUENTIAL
    return svg(360, 26, color_bar(2, 2, 240, values, limits, unit, palette), label=f"color scale {unit}")


def interval_chart(labels, values, lows, highs, *, label, limits=None, zones=()):
    """Draw estimates with their intervals, one row each.

    Parameters
    ----------
    labels : sequence of str, shape (N,)
    values, lows, highs : array of float, shape (N,)
        NaN: not defined; an interval of NaN is left out.
    label : str
        What a screen reader says.
    limits : tuple of float, optional
        Ends of the axis; what lies beyond is drawn as a triangle at its end.
    zones : sequence of (low, high, text, color)
        Shaded ranges, named above the chart.

    Returns
    -------
    Markup
    """
    values, lows, highs = (floats(column) for column in (values, lows, highs))
    if limits is None:
        ends = finite([*values, *lows, *highs, 0.0])
        pad = (ends.max() - ends.min()) * 0.08 or 1.0
        limits = (ends.min() - pad, ends.max() + pad)
    lines = [wrap_text(text, 30) for text in labels]
    longest = max((len(line) for found in lines for line in found), default=0)
    left = min(24 + longest * 11 * CHARACTER, 220)
    heights = [max(24, 10 + 13 * len(found)) for found in lines]
    width, top = 250, 20
    height = top + sum(heights)

    def at(value):
        return left + (min(max(value, limits[0]), limits[1]) - limits[0]) / (limits[1] - limits[0]) * width

    drawn = []
    for low, high, text, color in zones:
        x0, x1 = at(low), at(high)
        drawn.append(element("rect", x=x0, y=top, width=x1 - x0, height=height - top, fill=color))
        drawn.append(element("text", text, x=(x0 + x1) / 2, y=top - 6, text_anchor="middle", class_="tick"))
    for tick in nice_ticks(*limits, 4):
        drawn.append(element("line", x1=at(tick), x2=at(tick), y1=top, y2=height, class_="gridline"))
        drawn.append(
            element("text", format_number(tick), x=at(tick), y=height + 14, text_anchor="middle", class_="tick")
        )
    for i, text in enumerate(labels):
        y = top + sum(heights[:i]) + heights[i] / 2
        for j, line in enumerate(lines[i]):
            down = y + 4 + (j - (len(lines[i]) - 1) / 2) * 13
            drawn.append(element("text", line, x=left - 8, y=down, text_anchor="end"))
        if not math.isfinite(values[i]):
            drawn.append(element("text", "not defined", x=left + 6, y=y + 4, class_="tick"))
            continue
        if math.isfinite(lows[i]) and math.isfinite(highs[i]):
            drawn.append(element("line", x1=at(lows[i]), x2=at(highs[i]), y1=y, y2=y, stroke=INK, stroke_width=1.6))
        x = at(values[i])
        says = element(
            "title", f"{text}: {format_number(values[i])} ({format_number(lows[i])} to {format_number(highs[i])})"
        )
        if limits[0] <= values[i] <= limits[1]:
            drawn.append(element("circle", says, cx=x, cy=y, r=4.5, fill=INK))
        else:
            inward = 9 if values[i] < limits[0] else -9
            drawn.append(element("path", says, d=f"M{coordinate(x)} {coordinate(y)}l{inward} -5v10z", fill=INK))
            at_x, anchor = x + inward * 1.6, "start" if inward > 0 else "end"
            drawn.append(
                element("text", format_number(values[i]), x=at_x, y=y + 3.5, text_anchor=anchor, class_="tick")
            )
    drawn.append(element("line", x1=left, x2=left + width, y1=height, y2=height, class_="frame"))
    return svg(left + width + 16, height + 22, *drawn, label=label)


def plates_chart(names, values, lows=None, highs=None, *, label, lines=(), from_zero=False, width=980):
    """Draw one value per plate in the order given; a plate without a value is a cross at the bottom.

    Parameters
    ----------
    names : sequence of str, shape (P,)
    values : array of float, shape (P,)
    lows, highs : array of float, shape (P,), optional
        Interval of each value.
    label : str
        Name of the vertical axis with its unit.
    lines : sequence of float
        Horizontal reference lines.
    from_zero : bool, optional
        The axis starts at 0: for counts.
    width : float, optional
        [px]

    Returns
    -------
    Markup
    """
    values = floats(values)
    lows = np.full(len(values), np.nan) if lows is None else floats(lows)
    highs = np.full(len(values), np.nan) if highs is None else floats(highs)
    ends = finite([*values, *lows, *highs, *lines, *([0.0] if from_zero else [])])
    low, high = (float(ends.min()), float(ends.max())) if len(ends) else (0.0, 1.0)
    pad = (high - low) * 0.08 or 1.0
    low, high = (low if from_zero else low - pad), high + pad
    ticks = nice_ticks(low, high, 5)
    if len(ticks) > 1 and high > ticks[-1]:  # a point above the last line cannot be read off
        ticks.append(2 * ticks[-1] - ticks[-2])
        high = ticks[-1]
    left, top, tall = 72, 10, 150
    inner = width - left - 10
    pitch = inner / max(len(names), 1)
    few = pitch >= 13
    longest = max((len(shorten(name, 18)) for name in names), default=0)
    bottom = top + tall
    room = longest * 10 * CHARACTER * 0.72 + 16 if few else 30

    def y_of(value):
        return bottom - (value - low) / (high - low) * tall

    drawn = []
    for tick in ticks:
        drawn.append(element("line", x1=left, x2=left + inner, y1=y_of(tick), y2=y_of(tick), class_="gridline"))
        drawn.append(
            element("text", format_number(tick), x=left - 6, y=y_of(tick) + 3.5, text_anchor="end", class_="tick")
        )
    for line in lines:
        drawn.append(element("line", x1=left, x2=left + inner, y1=y_of(line), y2=y_of(line), class_="reference"))
    for i, name in enumerate(names):
        x = left + (i + 0.5) * pitch
        if math.isfinite(values[i]):
            if math.isfinite(lows[i]) and math.isfinite(highs[i]):
                drawn.append(element("line", x1=x, x2=x, y1=y_of(lows[i]), y2=y_of(highs[i]), stroke=QUIET))
            says = element("title", f"{name}: {format_number(values[i])}")
            drawn.append(element("circle", says, cx=x, cy=y_of(values[i]), r=min(4, max(pitch * 0.4, 1.5)), fill=PLAIN))
        else:
            says = element("title", f"{name}: no value")
            cross = f"M{coordinate(x - 3)} {bottom - 9}l6 6m0 -6l-6 6"
            drawn.append(element("path", says, d=cross, stroke=INK, stroke_width=1.6, fill="none"))
        if few:
            turn = f"rotate(-45 {coordinate(x + 3)} {bottom + 12})"
            text = element("title", name)
            drawn.append(
                element(
                    "text",
                    shorten(name, 18),
                    text,
                    x=x + 3,
                    y=bottom + 12,
                    text_anchor="end",
                    transform=turn,
                    class_="tick",
                )
            )
    if not few:
        says = f"{len(names)} plates, in the order of the screen"
        drawn.append(element("text", says, x=left + inner / 2, y=bottom + 18, text_anchor="middle", class_="tick"))
    drawn.append(element("line", x1=left, x2=left + inner, y1=bottom, y2=bottom, class_="frame"))
    turn = f"rotate(-90 12 {top + tall / 2})"
    drawn.append(element("text", label, x=12, y=top + tall / 2, text_anchor="middle", transform=turn, class_="axis"))
    return svg(width, bottom + room, *drawn, label=label)


def dose_limits(curves):
    """Ends of the vertical axis that all curves of one readout share."""
    values = [finite([*curve.values, *(edge for band in curve.controls.values() for edge in band)]) for curve in curves]
    values = np.concatenate(values) if values else np.zeros(0)
    if not len(values):
        return 0.0, 1.0
    pad = (values.max() - values.min()) * 0.07 or abs(values.max()) * 0.1 or 1.0
    return float(values.min() - pad), float(values.max() + pad)


def dose_chart(curve, *, limits=None, groups=None):
    """Draw wells, medians, the fitted curve and the bands of the controls over a logarithmic dose axis.

    Parameters
    ----------
    curve : DoseResponse
    limits : tuple of float, optional
        Ends of the vertical axis (see `dose_limits`).
    groups : mapping of str to str, optional
        Color of each group, where several charts share them.

    Returns
    -------
    Markup
    """
    doses, values = floats(curve.doses), floats(curve.values)
    usable = np.isfinite(doses) & np.isfinite(values) & (doses >= 0)
    low, high = limits or dose_limits([curve])
    positive = doses[usable & (doses > 0)]
    zero = bool((usable & (doses == 0)).any())
    top, inner, tall = 8, 212, 170
    bottom = top + tall
    left = 46
    apart = 34 if zero else 0
    first, last = (np.log10(positive.min()), np.log10(positive.max())) if len(positive) else (-1.0, 1.0)
    margin = max((last - first) * 0.06, 0.15)
    first, last = first - margin, last + margin
    start = left + apart

    def x_of(dose):
        return start + (np.log10(dose) - first) / (last - first) * (inner - apart) if dose > 0 else left + 15

    def y_of(value):
        return bottom - (min(max(value, low), high) - low) / (high - low) * tall

    drawn = []
    for tick in nice_ticks(low, high, 5):
        drawn.append(element("line", x1=left, x2=left + inner, y1=y_of(tick), y2=y_of(tick), class_="gridline"))
        drawn.append(
            element("text", format_number(tick), x=left - 6, y=y_of(tick) + 3.5, text_anchor="end", class_="tick")
        )
    right = []
    for name, (lower, middle, upper) in curve.controls.items():
        if not all(math.isfinite(edge) for edge in (lower, middle, upper)):
            continue
        color = CONTROLS.get(name, QUIET)
        box = {"x": left, "width": inner, "y": y_of(upper), "height": max(y_of(lower) - y_of(upper), 1)}
        says = f"{name} controls: median {format_number(middle)}, {format_number(lower)} to {format_number(upper)}"
        drawn.append(element("rect", element("title", says), fill=color, fill_opacity=0.13, class_="band", **box))
        dashes = {"stroke": color, "stroke_dasharray": "4 3"}
        drawn.append(element("line", x1=left, x2=left + inner, y1=y_of(middle), y2=y_of(middle), **dashes))
        right.append((y_of(middle), shorten(name, 3) if len(name) < 4 else name[:1].upper(), color))
    right.sort()
    for i, (y, text, color) in enumerate(right):
        y = y if i == 0 or y - right[i - 1][0] > 10 else right[i - 1][0] + 10
        drawn.append(element("text", text, x=left + inner + 4, y=y + 3.5, fill=color, font_weight=700, font_size=10))
    for power in range(math.ceil(first - 1e-9), math.floor(last + 1e-9) + 1):
        drawn.append(
            element("line", x1=x_of(10.0**power), x2=x_of(10.0**power), y1=bottom, y2=bottom + 5, class_="frame")
        )
        text = format_number(10.0**power) if -3 <= power <= 5 else f"1e{power}"
        drawn.append(element("text", text, x=x_of(10.0**power), y=bottom + 16, text_anchor="middle", class_="tick"))
    for power in range(math.floor(first), math.ceil(last) + 1):
        for digit in range(2, 10):
            if first <= power + math.log10(digit) <= last:
                x = x_of(digit * 10.0**power)
                drawn.append(element("line", x1=x, x2=x, y1=bottom, y2=bottom + 3, class_="frame"))
    drawn.append(element("line", x1=start, x2=left + inner, y1=bottom, y2=bottom, class_="frame"))
    if zero:
        drawn.append(element("line", x1=left, x2=start - 8, y1=bottom, y2=bottom, class_="frame"))
        slashes = f"M{start - 10} {bottom + 4}l4 -8m4 8l4 -8"
        drawn.append(element("path", d=slashes, class_="frame", fill="none"))
        drawn.append(element("text", "0", x=left + 15, y=bottom + 16, text_anchor="middle", class_="tick"))
    if curve.hill is not None and len(positive):
        along = np.logspace(first, last, 80)
        points = [f"{coordinate(x_of(x))} {coordinate(y_of(y))}" for x, y in zip(along, curve.hill(along), strict=True)]
        drawn.append(element("path", d="M" + "L".join(points), fill="none", stroke=INK, stroke_width=1.6))
        if 10**first <= curve.hill.ec50 <= 10**last:
            x = x_of(curve.hill.ec50)
            says = element("title", f"EC50 {format_number(curve.hill.ec50)} {curve.dose_unit}")
            drawn.append(element("line", says, x1=x, x2=x, y1=top, y2=bottom, class_="reference"))
    for i in np.flatnonzero(usable):
        group = str(curve.groups[i]) if curve.groups is not None else ""
        says = [str(curve.wells[i]) if curve.wells is not None else "", group]
        says += [
            f"{format_number(doses[i])} {curve.dose_unit}".strip(),
            f"{format_number(values[i])} {curve.unit}".strip(),
        ]
        color = (groups or {}).get(group, PLAIN)
        title = element("title", " · ".join(filter(None, says)))
        place = {"cx": x_of(doses[i]), "cy": y_of(values[i])}
        drawn.append(element("circle", title, r=3, fill=color, fill_opacity=0.55, class_="point", **place))
    for dose in np.unique(doses[usable]):
        y = y_of(float(np.median(values[usable & (doses == dose)])))
        drawn.append(element("line", x1=x_of(dose) - 7, x2=x_of(dose) + 7, y1=y, y2=y, stroke=INK, stroke_width=2.4))
    if not usable.any():
        drawn.append(
            element("text", "no value", x=left + inner / 2, y=top + tall / 2, text_anchor="middle", class_="tick")
        )
    name = f"dose [{curve.dose_unit}]" if curve.dose_unit else "dose"
    drawn.append(element("text", name, x=left + inner / 2, y=bottom + 32, text_anchor="middle", class_="axis"))
    name = curve.unit or (curve.readout if len(curve.readout) <= 24 else "readout")
    turn = f"rotate(-90 11 {coordinate(top + tall / 2)})"
    at = {"x": 11, "y": top + tall / 2, "text_anchor": "middle", "transform": turn}
    drawn.append(element("text", name, class_="axis", **at))
    return svg(left + inner + 18, bottom + 38, *drawn, label=f"{curve.treatment}: {curve.readout} over dose")


def category_colors(categories, palette=CATEGORIES):
    """A color for each of the ten most frequent texts; ties and colors go by name, so that they do not depend on order.

    Controls come first and have their own colors, the same in every chart; each kind of category has its `PALETTES`.

    Returns
    -------
    dict of str to str
    """
    names, counts = np.unique(np.asarray([str(name) for name in categories], object).astype(str), return_counts=True)
    order = sorted(range(len(names)), key=lambda i: (names[i] == "", -counts[i], names[i]))[: len(palette)]
    given = {str(name) for name in names}
    controls = {name: color for name, color in CONTROLS.items() if name in given}
    chosen = sorted(str(names[i]) for i in order if names[i] != "" and names[i] not in controls)
    return controls | dict(zip(chosen, palette, strict=False))


def embedding_chart(embedding, coloring, *, side=290):
    """Draw one coloring of a map of wells or cells.

    Parameters
    ----------
    embedding : Embedding
    coloring : str
        One of its colorings.
    side : float, optional
        Of the square [px].

    Returns
    -------
    Markup
        With up to 2000 points one circle each; more are one picture, drawn in random order (seed 0) so that no group
        covers another.
    """
    x, y = floats(embedding.x), floats(embedding.y)
    usable = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
    given = np.asarray(embedding.colorings[coloring])
    numeric = given.dtype.kind in "fiu"
    given = given[usable]
    x, y = x[usable], y[usable]
    span = max(np.ptp(x), np.ptp(y)) or 1.0 if len(x) else 1.0
    span *= 1.06
    left, top = 20, 2
    across = (x - (x.min() + x.max()) / 2) / span + 0.5 if len(x) else x
    down = 0.5 - (y - (y.min() + y.max()) / 2) / span if len(y) else y
    legend = []
    foot = top + side + 24
    if numeric:
        values = given.astype(float)
        limits = scale_limits(values)
        where = (np.nan_to_num(values, posinf=limits[1], neginf=limits[0]) - limits[0]) / (limits[1] - limits[0])
        codes = np.where(np.isnan(values), 0, 1 + np.round(where.clip(0, 1) * 63).astype(int))
        colors = [OTHER, *(hex_color(rgb) for rgb in palette_colors(np.arange(64) / 63, SEQUENTIAL))]
        legend.append(color_bar(left, foot, 170, values, limits, "", SEQUENTIAL))
        foot += 26
    else:
        texts = np.array([text_of(value) for value in given.tolist()], object)
        chosen = category_colors(texts, PALETTES.get(coloring, CATEGORIES))
        colors = [OTHER, *chosen.values()]
        index = {name: i for i, name in enumerate(chosen, 1)}
        codes = np.array([index.get(text, 0) for text in texts], int)
        counts = np.bincount(codes, minlength=len(colors)) if len(codes) else np.zeros(len(colors), int)
        entries = [(name, colors[i], counts[i]) for name, i in index.items()]
        if counts[0]:
            others = len(set(texts) - set(chosen) - {""})
            entries.append((f"{others} others" if others else "none", OTHER, counts[0]))
        for i, (name, color, count) in enumerate(entries):
            at_x, at_y = left + (i % 2) * (side / 2), foot + 6 + (i // 2) * 16
            legend.append(element("circle", cx=at_x + 4, cy=at_y - 3.5, r=4, fill=color))
            text = f"{shorten(name, 14)} ({count:,})"
            legend.append(element("text", text, element("title", name), x=at_x + 13, y=at_y, class_="tick"))
        foot += 16 * math.ceil(len(entries) / 2)
    frame = element("rect", x=left, y=top, width=side, height=side, fill="none", stroke=RULE)
    if len(x) > SVG_POINTS:
        address = data_uri(scatter_picture(across, down, codes, colors, 2 * side))
        points = element("image", href=address, x=left, y=top, width=side, height=side)
    else:
        circles = []
        radius = 4 if len(x) <= 150 else 3 if len(x) <= 600 else 2
        for i in np.random.default_rng(0).permutation(len(x)):
            says = embedding.labels[usable[i]] if embedding.labels is not None else ""
            value = text_of(given[i])
            title = element("title", " · ".join(filter(None, [str(says), value])))
            place = {"cx": left + across[i] * side, "cy": top + down[i] * side}
            circles.append(element("circle", title, r=radius, fill=colors[codes[i]], class_="point", **place))
        points = Markup("").join(circles)
    names = [
        element("text", embedding.axes[0], x=left + side / 2, y=top + side + 14, text_anchor="middle", class_="tick"),
        element(
            "text",
            embedding.axes[1],
            x=11,
            y=top + side / 2,
            text_anchor="middle",
            transform=f"rotate(-90 11 {coordinate(top + side / 2)})",
            class_="tick",
        ),
    ]
    return svg(left + side + 4, foot + 4, points, frame, *names, *legend, label=f"{embedding.title} by {coloring}")


def scatter_picture(x, y, codes, colors, side):
    """Draw points as discs into one indexed picture.

    Parameters
    ----------
    x, y : array of float in [0, 1], shape (N,)
        From the left and from the top.
    codes : array of int, shape (N,)
        Index into `colors`.
    colors : sequence of str
        At most 255 colors as ``#rrggbb``.
    side : int
        [px]

    Returns
    -------
    PIL image
        Of mode P; where there is no point it is transparent.
    """
    from PIL import Image

    side = int(side)
    radius = 2 if len(x) > 6000 else 3
    reach = np.arange(-radius, radius + 1)
    dy, dx = (grid.ravel() for grid in np.meshgrid(reach, reach, indexing="ij"))
    disc = dx**2 + dy**2 <= radius**2 + 0.5
    order = np.random.default_rng(0).permutation(len(x))
    column = (np.round(x[order] * (side - 1)).astype(int)[:, None] + dx[disc]).clip(0, side - 1)
    row = (np.round(y[order] * (side - 1)).astype(int)[:, None] + dy[disc]).clip(0, side - 1)
    pixels = np.zeros((side, side), np.uint8)
    # Of several values for one pixel numpy keeps the last: the later point lies on top.
    pixels[row.ravel(), column.ravel()] = np.repeat(codes[order] + 1, disc.sum())
    image = Image.fromarray(pixels)
    image.putpalette([255, 255, 255, *(int(color[i : i + 2], 16) for color in colors for i in (1, 3, 5))])
    image.info["transparency"] = 0
    return image


def confusion_chart(classes, confusion):
    """Draw a confusion matrix: counts as numbers, the fraction of the true class as color.

    Parameters
    ----------
    classes : sequence of str, shape (K,)
    confusion : array of int, shape (K, K)
        Rows are true classes, columns predicted ones [cells].

    Returns
    -------
    Markup
    """
    counts = np.asarray(confusion)
    number = len(classes)
    side = 48 if number <= 8 else 36 if number <= 14 else 28
    names = [shorten(name, 20) for name in classes]
    room = max((len(name) for name in names), default=0) * 11 * CHARACTER
    left, top = 30 + room, 8
    totals = counts.sum(axis=1, keepdims=True)
    fractions = counts / np.maximum(totals, 1)
    colors = palette_colors(fractions.ravel(), FRACTIONS).reshape(number, number, 3)
    drawn = []
    for i in range(number):
        y = top + i * side
        drawn.append(
            element("text", names[i], element("title", classes[i]), x=left - 8, y=y + side / 2 + 4, text_anchor="end")
        )
        for j in range(number):
            x = left + j * side
            says = f"true {classes[i]}, predicted {classes[j]}: {counts[i, j]:,} ({fractions[i, j]:.0%})"
            fill = hex_color(colors[i, j]) if totals[i, 0] else NO_VALUE
            box = {"x": x + 0.5, "y": y + 0.5, "width": side - 1, "height": side - 1}
            drawn.append(element("rect", element("title", says), fill=fill, class_="confusion", **box))
            text = f"{counts[i, j]:,}" if counts[i, j] < 10_000 else short_number(float(counts[i, j]))
            size = min(11, side / (0.62 * max(len(text), 3)))
            ink = ink_on(colors[i, j]) if totals[i, 0] else INK
            at = {"x": x + side / 2, "y": y + side / 2 + size * 0.36, "text_anchor": "middle"}
            drawn.append(element("text", text, font_size=size, fill=ink, class_="mark", **at))
    bottom = top + number * side
    for j, name in enumerate(names):
        x = left + (j + 0.5) * side + 4
        turn = f"rotate(-45 {coordinate(x)} {coordinate(bottom + 14)})"
        drawn.append(element("text", name, x=x, y=bottom + 14, text_anchor="end", transform=turn))
    foot = bottom + 14 + room * 0.72 + 14
    middle = left + number * side / 2
    drawn.append(element("text", "predicted class", x=middle, y=foot, text_anchor="middle", class_="axis"))
    turn = f"rotate(-90 12 {coordinate(top + number * side / 2)})"
    at = {"x": 12, "y": top + number * side / 2, "text_anchor": "middle", "transform": turn}
    drawn.append(element("text", "true class", class_="axis", **at))
    return svg(left + number * side + 6, foot + 8, *drawn, label="confusion matrix")


def line_chart(
    x,
    lines,
    *,
    x_label,
    y_label,
    points=False,
    connect=True,
    diagonal=False,
    references=None,
    band=None,
    colors=LINES,
    width=430,
):
    """Draw one or several lines over a common axis.

    Parameters
    ----------
    x : array of float, shape (N,)
    lines : mapping of str to array of float, shape (N,)
        NaN interrupts a line.
    x_label, y_label : str
    points, connect : bool, optional
        Mark each value; join them by a line.
    diagonal : bool, optional
        Draw y = x on the range 0 … 1: for calibration.
    references : mapping of str to float, optional
        Named horizontal lines.
    band : (array of float, array of float), each of shape (N,), optional
        Lower and upper end of what is shaded behind the lines; NaN leaves a place out.
    colors : sequence of str, optional
        One for each line; where there are more lines they begin again, dashed.
    width : float, optional
        [px]

    Returns
    -------
    Markup
    """
    x = floats(x)
    lines = {name: floats(values) for name, values in lines.items()}
    band = [floats(values) for values in band or ([], [])]
    references = {name: value for name, value in (references or {}).items() if math.isfinite(value)}
    left, tall = 62, 180
    inner = width - left - 14
    names = [shorten(name, int((inner - 21) / (10 * CHARACTER))) for name in lines]
    places = wrap_row([40 + len(name) * 10 * CHARACTER for name in names], inner + 14)
    top = 26 + 15 * max((row for _, row in places), default=0)
    bottom = top + tall
    if diagonal:
        x0, x1, y0, y1 = 0.0, 1.0, 0.0, 1.0
    else:
        seen_x, seen = (
            finite(x),
            finite([value for values in [*lines.values(), *band] for value in values] + [*references.values()]),
        )
        x0, x1 = (float(seen_x.min()), float(seen_x.max())) if len(seen_x) else (0.0, 1.0)
        y0, y1 = (float(seen.min()), float(seen.max())) if len(seen) else (0.0, 1.0)
        pad = (y1 - y0) * 0.06 or abs(y1) * 0.1 or 1.0
        y0, y1 = y0 - pad, y1 + pad
        x1 = x1 if x1 > x0 else x0 + 1.0

    def at(horizontal, vertical):
        return left + (horizontal - x0) / (x1 - x0) * inner, bottom - (vertical - y0) / (y1 - y0) * tall

    drawn = []
    for tick in nice_ticks(y0, y1, 5):
        y = at(x0, tick)[1]
        drawn.append(element("line", x1=left, x2=left + inner, y1=y, y2=y, class_="gridline"))
        drawn.append(element("text", format_number(tick), x=left - 6, y=y + 3.5, text_anchor="end", class_="tick"))
    for tick in nice_ticks(x0, x1, 5, counts=whole(x)):
        place = at(tick, y0)[0]
        drawn.append(element("line", x1=place, x2=place, y1=bottom, y2=bottom + 4, class_="frame"))
        drawn.append(element("text", format_number(tick), x=place, y=bottom + 16, text_anchor="middle", class_="tick"))
    if diagonal:
        drawn.append(element("line", x1=left, y1=bottom, x2=left + inner, y2=top, class_="reference"))
    for name, value in references.items():
        y = at(x0, value)[1]
        drawn.append(element("line", x1=left, x2=left + inner, y1=y, y2=y, class_="reference"))
        text = f"{name} {format_number(value)}"
        drawn.append(element("text", text, x=left + inner - 2, y=y - 4, text_anchor="end", class_="tick"))
    known = [i for i, ends in enumerate(zip(*band, strict=True)) if all(map(math.isfinite, (x[i], *ends)))]
    if known:
        outline = [at(x[i], band[0][i]) for i in known] + [at(x[i], band[1][i]) for i in reversed(known)]
        corners = " ".join(f"{coordinate(across)},{coordinate(down)}" for across, down in outline)
        drawn.append(element("polygon", points=corners, fill=NO_VALUE))
    for i, (name, values) in enumerate(lines.items()):
        path, pen, color = [], "M", colors[i % len(colors)]
        dashes = "5 3" if i >= len(colors) else None
        for horizontal, vertical in zip(x, values, strict=True):
            if not (math.isfinite(horizontal) and math.isfinite(vertical)):
                pen = "M"
                continue
            place = at(horizontal, vertical)
            path.append(f"{pen}{coordinate(place[0])} {coordinate(place[1])}")
            pen = "L"
            if points or not connect:
                says = element("title", f"{name}: {format_number(vertical)} at {format_number(horizontal)}")
                drawn.append(element("circle", says, cx=place[0], cy=place[1], r=3.5, fill=color))
        if path and connect:
            pencil = {"stroke": color, "stroke_width": 1.8, "stroke_dasharray": dashes}
            drawn.append(element("path", d="".join(path), fill="none", **pencil))
        along, down = left + places[i][0], 15 * places[i][1]
        pencil = {"stroke": color, "stroke_width": 2.4, "stroke_dasharray": dashes}
        drawn.append(element("line", x1=along, x2=along + 16, y1=down + 9, y2=down + 9, **pencil))
        drawn.append(element("text", names[i], element("title", name), x=along + 21, y=down + 12.5, class_="tick"))
    drawn.append(element("line", x1=left, x2=left + inner, y1=bottom, y2=bottom, class_="frame"))
    drawn.append(element("text", x_label, x=left + inner / 2, y=bottom + 32, text_anchor="middle", class_="axis"))
    turn = f"rotate(-90 12 {top + tall / 2})"
    drawn.append(element("text", y_label, x=12, y=top + tall / 2, text_anchor="middle", transform=turn, class_="axis"))
    return svg(width, bottom + 38, *drawn, label=f"{y_label} over {x_label}")
