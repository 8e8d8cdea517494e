"""What a reader must know before any number: found on a plate, shown as banners on its page and on the screen's."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from markupsafe import Markup, escape

from plateloom.errors import some_of
from plateloom.report.charts import element
from plateloom.report.page import join, local_address

if TYPE_CHECKING:
    import pandas as pd

NOTICES = {  # what a plate's page warns of -> how the screen's page sums it up
    "wells": "Wells without a value",
    "fields": "Fields failed",
    "controls": "Control wells are lost",
    "normalization": "Values are not normalized",
    "illumination": "The light is not corrected",
    "segmentation": "The segmentation is doubtful",
    "pixel_size": "The pixel size is doubtful",
    "position": "The position on the plate shows",
    "shift": "The controls are unlike those of other plates",
    "quarantined": "Wells are quarantined by hand",
    "flagged": "Flagged fields are left out of profiles",
}


@dataclass(frozen=True, kw_only=True)
class Notice:
    """Something that a reader must know before any number: a banner of the plate's page, and of the screen's.

    Parameters
    ----------
    kind : str
        One of `NOTICES`.
    text : str
        A whole sentence.
    section : str, optional
        Key of the section where more is said.
    plate : str, optional
        On the screen's page: whose notice it is.
    link : str, optional
        On the screen's page: relative address of that plate's page.
    """

    kind: str
    text: str
    section: str = ""
    plate: str = ""
    link: str = ""


def find_losses(wells: "pd.DataFrame", exclusions):
    """Find what a plate has lost: wells, fields and controls. That a well declared empty has no cell is no loss.

    Parameters
    ----------
    wells : DataFrame, shape (W, ...)
        ``Metadata_Well``, ``Metadata_Control``, ``fields``, ``failed_fields`` (int), ``cells`` (number), and ``value``
        (float, NaN: none) if there is a readout.
    exclusions : DataFrame
        From `list_exclusions`.

    Returns
    -------
    list of Notice
    """
    found = []
    failed = (wells["fields"] > 0) & (wells["fields"] == wells["failed_fields"])
    if failed.any():
        text = f"{count_of(failed.sum(), len(wells), 'well')} no usable field: {some_of(wells.loc[failed, 'Metadata_Well'])}."
        found.append(Notice(kind="wells", text=text, section="exclusions"))
    gone = exclusions[exclusions["what"].isin(["failed", "unlike the plate", "hole", "not segmented"])]
    elsewhere = gone[~gone["Metadata_Well"].isin(wells.loc[failed, "Metadata_Well"])]
    if len(elsewhere):
        places = list(
            dict.fromkeys(f"{well} field {field}" for well, field in elsewhere.iloc[:, :2].itertuples(index=False))
        )
        text = f"{len(places):,} fields failed in wells whose other fields are used: {some_of(places)}."
        if len(places) == 1:
            text = f"A field failed: {places[0]}."
        found.append(Notice(kind="fields", text=text, section="exclusions"))
    flagged = exclusions[exclusions["what"] == "flagged"]
    bare = wells[~failed & wells["Metadata_Well"].isin(flagged["Metadata_Well"]) & ~(wells["cells"] > 0)]
    bare = bare[bare["Metadata_Control"] != "empty"]
    if len(bare):
        text = f"{count_of(len(bare), len(wells), 'well')} no cell left, because of flagged fields: "
        text += f"{some_of(bare['Metadata_Well'])}."
        found.append(Notice(kind="wells", text=text, section="flagged"))
    for kind in ("negative", "positive"):
        controls = wells[wells["Metadata_Control"] == kind]
        lost = ~(controls["cells"] > 0)
        if "value" in controls:
            lost |= controls["value"].isna()
        if lost.any():
            text = f"{count_of(lost.sum(), len(controls), f'{kind} control well')} no value: "
            text += f"{some_of(controls.loc[lost, 'Metadata_Well'])}."
            found.append(Notice(kind="controls", text=text, section="heat_maps"))
    number = len(flagged[["Metadata_Well", "Metadata_Field"]].drop_duplicates())
    if number:
        verb = "field is" if number == 1 else "fields are"
        text = f"{number:,} {verb} flagged by quality control and left out of values per well."
        found.append(Notice(kind="flagged", text=text, section="flagged"))
    return found


def count_of(number, total, noun):
    """``1 of 7 wells has``, ``2 of 7 wells have``."""
    return f"{number:,} of {total:,} {noun}{'' if total == 1 else 's'} {'has' if number == 1 else 'have'}"


def notice_banners(notices, titles):
    """Banners of a plate's page: each sentence with a link to the section that says more."""
    said = []
    for notice in sorted(notices, key=lambda notice: list(NOTICES).index(notice.kind)):
        more = None
        if notice.section in titles:
            more = element("a", titles[notice.section], href=f"#{notice.section}")
        said.append((join(Markup("{} ").format(notice.text), more), "plain" if notice.kind == "flagged" else "warn"))
    return said


def shared_banners(notices, *, most=4):
    """Banners of the screen's page: one per kind of notice, with the plates that have it and links to their pages.

    The first `most` plates are quoted, the others are named.
    """
    said = []
    for kind, title in NOTICES.items():
        found = {}
        for notice in notices:
            if notice.kind == kind:
                found.setdefault(notice.plate, []).append(notice)
        if not found:
            continue
        pieces = []
        for i, (plate, members) in enumerate(found.items()):
            address = local_address(members[0].link)
            address += f"#{members[0].section}" if address and members[0].section else ""
            name = element("a", plate, href=address) if address else escape(plate)
            words = " ".join(member.text for member in members)
            quoted = Markup("{}: {}").format(name, words) if i < most else name
            pieces.append(quoted if plate else escape(words))
        if len(pieces) == 1:
            whole = Markup("{}. {}").format(element("strong", title), pieces[0])
        else:
            listed = element("ul", *(element("li", piece) for piece in pieces[:most]))
            rest = Markup(", ").join(pieces[most:])
            whole = Markup("{} ({:,} plates).{}").format(element("strong", title), len(pieces), listed)
            whole += Markup("Also: {}.").format(rest) if rest else Markup("")
        said.append((whole, "plain" if kind == "flagged" else "warn"))
    return said
