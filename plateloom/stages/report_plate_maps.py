"""Plate maps of a plate's page: the readout, classes, clusters, and the quality of images and cells."""

import math

from plateloom import report
from plateloom.stages.clusters import read_clusters, share_clusters
from plateloom.stages.novelty import ERROR, limit_of_error, read_errors
from plateloom.stages.profiling import READOUT
from plateloom.stages.report_classes import learned_note, mean_predictions
from plateloom.stages.report_readouts import by_well, readout_name, unit_of


def plate_maps(plate, wells, quality, params, classified, shares):
    """Maps of the readout, of the share of each class, and of the quality of each channel.

    Parameters
    ----------
    plate : str
    wells, quality : DataFrame
        The plate's wells with what was measured in them, and what quality control measured in their fields.
    params : Params
        Of the profiles.
    classified : list of dict
        Records of all parts; empty where the config does not ask for classes.
    shares : DataFrame or None
        As `estimate_class_shares` gives it.

    Returns
    -------
    list of HeatMap
    """
    maps = []
    if params.readout:
        values, note = by_well(wells, READOUT), readout_name(params)
        maps.append(report.HeatMap(title="Readout", values=values, unit=unit_of(params), note=note))
    learned = learned_note([(plate, well) for well in wells["Metadata_Well"]]) if shares is not None else ""
    for name, part in shares.groupby("class") if shares is not None else ():
        values = dict(zip(part["Metadata_Well"], part["share"], strict=True))
        options = {"limits": (0, 1), "unit": "share of cells", "group": "Classes", "note": learned}
        maps.append(report.HeatMap(title=f"Share of cells of class {name}", values=values, **options))
    if predicted := mean_predictions(plate, list(wells["Metadata_Well"]), classified):
        maps.append(report.HeatMap(title="Predicted number, mean of the cells", values=predicted, group="Classes"))
    for metric, title, unit in (
        ("focus_slope", "Focus", "slope; higher is sharper"),
        ("background", "Background", "counts"),
    ):
        for channel, part in quality.groupby("Channel", sort=False):
            # A dark channel is all noise, which no focus blurs: it would be the sharpest of all.
            shown = part[metric].mask(part.get("Dark", part["Flag_Empty"]) & (metric == "focus_slope"))
            values = shown.groupby(part["Metadata_Well"]).mean()
            flagged = part.loc[part["Reason"] != "", "Metadata_Well"]
            good = values[~values.index.isin(flagged)].dropna()
            limits = report.scale_limits(good) if len(good) > 1 else None
            name = f"{title}, {channel}"
            maps.append(report.HeatMap(title=name, values=values.to_dict(), unit=unit, limits=limits, group="Quality"))
    return maps


def badly_restored_maps(wells, records, settings):
    """Map of the share of cells that the autoencoder restores badly, if there is one that restores anything."""
    if not records or any(record["status"] != "done" for record in records):
        return []
    limit = limit_of_error(settings["config"]["latent"]["autoencoder"]["error_limit"])
    if not math.isfinite(limit):
        return []
    encoded = {well: record["plate"] for record in records for well in record["artefacts"]}
    values = {}
    for well in wells:
        errors = read_errors(encoded[well], well).dropna() if well in encoded else ()
        if len(errors):
            values[well] = float((errors[ERROR] > limit).mean())
    note = f"An error above {limit:.3g}: debris, or like nothing that the autoencoder was trained on."
    options = {
        "unit": "share of cells",
        "group": "Quality",
        "note": note,
        "limits": (0, max(values.values(), default=0) or 1),
    }
    return [report.HeatMap(title="Badly reconstructed", values=values, **options)] if values else []


def cluster_maps(plate, wells, records):
    """Maps of the share of each cluster, of plates whose cells have clusters."""
    clusters = read_clusters(records)
    if not clusters:
        return []
    shares = share_clusters(plate, wells, clusters["config"]["number"])
    options = {"unit": "share of cells", "group": "Clusters"}
    return [
        report.HeatMap(title=f"Share of cells of cluster {i}", values=values, **options)
        for i, values in enumerate(shares)
        if values
    ]
