"""The HTML page around the sections: one file, opened from a disk, that loads nothing and trusts no name."""

import base64
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import jinja2
from markupsafe import Markup

from plateloom.report.charts import element, format_number, number_of, significant, text_of, whole

TEMPLATES = Path(__file__).parent / "templates"
MOST_ROWS = 500
FOLD = 40  # rows of a long table that are shown before the reader asks for the rest
HEADINGS = {
    "Metadata_Plate": "plate",
    "Metadata_Well": "well",
    "Metadata_Field": "field",
    "Metadata_ObjectNumber": "cell",
    "Metadata_Batch": "batch",
    "Metadata_Treatment": "treatment",
    "Metadata_Dose": "dose",
    "Metadata_Control": "control",
    "Metadata_Unit": "unit",
    "n": "wells",
    "n_plates": "plates",
    "n_beyond": "wells beyond",
}
STATES = ("done", "failed", "quarantined", "missing", "skipped")


@dataclass(frozen=True, eq=False, kw_only=True)
class Section:
    """One part of a page: its content, or the sentence that says why there is none."""

    key: str
    title: str
    content: Markup | None
    reason: str = ""


def render_page(*, title, kind, facts, figures, verdict, sections):
    """Render a whole page.

    Parameters
    ----------
    title, kind : str
        For example ``"P01"`` and ``"Plate report"``.
    facts : dict of str to str
        Small print below the title: screen, batch, source, date; empty ones are left out.
    figures : dict of str to str
        The numbers at the top.
    verdict : sequence of (str or Markup, str)
        Sentences at the top and their tone: ``good``, ``warn``, ``bad`` or ``plain``.
    sections : sequence of Section

    Returns
    -------
    str
        The same bytes for the same arguments; can be encoded as UTF-8 whatever the names contain.
    """
    return render_template(
        "page.html",
        style="style.css",
        script="sort.js",
        title=title,
        kind=kind,
        facts={name: value for name, value in facts.items() if value},
        figures=figures,
        verdict=verdict,
        sections=sections,
    )


def render_template(name, *, style, script, **values):
    """Fill in a template that loads nothing and runs no script but its own.

    Parameters
    ----------
    name, style, script : str
        Files of the templates' folder.
    **values
        What the template names, beside `style`, `script` and `policy`.

    Returns
    -------
    str
        Can be encoded as UTF-8.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    style, script = ((TEMPLATES / file).read_text(encoding="utf-8") for file in (style, script))
    page = environment.get_template(name).render(
        style=Markup(style),
        script=Markup(script),
        policy=(
            "default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'; "
            f"style-src '{digest_of(style)}'; script-src '{digest_of(script)}'"
        ),
        **values,
    )
    return page.encode("utf-8", "replace").decode("utf-8")


def digest_of(text):
    """Name an inline style or script by its content, as a content security policy does."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode('utf-8')).digest()).decode('ascii')}"


def make_sections(titles, contents, notes):
    """Pair every section of a page with its content or with the reason why it is absent; sections that are absent for
    the same reason stand as one, where the first of them would.

    Parameters
    ----------
    titles : dict of str to str
        Key of each section, in order, to its title.
    contents : dict of str to Markup or None
    notes : mapping of str to str
        The caller's reasons.

    Raises
    ------
    ValueError
        If a note names no section.
    """
    unknown = sorted(set(notes) - set(titles))
    if unknown:
        raise ValueError(f"notes name no section of this page: {unknown}. Sections: {', '.join(titles)}.")
    absent = {}
    for key, title in titles.items():
        if contents.get(key) is None and notes.get(key):
            absent.setdefault(str(notes[key]), []).append((key, title))
    told = {members[0][0]: " · ".join(title for _, title in members) for members in absent.values()}
    silent = {key for members in absent.values() for key, _ in members[1:]}
    return [
        Section(
            key=key,
            title=told.get(key, title),
            content=contents.get(key),
            reason=str(notes.get(key) or "No data were given for this section."),
        )
        for key, title in titles.items()
        if key not in silent
    ]


def join(*parts):
    """Put pieces of a page one after the other; None is left out."""
    return Markup("").join(part for part in parts if part is not None)


def paragraph(text, class_=None):
    return element("p", text, class_=class_)


def grid(pieces, class_="grid"):
    """Set pieces side by side, as many as fit."""
    return element("div", *pieces, class_=class_)


def details(summary, content):
    """Fold a long piece of a page away, whole, behind one line."""
    return None if content is None else element("details", element("summary", summary), content)


def table(frame, *, empty, most=MOST_ROWS, links=None, sortable=True, marked=None):
    """Render a DataFrame: numbers right, texts left, states as words with a color; measured values have three digits.

    Of a long table `FOLD` rows are shown, and the others when a box is ticked: nothing scrolls inside the page.

    Parameters
    ----------
    frame : DataFrame
        All columns are shown, in their order.
    empty : str
        The sentence shown when there is no row.
    most : int, optional
        Rows shown; the rest is counted below.
    links : sequence of str, optional
        A relative address for each row's first cell, or an empty text.
    sortable : bool, optional
        A click on a heading sorts.
    marked : sequence of str, optional
        A class for each row, or an empty text.

    Returns
    -------
    Markup
    """
    if not len(frame):
        return paragraph(empty, "quiet")
    columns = list(frame.columns)
    numeric = [frame[name].dtype.kind in "fiu" for name in columns]
    head = [
        element(
            "th",
            HEADINGS.get(str(name), str(name).removeprefix("Metadata_").replace("_", " ")),
            scope="col",
            class_="n" if n else None,
        )
        for name, n in zip(columns, numeric, strict=True)
    ]
    measured = [
        n and not str(name).startswith("Metadata_") and not whole(frame[name])
        for name, n in zip(columns, numeric, strict=True)
    ]
    rows = []
    for i, row in enumerate(frame.head(most).itertuples(index=False, name=None)):
        cells = []
        for j, (name, value, number) in enumerate(zip(columns, row, numeric, strict=True)):
            written = significant if measured[j] else format_number
            text = written(number_of(value)) if number else text_of(value)
            if name == "status" and text in STATES:
                text = element("span", text, class_=f"state {text}")
            if j == 0 and links is not None and (address := local_address(links[i])):
                text = element("a", text, href=address)
            exact = repr(number_of(value)) if number and not math.isnan(number_of(value)) else None
            cells.append(element("td", text, class_="n" if number else None, data_value=exact))
        rows.append(element("tr", *cells, class_=(marked[i] or None) if marked is not None else None))
    shown = element(
        "div",
        element(
            "table",
            element("thead", element("tr", *head)),
            element("tbody", *rows),
            class_="sortable" if sortable and len(rows) > 1 else None,
        ),
        class_="scroll",
    )
    rest = len(frame) - most
    more = paragraph(f"The first {most:,} of {len(frame):,} rows are shown.", "note") if rest > 0 else None
    if len(rows) <= FOLD + 5:
        return join(shown, more)
    box = element("label", Markup('<input type="checkbox">'), f"Show all {len(rows):,} rows", class_="toggle")
    return join(element("div", box, shown, class_="long"), more)


def local_address(address):
    """Quote a relative path for a link; nothing for what is empty, absolute or has a scheme (``javascript:``)."""
    text = text_of(address).replace("\\", "/").strip()
    if not text or text.startswith("/") or ":" in text:
        return ""
    return quote(text, safe="/.#")


def count_words(values):
    """How often each text occurs, the most frequent first: ``7 × out of focus, 2 × truncated file``."""
    counts = {}
    for value in values:
        counts[text_of(value) or "no reason given"] = counts.get(text_of(value) or "no reason given", 0) + 1
    order = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    shown = ", ".join(f"{number:,} × {name}" for name, number in order[:6])
    return f"{shown}, and {len(order) - 6} more reasons" if len(order) > 6 else shown


def settings_table(settings, *, fold=""):
    """Render nested settings as one table, indented by level.

    Parameters
    ----------
    settings : mapping
        Values are mappings, sequences or plain values.
    fold : str, optional
        The line behind which the table is folded away.

    Returns
    -------
    Markup or None
        None if there is no setting.
    """
    rows = []

    def walk(level, name, value):
        depth = f"depth-{min(level, 5)}"
        if isinstance(value, Mapping) and value:
            rows.append(element("tr", element("th", name, colspan=2, scope="colgroup", class_=depth), class_="branch"))
            for key, below in value.items():
                walk(level + 1, str(key), below)
        elif isinstance(value, (list, tuple)) and any(isinstance(item, Mapping) for item in value):
            walk(level, name, {str(i): item for i, item in enumerate(value, 1)})
        else:
            rows.append(
                element("tr", element("th", name, scope="row", class_=depth), element("td", plain_setting(value)))
            )

    for key, value in settings.items():
        walk(0, str(key), value)
    shown = element("div", element("table", element("tbody", *rows), class_="settings"), class_="scroll")
    return (details(fold, shown) if fold else shown) if rows else None


def plain_setting(value):
    """Write a setting as the config file would: digits are kept, since a reader may copy them."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return "none"
    if isinstance(value, (list, tuple)):
        return ", ".join(plain_setting(item) for item in value) or "none"
    return str(value)


def commands(lines):
    """Lines to copy into a shell; None if there are none."""
    return element("pre", element("code", "\n".join(str(line) for line in lines))) if lines else None


def color_legend(colors, *, title="", outlines=False):
    """Names with their colors, in one line; None if there are none.

    Parameters
    ----------
    colors : mapping of str to str
    title : str, optional
        What they are the colors of.
    outlines : bool, optional
        Drawn as outlines on black instead of filled: a white square would look like an empty box to tick.

    Returns
    -------
    Markup or None
    """
    if not colors:
        return None
    items = [element("span", title)] if title else []
    for name, color in colors.items():
        swatch = {"x": 0.5, "y": 0.5, "width": 11, "height": 11, "rx": 2, "fill": color, "stroke": "#9aa5b1"}
        drawn = [element("rect", **swatch)]
        if outlines:
            ground = element("rect", x=0, y=0, width=22, height=12, rx=2, fill="#000000")
            drawn = [ground, element("ellipse", cx=11, cy=6, rx=7, ry=3.6, fill="none", stroke=color, stroke_width=1.4)]
        width = 22 if outlines else 12
        shape = {"width": width, "height": 12, "viewBox": f"0 0 {width} 12", "aria_hidden": "true"}
        items.append(element("span", element("svg", *drawn, **shape), f" {name}"))
    return element("p", *items, class_="key")
