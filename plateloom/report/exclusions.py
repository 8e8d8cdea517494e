"""What was left out of the results, field by field: which, why, and by which file."""

WHAT = {
    "failed": "nothing of the field is used",
    "unlike the plate": "another size or type than the rest of the plate, so nothing of the field is used",
    "hole": "the field is left out of its stitched well",
    "not segmented": "the field has no cells",
    "channel missing": "the field is used without this channel",
    "planes missing": "the field is used with the planes that are there",
    "quarantined": "a person has taken the well out, so nothing of it is used",
    "flagged": "flagged by quality control, so left out of all values per well and of what models learn from",
    "unlike its well": "far fewer or more nuclei than the other fields of its well, so left out of all values per well",
}


def list_exclusions(fields, *, accepted=None, segmented=None, flagged=None, unlike=None, quarantined=None):
    """List what was left out, one row per field and kind.

    Parameters
    ----------
    fields : DataFrame
        One row per well, field and channel: ``Metadata_Well``, ``Metadata_Field``, ``Channel``, ``Status`` (``done``,
        ``failed``, ``missing``, ``hole``), ``Reason``, ``File``, ``Height``, ``Width`` [px], ``DataType``; and, where
        wells are stitched, ``SourceField``.
    accepted : tuple, optional
        Height, width [px] and type of the plate's fields; default: those of most fields that are done.
    segmented : DataFrame, optional
        One row per field: ``Metadata_Well``, ``Metadata_Field``, ``Reason``.
    flagged : DataFrame, optional
        One row per field and channel: ``Metadata_Well``, ``SourceField``, ``Channel``, ``Reason``. None: flagged
        fields are not left out.
    unlike : DataFrame, optional
        One row per field that is left out for its number of nuclei: ``Metadata_Well``, ``Metadata_Field``, ``Count`` and
        ``Usual``.
    quarantined : mapping of str to str, optional
        Wells that a person has taken out, with who, when and why. Of their fields nothing else is listed.

    Returns
    -------
    DataFrame
        ``Metadata_Well``, ``Metadata_Field``, ``what`` (a key of `WHAT`), ``channel``, ``file``, ``reason``, by well.
    """
    import pandas as pd

    rows, quarantined = [], quarantined or {}
    if len(fields):
        number = "SourceField" if "SourceField" in fields else "Metadata_Field"
        held = fields["Metadata_Well"].isin(quarantined)
        for well, field in fields.loc[held, ["Metadata_Well", number]].drop_duplicates().itertuples(index=False):
            rows.append((well, int(field), "quarantined", "", "", quarantined[well]))
        fields = fields[~held]
        accepted = accepted or usual_kind(fields)
        keys = ["Metadata_Well", number]
        odd = (fields["Status"] != "done") | (fields["Reason"] != "")
        if accepted is not None:
            for name, value in zip(("Height", "Width", "DataType"), accepted, strict=True):
                odd |= fields[name] != value
        troubled = fields[odd.groupby([fields[name] for name in keys]).transform("any")]
        for (well, field), planes in troubled.groupby(keys, sort=True):
            rows += [(well, int(field), *row) for row in _judge_field(planes, accepted)]
    if segmented is not None and len(segmented):
        for row in segmented[segmented["Reason"] != ""].to_dict("records"):
            rows.append((row["Metadata_Well"], int(row["Metadata_Field"]), "not segmented", "", "", row["Reason"]))
    if flagged is not None and len(flagged):
        bad = flagged[flagged["Reason"] != ""]
        for (well, field), planes in bad.groupby(["Metadata_Well", "SourceField"], sort=True):
            rows.append((well, int(field), "flagged", *_joined(planes, ("Channel",)), "", _reasons(planes)))
    if unlike is not None:
        for well, field, count, usual in unlike.itertuples(index=False):
            reason = f"{count:,} nuclei; the other fields of the well have {usual:,.0f}"
            rows.append((well, int(field), "unlike its well", "", "", reason))
    columns = ["Metadata_Well", "Metadata_Field", "what", "channel", "file", "reason"]
    order = list(WHAT)
    rows.sort(key=lambda row: (row[0], row[1], order.index(row[2])))
    return pd.DataFrame(rows, columns=columns)


def usual_kind(fields):
    """Height, width [px] and type of most fields that are done; None where none is."""
    done = fields[fields["Status"] == "done"]
    if not len(done):
        return None
    return done.groupby(["Height", "Width", "DataType"], sort=True).size().idxmax()


def _judge_field(planes, accepted):
    """What befell one field: tuples of what, channels, files, reason."""
    status = planes["Status"]
    for state in ("failed", "hole"):
        if (status == state).any():
            guilty = planes[(status == state) & (planes["Reason"] != "")]
            if not len(guilty):
                return [(state, "", *_joined(planes, ("File",)), "no reason was recorded")]
            return [(state, *_joined(guilty, ("Channel", "File")), _reasons(guilty))]
    there = planes[status != "missing"]
    if accepted is not None and len(there):
        height, width, kind = accepted
        odd = there[(there["Height"] != height) | (there["Width"] != width) | (there["DataType"] != kind)]
        if len(odd):
            first = odd.iloc[0]
            reason = f"{first['DataType']}, {first['Height']} × {first['Width']} px; the rest of the plate has "
            return [("unlike the plate", *_joined(odd, ("Channel", "File")), f"{reason}{kind}, {height} × {width} px")]
    found = []
    for state, what in (("missing", "channel missing"), ("done", "planes missing")):
        some = planes[(status == state) & (planes["Reason"] != "")]
        if len(some):
            found.append((what, *_joined(some, ("Channel", "File")), _reasons(some)))
    return found


def _joined(planes, columns):
    """Different texts of some columns, each joined by commas."""
    return tuple(", ".join(dict.fromkeys(text for text in planes[name].astype(str) if text)) for name in columns)


def _reasons(planes):
    """Different reasons, joined."""
    return "; ".join(dict.fromkeys(planes["Reason"].astype(str)))


def count_exclusions(frame):
    """Count fields, not rows: ``3 fields: 2 failed, 1 flagged``; a frame without these columns is counted by rows.

    Parameters
    ----------
    frame : DataFrame
        From `list_exclusions`, or any with ``Metadata_Well`` and ``Metadata_Field``.

    Returns
    -------
    number : int
        Of fields.
    words : str
    """
    keys = [name for name in ("Metadata_Well", "Metadata_Field") if name in frame]
    number = len(frame[keys].drop_duplicates()) if keys else len(frame)
    words = f"{number:,} field{'' if number == 1 else 's'}"
    if "what" in frame:
        counts = {what: len(found[keys].drop_duplicates()) for what, found in frame.groupby("what", sort=False)}
        listed = [f"{counts[what]:,} {what}" for what in WHAT if what in counts]
        words += f": {', '.join(listed)}" if listed else ""
    elif len(frame) > number:
        words += f" ({len(frame):,} channels)"
    return number, words


def share_of_failed_fields(fields):
    """Share of each well's fields that have failed.

    Parameters
    ----------
    fields : DataFrame
        As for `list_exclusions`.

    Returns
    -------
    dict of str to float
        Well to share in [0, 1].
    """
    if not len(fields):
        return {}
    number = "SourceField" if "SourceField" in fields else "Metadata_Field"
    lost = fields.groupby(["Metadata_Well", number])["Status"].agg(lambda s: bool(s.isin(["failed", "hole"]).any()))
    return {well: float(share) for well, share in lost.groupby("Metadata_Well").mean().items()}
