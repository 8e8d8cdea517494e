"""Features and latents on the page of a screen: how plates mix before and after correction, and which serves better."""

import math

from plateloom.errors import some_of
from plateloom.report.charts import element, number_of
from plateloom.report.page import join, paragraph, table

MIXING_NOTE = (
    "The nearest wells of a well should be those that hold the same, whichever plate they are on. By chance: if wells of the same "
    "treatment exchanged their plates (95 % of such exchanges). Mixing is 1 if plates make no difference, and 0 if no well has a near "
    "one of another plate; plates among them is their effective number, against that by chance. Normalized: to the negative controls of the "
    "plate; sphered: and then what negative controls of all plates vary in counts less. Noise mixes perfectly, so read it beside the replicates: a correction is good if plates mix and replicates "
    "still find each other."
)
RETRIEVAL_NOTE = (
    "Replicates found: each well ranks its replicates on {where} and the negative controls of its own plate by how alike they are; mAP is the "
    "mean average precision, 1 if replicates always come first. By chance: wells of different treatments, on the same plates and in the same "
    "numbers; what is beyond it is compared between spaces. Where there are too few such wells, by chance is that of random rankings: shown, not compared. Treatments found have an mAP beyond chance (q ≤ 0.05, Benjamini, Hochberg). "
    "Treatments recognized: balanced accuracy of linear discriminants on plates that they have not learned from. Intervals (95 %) are over "
    "treatments, and over plates."
)


def comparison_section(found):
    """Render what `plateloom.stages.comparison` has found.

    Parameters
    ----------
    found : dict or None
        The content of comparison.json.

    Returns
    -------
    Markup or None
    """
    if found is None:
        return None
    spaces, parts = found["spaces"], []
    several = len(spaces) > 1
    verdicts = [
        *map(retrieval_verdict, found["better"]["by_retrieval"]),
        *map(classes_verdict, found["better"]["by_classes"]),
    ]
    if several:
        parts += [element("h3", "Which serves better")]
        parts += [element("ul", *(element("li", text) for text in verdicts)) if verdicts else None]
    else:
        parts += [element("h3", "How well replicates find each other")]
    parts += [table(spaces_table(spaces), empty="", sortable=False)]
    parts += [paragraph(text) for text in [*wells_words(found), *unseen_words(spaces)]]
    parts += [paragraph(RETRIEVAL_NOTE.format(where=found["replicates"] or "other plates"), "quiet")]
    for unit, noun in (("plate", "plates"), ("batch", "batches")):
        rows = mixing_rows(spaces, unit)
        if len(rows):
            parts += [element("h3", f"How {noun} mix, before and after correction"), mixing_words(spaces, unit)]
            parts += [table(rows, empty="", sortable=False)]
            parts += [paragraph(MIXING_NOTE, "quiet") if unit == "plate" else None]
        elif unit == "plate":
            parts += [paragraph(f"How plates mix cannot be told: {_reason(spaces, unit)}.")]
    return join(*parts)


def name_of(space):
    """How a space is called."""
    return "measured features" if space == "features" else f"latents ({space})"


def retrieval_verdict(pair):
    """What a pair of spaces comes to by the replicates that find each other."""
    return _verdict(pair, "Replicates find each other better by {}", "mAP beyond chance", "treatments")


def classes_verdict(pair):
    """What a pair of spaces comes to by treatments that are recognized on plates not learned from."""
    return _verdict(pair, "Treatments are recognized better by {}", "balanced accuracy", "plates")


def unseen_words(spaces):
    """How many wells no space could recognize, as a list of a sentence or of none."""
    n = spaces[0]["classes"].get("n_unseen", 0)
    return [f"{n} wells are not scored: all plates with their treatment were held out at once."] if n else []


def wells_words(found):
    """Which wells all of this is of, and which plates are left out, as a list of one or two sentences."""
    known = [space for space in found["spaces"] if "n_wells" in space]  # kept results of earlier code do not say it
    each = ", ".join(f"{name_of(space['space'])} {space['n_wells']:,}" for space in known)
    shared = f", those with a profile of each kind ({each})" if len(known) > 1 else ""
    said = [f"All figures and tables are of {found['n_wells']:,} wells{shared}."]
    if left := found.get("left_out"):
        said.append(f"Left out, with all of their wells: {some_of(f'{plate} ({why})' for plate, why in left.items())}.")
    return said


def _verdict(pair, words, figure, unit):
    """One sentence."""
    first, second = name_of(pair["first"]), name_of(pair["second"])
    if not pair["better"]:
        said = (
            f"Whether {words[0].lower()}{words[1:].format(f'{first} or by {second}')} cannot be said: {pair['reason']}"
        )
        return f"{said}{_difference(pair, figure, unit)}."
    better, other = (first, second) if pair["better"] == pair["first"] else (second, first)
    return f"{words.format(better)} than by {other}{_difference(pair, figure, unit)}."


def _difference(pair, figure, unit):
    """The difference in words, in brackets."""
    if pair["low"] is None:
        return ""
    sign = 1 if pair["better"] in ("", pair["first"]) else -1
    low, high = sorted((sign * pair["low"], sign * pair["high"]))
    return f" ({figure} {sign * pair['difference']:+.2f}, 95 % interval {low:+.2f} to {high:+.2f}, {pair['n']} {unit})"


def spaces_table(spaces):
    """One row per space, as far corrected as it could be."""
    import pandas as pd

    rows = []
    for space in spaces:
        last = [step for step in space["corrections"] if not step["reason"]][-1]
        retrieval, classes = last["retrieval"], space["classes"]
        rows.append(
            {
                "profiles of": name_of(space["space"]),
                "numbers": space["n_features"],
                "corrected": last["correction"],
                "mAP of replicates": _with_interval(retrieval, "map"),
                "by chance": _text(retrieval.get("expected")),
                "treatments found": f"{retrieval['n_found']} of {retrieval['n']}"
                if "n" in retrieval
                else retrieval["reason"],
                "treatments recognized": _with_interval(classes, "balanced_accuracy", percent=True),
                "by guessing": _text(classes.get("chance"), percent=True),
            }
        )
    return pd.DataFrame(rows)


def mixing_rows(spaces, unit):
    """One row per space and correction that mixing could be measured for."""
    import pandas as pd

    rows = []
    for space in spaces:
        for step in space["corrections"]:
            if step["reason"]:
                continue
            mixing, retrieval = step["mixing"][unit], step["retrieval"]
            if "reason" in mixing:
                continue
            change = step.get("change", {})
            rows.append(
                {
                    "profiles of": name_of(space["space"]),
                    "correction": step["correction"],
                    f"near wells of the own {unit}": f"{mixing['own']:.0%}".replace("%", " %"),
                    "by chance": f"{100 * mixing['own_low']:.0f} to {100 * mixing['own_high']:.0f} %",
                    "mixing": _text(mixing["mixing"]),
                    f"{'plates' if unit == 'plate' else 'batches'} among them": f"{mixing['effective']:.1f} ({mixing['effective_expected']:.1f})",
                    "mAP of replicates": _text(retrieval.get("map")),
                    "change beyond chance": _change(change),
                }
            )
    found = pd.DataFrame(rows)
    return found.loc[:, [name != "change beyond chance" or (found[name] != _change({})).any() for name in found]]


def mixing_words(spaces, unit):
    """The finding in a sentence per space."""
    said = []
    for space in spaces:
        steps = [step for step in space["corrections"] if not step["reason"] and "own" in step["mixing"][unit]]
        if not steps:
            continue
        first, last = steps[0]["mixing"][unit], steps[-1]["mixing"][unit]
        text = (
            f"By {name_of(space['space'])}, {first['own']:.0%} of a well's {first['neighbors']} nearest wells are of its own {unit} before any "
            f"correction, {last['own']:.0%} after; chance gives {last['own_expected']:.0%} ({last['n_batches']} "
            f"{'plates' if unit == 'plate' else 'batches'})."
        ).replace("%", " %")
        if last["own"] > max(first["own"], last["own_high"]):
            text += (
                " They mix worse than before: where a plate has few control wells, normalizing to them adds noise that all of its wells "
                "share. More control wells help, and profiling.parameters.method: standardize: mean and SD of few wells vary less than "
                "median and MAD, if none of these wells is an outlier."
            )
        undone = [step for step in space["corrections"] if step["reason"]]
        if undone:
            names = " and ".join(step["correction"] for step in undone)
            text += f" They are not {names}: {undone[0]['reason']}."
        said.append(paragraph(text))
    return join(*said)


def _reason(spaces, unit):
    """Why mixing could not be measured."""
    return next(
        step["mixing"][unit]["reason"] for space in spaces for step in space["corrections"] if not step["reason"]
    )


def _change(change):
    """A change with its interval, and whether it is one."""
    if not change or change["difference"] is None:
        return ""
    text = f"{change['difference']:+.2f}"
    if change["low"] is None:
        return text
    return f"{text} ({change['low']:+.2f} to {change['high']:+.2f})"


def _with_interval(figures, name, percent=False):
    """A figure with its interval, or why there is none."""
    if name not in figures:
        return figures["reason"]
    text = _text(figures[name], percent)
    if figures["low"] is None:
        return text
    return f"{text} ({_text(figures['low'], percent)} to {_text(figures['high'], percent)})"


def _text(value, percent=False):
    """A share with two digits, or in percent; nothing where there is none."""
    if value is None or math.isnan(number_of(value)):
        return ""
    return f"{value:.0%}".replace("%", " %") if percent else f"{value:.2f}"
