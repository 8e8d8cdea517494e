"""What classifiers, novelty, the alarm of a shift and latents are worth: `python benchmarks/learning.py [--source DIR] [--only real|simulated] [--write]`.

Real: BBBC013 (`--source`, its images), positive against negative controls in wells held out, and doses that were never learned from.
Simulated: a screen with three phenotypes, one of them also rare, a novel one and a plate that was stained differently, against the
truth. Both by features, autoencoder and contrastive latents, through the pipeline's own stages. Prints a section in Markdown;
`--write` puts it into docs/benchmarks.md. With `--work` what was run is kept, and a rerun takes a minute.
"""

import argparse
import importlib.util
import os
import shutil
import sys
import tempfile
from pathlib import Path

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(name, "1")

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
import yaml  # noqa: E402

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]  # the stages without Snakemake are the tests'

from benchmarks.page import write_section  # noqa: E402

HEADING = "## Classes, novelty, shift, latents: `python benchmarks/learning.py`"
SPACES = ("features", "autoencoder", "contrastive")
REDUCED = {
    "features": {
        "families": [
            "AreaShape",
            "Location",
            "Intensity",
            "Texture",
            "Correlation",
            "RadialDistribution",
            "Granularity",
        ],
        "texture_scales": [3],
    },
    "latent": {},
}
LEFT_OUT = ("map", "maps", "latent_profiling", "comparison", "report", "screen_report")  # for pages
NETWORKS = {
    "real": {"epochs": 12, "out_px": 48},
    "simulated": {"epochs": 12, "out_px": 32},
}  # crops as large as cut out
RARE, NOVEL, SHIFTED = ("rarecidin", "condensed", 0.01), ("novelin", "speckled"), ("plate4", "GFP", 2.0)
SCREEN = {"rows": 4, "columns": 7, "fields": 1, "size_px": 512, "pixel_size_um": 1.0, "cells_per_field": 100.0}
KEYS = ["Metadata_Plate", "Metadata_Well", "Metadata_Field", "Metadata_ObjectNumber"]


def main():
    """Run, measure, print, and write where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--source",
        type=Path,
        default=ROOT.parent / "shared" / "data" / "bbbc013_sbs_rows_ABEF",
        help="Folder of the images of BBBC013.",
    )
    parser.add_argument("--only", choices=("real", "simulated"))
    parser.add_argument("--work", type=Path, help="Keep the screens here; default: a temporary folder.")
    parser.add_argument("--plates", type=int, default=7, help="Of the simulated screen.")
    parser.add_argument("--write", action="store_true", help="Put the section into docs/benchmarks.md.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work, sections = (options.work or Path(name)).resolve(), [HEADING, ""]
        if options.only != "simulated":
            run_spaces(work / "real", lambda folder: prepare_real(folder, options.source), network=NETWORKS["real"])
            sections += describe_real(work / "real")
        if options.only != "real":
            prepare = lambda folder: prepare_simulated(folder, plates=options.plates)  # noqa: E731
            run_spaces(work / "simulated", prepare, network=NETWORKS["simulated"])
            sections += describe_simulated(work / "simulated")
    section = "\n".join(sections)
    print(section)
    if options.write:
        write_section(__file__, section)


# --- running -------------------------------------------------------------------------------------------------------


def prepare_real(folder, source):
    """Make the screen of BBBC013 as its example does."""
    path = ROOT / "config" / "examples" / "bbbc013" / "prepare.py"
    spec = importlib.util.spec_from_file_location("prepare", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(source, folder)


def prepare_simulated(folder, *, plates=7, seed=11, rare=RARE[2], **design):
    """Simulate the screen: labeled, rare and novel phenotypes, and one plate stained differently."""
    from plateloom.cli.simulate import write_screen
    from plateloom.simulation import ScreenDesign, Treatment

    once = {"ec50": 0.1, "hill": 2.0, "doses": (10.0,)}
    treatments = (
        Treatment("nuclearin", "translocated", **once),
        Treatment("shrinkamide", "condensed", **once),
        Treatment("swellol", "swollen", **once),
        Treatment(RARE[0], RARE[1], **once, top=rare, labeled=False),
        Treatment(NOVEL[0], NOVEL[1], **once, labeled=False),
        Treatment("inertol", **once),
    )
    names = tuple(f"plate{i + 1}" for i in range(plates))
    plate, channel, factor = SHIFTED
    options = SCREEN | {"plates": names, "treatments": treatments, "shifts": {plate: {channel: factor}}, "seed": seed}
    write_screen(folder, ScreenDesign(**options | design))


def run_spaces(folder, prepare, *, spaces=SPACES, network=None, reduced=REDUCED):
    """Run a screen by features, and copies of it by latents: what comes before is made once.

    Parameters
    ----------
    folder : path
        Gets a screen per space; what is there and current is not made again.
    prepare : callable(path)
        Writes the screen.
    spaces : sequence of str
        Of `SPACES`, `features` first.
    network : dict
        Parameters of the networks.
    reduced : dict of str to dict
        Sections of the config that are replaced.
    """
    from in_process import run_stages

    from plateloom.planning import STAGES

    stages = [name for name in STAGES if name not in LEFT_OUT]
    for space in spaces:
        screen = folder / space
        if not screen.exists():
            made = folder / f".{space}"
            shutil.rmtree(made, ignore_errors=True)
            if space == "features":
                prepare(made)
            else:
                shutil.copytree(folder / "features", made)
            made.rename(screen)
        configure(screen, space, network or {}, reduced)
        print(f"{screen} …", file=sys.stderr, flush=True)
        run_stages(screen, stages)
        check(screen)


def configure(screen, space, network, reduced):
    """Set what is learned from; the rest of the config stays."""
    path = screen / "config.yaml"
    settings = yaml.safe_load(path.read_text())
    crop = settings.get("latent", {}).get("autoencoder", {}).get("crop_um")
    settings |= {name: dict(section) for name, section in reduced.items()}
    latent = {"enabled": space != "features"} | ({"crop_um": crop} if crop else {})
    if space != "features":
        latent |= {"method": space, "cells": 6000, "parameters": dict(network)}
    settings["latent"]["autoencoder"] = latent
    source = "features" if space == "features" else "latent"
    settings["classification"] |= {"inputs": source, "cells": 6000}
    path.write_text(yaml.safe_dump(settings, sort_keys=False))


def check(screen):
    """Refuse a screen of which a job has not ended well."""
    from plateloom.store.provenance import read_json

    for path in sorted((screen / "results").glob("**/records/**/*.json")):
        record = read_json(path)
        if record["status"] != "done":
            raise SystemExit(f"{path}: {record['status']}: {record['reason']}")


# --- reading -------------------------------------------------------------------------------------------------------


def read_cells(screen):
    """Every cell of a screen with its class, what is in its well, and where its nucleus is."""
    places = ["Nuclei_Location_Center_Y", "Nuclei_Location_Center_X", "Nuclei_AreaShape_Area"]
    known = ["Metadata_Plate", "Metadata_Well"]
    known += ["Metadata_Treatment", "Metadata_Dose", "Metadata_Unit", "Metadata_Control"]
    tables = []
    for plate in sorted((screen / "results" / "plates").iterdir()):
        wells = pd.read_parquet(plate / "aggregates.parquet", columns=known)
        for well in wells["Metadata_Well"]:
            cells = pd.read_parquet(plate / "features" / f"{well}.parquet", columns=[*KEYS, *places])
            classes = pd.read_parquet(plate / "classes" / f"{well}.parquet")
            tables.append(cells.merge(classes, on=KEYS, validate="one_to_one").merge(wells, on=known[:2]))
    return pd.concat([table for table in tables if len(table)], ignore_index=True)


def add_truth(cells, screen):
    """Add the simulation's class of each cell as `Truth`; '' where its nucleus is none of the simulation's."""
    from plateloom.classification.identity import match_cells

    groups = KEYS[:3]
    truth = pd.read_parquet(screen / "truth" / "cells.parquet")
    truth_of = dict(list(truth.groupby(groups)))
    names = np.full(len(cells), "", dtype=object)
    for key, rows in cells.groupby(groups).indices.items():
        if key not in truth_of:
            continue
        own, table = truth_of[key], cells.iloc[rows]
        centers = table[["Nuclei_Location_Center_Y", "Nuclei_Location_Center_X"]].to_numpy()
        radii = np.sqrt(table["Nuclei_AreaShape_Area"].to_numpy() / np.pi)
        found = match_cells(own[["Center_Y", "Center_X"]].to_numpy(), centers, radii)
        names[rows[found[found >= 0]]] = own["Class"].to_numpy()[found >= 0]
    return cells.assign(Truth=names), len(truth)


def read_enrichment(cells, classes):
    """What the screen's page says of the shares of kinds of cells: a row per treatment, dose and kind."""
    from plateloom.classification.enrichment import count_kinds, find_enrichment

    known = [f"Metadata_{name}" for name in ("Plate", "Well", "Treatment", "Dose", "Unit", "Control")]
    wells = [
        dict(zip(known, key, strict=True)) | count_kinds(own, classes)
        for key, own in cells.groupby(known, dropna=False, sort=True)
    ]
    return find_enrichment(pd.DataFrame(wells), ["novel", *(f"class {name}" for name in classes)])


def read_profiles(screen, space):
    """Wells by what a space says of them: medians over cells, in units of the plate's negative controls.

    Returns
    -------
    wells : DataFrame, shape (W, ...)
        Only `Metadata_*`; wells without a value are left out.
    values : ndarray of float, shape (W, F)
        Features as they are selected for the screen's profiles.
    """
    from plateloom import profiling

    if space == "features":
        table = pd.read_parquet(screen / "results" / "screen" / "profiles.parquet")
        columns = profiling.feature_columns(table)
    else:
        tables = []
        for plate in sorted((screen / "results" / "plates").iterdir()):
            wells = pd.read_parquet(plate / "aggregates.parquet")
            wells = wells[[name for name in wells.columns if name.startswith("Metadata_")]]
            rows = []
            for well in wells["Metadata_Well"]:
                cells = pd.read_parquet(plate / "latent" / f"{well}.parquet")
                columns = [name for name in cells.columns if name.startswith("Latent_") and name != "Latent_error"]
                rows.append(cells[columns].median())
            medians = pd.DataFrame(rows, columns=columns).reset_index(drop=True)
            table = pd.concat([wells.reset_index(drop=True), medians], axis=1)
            tables.append(profiling.normalize_profiles(table, profiling.Params(), features=columns)[0])
        table = pd.concat(tables, join="inner", ignore_index=True)
        columns = [name for name in columns if name in table]
    values = table[columns].to_numpy(float)
    known = np.isfinite(values).all(axis=1)
    return table.loc[known, [name for name in table if name.startswith("Metadata_")]].reset_index(drop=True), values[
        known
    ]


def read_card(screen):
    """What the classifier's card says of its test."""
    from plateloom.store.provenance import read_json

    return read_json(screen / "results" / "screen" / "models" / "classifier" / "model.json")["card"]["metrics"]


# --- measuring -----------------------------------------------------------------------------------------------------


def recalls(truth, found, classes):
    """Recall and precision of each class, and their mean recall; cells of other classes are left out.

    Parameters
    ----------
    truth, found : array of str, shape (N,)
    classes : sequence of str

    Returns
    -------
    recall, precision : dict of str to float
    balanced : float
    """
    truth, found = np.asarray(truth, str), np.asarray(found, str)
    known = np.isin(truth, classes)
    truth, found = truth[known], found[known]
    recall = {name: float((found[truth == name] == name).mean()) for name in classes}
    precision = {name: float((truth[found == name] == name).mean()) for name in classes}
    return recall, precision, float(np.mean(list(recall.values())))


def measure_controls(cells):
    """Balanced accuracy of control wells by models that have not seen them, and whether doses rise.

    Parameters
    ----------
    cells : DataFrame
        As `read_cells` gives them.

    Returns
    -------
    balanced : float
    doses : DataFrame
        Per drug `n` wells with a dose that no model learned from, Spearman's `rho` of their mean probability with the dose, and the
        means at the lowest and the highest dose, `low` and `high`.
    """
    from scipy.stats import spearmanr

    control = cells["Metadata_Control"].isin(["negative", "positive"])
    _, _, balanced = recalls(
        cells.loc[control, "Metadata_Control"], cells.loc[control, "Class"], ["negative", "positive"]
    )
    dosed = cells[(cells["Metadata_Control"] == "") & (cells["Metadata_Dose"] > 0)]
    wells = dosed.groupby(["Metadata_Treatment", "Metadata_Well", "Metadata_Dose"])["Probability_positive"].mean()
    rows = []
    for drug, own in wells.reset_index().groupby("Metadata_Treatment"):
        at = own.groupby("Metadata_Dose")["Probability_positive"].mean()
        rho = spearmanr(own["Metadata_Dose"], own["Probability_positive"]).statistic
        rows.append({"drug": drug, "n": len(own), "rho": float(rho), "low": at.iloc[0], "high": at.iloc[-1]})
    return balanced, pd.DataFrame(rows).set_index("drug")


def measure_truth(cells, classes):
    """What became of the three phenotypes, the rare one and the novel one.

    Parameters
    ----------
    cells : DataFrame
        With `Truth`.
    classes : sequence of str
        That were learned.

    Returns
    -------
    dict
    """
    from sklearn.metrics import roc_auc_score

    cells = cells[cells["Truth"] != ""]
    recall, precision, balanced = recalls(cells["Truth"], cells["Class"], classes)
    treatment, name, _ = RARE
    own = cells[cells["Metadata_Treatment"] == treatment]
    true, called = own["Truth"] == name, own["Class"] == name
    new, beyond = cells["Truth"] == NOVEL[1], cells["Novelty"] > 1
    return {
        "recall": recall,
        "precision": precision,
        "balanced": balanced,
        "rare": {
            "cells": len(own),
            "true": int(true.sum()),
            "found": int((true & called).sum()),
            "called": int(called.sum()),
        },
        "novel": {"cells": int(new.sum()), "flagged": float(beyond[new].mean()), "known": float(beyond[~new].mean())}
        | {"auc": float(roc_auc_score(new, cells["Novelty"]))},
    }


def measure_spaces(folder, spaces):
    """Replicate retrieval, treatments on held-out plates, and mixing of plates, of the same wells in each space.

    Returns
    -------
    dict of str to dict
        Per space `retrieval` (Series by treatment), `where`, and `classes` (Series by plate) and `mixing` where there are plates to compare.
    """
    from plateloom.comparison import per_treatment, score_classes, score_retrieval, treatment_keys
    from plateloom.mixing import measure_mixing

    profiles = {space: read_profiles(folder / space, space) for space in spaces}
    place = ["Metadata_Plate", "Metadata_Well"]
    shared = set.intersection(*(set(map(tuple, wells[place].to_numpy())) for wells, _ in profiles.values()))
    found = {}
    for space, (wells, values) in profiles.items():
        kept = np.array([tuple(one) in shared for one in wells[place].to_numpy()])
        wells, values = wells[kept].reset_index(drop=True), values[kept]
        scores, where = score_retrieval(values, wells)
        found[space] = {"retrieval": per_treatment(scores), "beyond": per_treatment(scores, "beyond")}
        found[space] |= {"conditions": scores, "where": where}
        plates, keys = wells["Metadata_Plate"].to_numpy(str), treatment_keys(wells)
        if len(np.unique(plates)) > 1:
            found[space]["classes"], found[space]["chance"] = score_classes(values, keys, plates)
            found[space]["mixing"] = measure_mixing(values, plates, keys)
    return found


# --- telling -------------------------------------------------------------------------------------------------------


def between(mean, low, high, digits=2):
    """A number with its interval."""
    told = f"{mean:.{digits}f}"
    return told if low is None or not np.isfinite(low) else f"{told} ({low:.{digits}f}–{high:.{digits}f})"


def table_of(head, rows):
    """A table in Markdown."""
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return [*lines, *(f"| {' | '.join(map(str, row))} |" for row in rows)]


def describe_real(folder, spaces=SPACES):
    """The part on BBBC013."""
    rows, known = [], measure_spaces(folder, spaces)
    for space in spaces:
        cells, card = read_cells(folder / space), read_card(folder / space)
        balanced, doses = measure_controls(cells)
        limits = card["balanced_accuracy_low"], card["balanced_accuracy_high"]
        row = [space, between(balanced, *limits, digits=3)]
        row += [f"{one.rho:.2f} ({one.low:.2f} → {one.high:.2f})" for one in doses.itertuples()]
        rows.append([*row, f"{known[space]['conditions']['map'].mean():.2f}"])
    controls = cells[cells["Metadata_Control"].isin(["negative", "positive"])]
    wells = controls.groupby("Metadata_Control")["Metadata_Well"].nunique()
    first = known[spaces[0]]["conditions"]
    return [
        "### BBBC013",
        "",
        f"Rows A, B, E, F: {len(cells):,} cells of {cells['Metadata_Well'].nunique()} wells. Positive ({wells['positive']} wells) against negative "
        f"controls ({wells['negative']} wells; E12 and F12 are empty and take no part), {len(controls):,} cells, logistic, wells held out in "
        f"{len(card['folds'])} folds, predictions pooled; interval over resampled wells where each class has five. The {' and '.join(f'{n}' for n in doses['n'])} dose wells were never learned from:",
        f"Spearman's correlation of the mean probability of a positive per well with the dose (the probability at the lowest and the highest "
        f"dose). mAP: replicates on the {known[spaces[0]]['where']} against the negative controls, {len(first)} doses of {first['n_wells'].median():.0f} wells (by chance {first['expected'].mean():.2f}).",
        "",
        *table_of(["learned from", "balanced accuracy", *(f"{drug}, rises" for drug in doses.index), "mAP"], rows),
        "",
    ]


def describe_simulated(folder, spaces=SPACES):
    """The part on the simulated screen."""
    from plateloom.comparison import compare_spaces, interval_of_mean

    classes, rare, novel, learned = [], [], [], []
    known = measure_spaces(folder, spaces)
    for space in spaces:
        card = read_card(folder / space)
        cells, n_true = add_truth(read_cells(folder / space), folder / space)
        found = measure_truth(cells, card["classes"])
        classes.append([space, f"{found['balanced']:.3f}"])
        classes[-1] += [f"{found['recall'][name]:.3f} / {found['precision'][name]:.3f}" for name in card["classes"]]
        enriched = read_enrichment(cells, card["classes"])
        one = found["rare"]
        rare.append([space, f"{one['found']} of {one['true']}", f"{one['found']} of {one['called']}"])
        rare[-1] += _told(enriched, RARE[0], f"class {RARE[1]}")
        one = found["novel"]
        novel.append([space, f"{one['flagged']:.3f}", f"{one['known']:.3f}", f"{one['auc']:.3f}"])
        novel[-1] += _told(enriched, NOVEL[0], "novel")
        graded = {row["tested_on"]: row for row in card["graded"]}
        step = [graded[name] for name in ("other well", "other plate")]
        row = known[space]
        learned.append([space, between(*interval_of_mean(row["retrieval"]))])
        learned[-1] += [between(one["balanced_accuracy"], one["low"], one["high"], digits=3) for one in step]
        learned[-1] += [between(*interval_of_mean(row["classes"]))]
        mixing = row["mixing"]
        learned[-1] += [f"{mixing['mixing']:.2f} ({mixing['own']:.2f}, by chance {mixing['own_expected']:.2f})"]
    pairs = [
        f"{what}: {row['first']} − {row['second']} {between(row['difference'], row['low'], row['high'])}, "
        + (f"{row['better']} is better" if row["better"] else f"not decided ({row['reason']})")
        for what, score, unit in (
            ("mAP beyond chance", "beyond", "treatments"),
            ("wells' treatments", "classes", "plates"),
        )
        for row in compare_spaces({space: known[space][score] for space in spaces}, unit=unit)
    ]
    matched = cells[cells["Truth"] != ""]
    names = list(cells["Metadata_Plate"].unique())
    plate, channel, factor = SHIFTED
    once = found["rare"]
    return [
        "### A simulated screen",
        "",
        f"{len(names)} plates of {cells[cells['Metadata_Plate'] == names[0]]['Metadata_Well'].nunique()} wells with cells, {n_true:,} cells, of which {len(matched):,} were matched with a segmented one. "
        f"Labels are of whole wells ({', '.join(card['classes'])}), the figures are by the truth of each cell; cells of labeled wells are classified by a "
        "model that has not seen their well. All classes and treatments are on every plate.",
        "",
        "Three phenotypes and normal cells, recall / precision of each:",
        "",
        *table_of(["learned from", "balanced accuracy", *card["classes"]], classes),
        "",
        f"The rare phenotype: {RARE[0]} makes {RARE[2]:.0%} of its cells {RARE[1]} ({once['true']} of {once['cells']:,}). Found there, right among the called, and what the table of enrichment says:",
        "",
        *table_of(["learned from", "found", "right", "enriched", "q", "also named without a reason"], rare),
        "",
        f"The novel phenotype: {NOVEL[0]}'s {NOVEL[1]} cells, of which no label knows. Share with a novelty above 1, the same of all other cells, how well novelty tells them apart:",
        "",
        *table_of(
            ["learned from", "novel, flagged", "known, flagged", "AUC", "enriched", "q", "also named without a reason"],
            novel,
        ),
        "",
        f"{_told_flagged(cells, folder / spaces[0])}",
        "",
        f"The shifted plate: {plate}'s {channel} is {factor:g} times as bright. {_told_shift(folder / spaces[0])}",
        "",
        "### Features, autoencoder, contrastive: the same simulated screen",
        "",
        f"mAP of treatments (replicates on the {known[spaces[0]]['where']} against the own plate's negative controls); balanced accuracy of cells by their wells' labels, learned from other wells and "
        "from other plates; treatments of wells told apart on a plate held out; mixing of plates (1: plates make no difference), in brackets the share of a "
        "well's 10 nearest wells that are of its own plate. 95 % intervals over treatments, wells or plates.",
        "",
        *table_of(
            ["space", "mAP", "cells, other wells", "cells, other plates", "wells, other plates", "mixing"], learned
        ),
        "",
        *(f"- {pair}." for pair in pairs),
        "",
    ]


def _told(enriched, treatment, kind):
    """What the table of enrichment says of a treatment and kind, and which treatments it names for that kind without a reason."""
    rows = enriched[(enriched["kind"] == kind) & (enriched["change"] == "enriched")]
    own = enriched[(enriched["kind"] == kind) & (enriched["Metadata_Treatment"] == treatment)].iloc[0]
    active = {"condensed": {"shrinkamide", RARE[0]}, "novel": {NOVEL[0]}}[kind.removeprefix("class ")]
    others = sorted(set(rows["Metadata_Treatment"]) - active)
    return ["yes" if own["change"] == "enriched" else "no", f"{own['q']:.2g}", ", ".join(others) or "none"]


def _told_flagged(cells, screen):
    """How many fields QC would have left out, of the novel treatment and of all others."""
    of = cells.drop_duplicates(KEYS[:2])[[*KEYS[:2], "Metadata_Treatment"]]
    tables = [pd.read_parquet(path) for path in sorted((screen / "results" / "plates").glob("*/qc.parquet"))]
    fields = pd.concat(tables).merge(of, on=KEYS[:2])
    fields = (
        fields.assign(bad=fields["Reason"].fillna("") != "").groupby([*KEYS[:3], "Metadata_Treatment"])["bad"].any()
    )
    new = fields.index.get_level_values("Metadata_Treatment") == NOVEL[0]
    return (
        f"QC flags {fields[new].sum()} of {new.sum()} fields of {NOVEL[0]}, whose cells shine in two of three channels, and "
        f"{fields[~new].sum()} of {(~new).sum()} others; what is flagged is left out."
    )


def _told_shift(screen):
    """Which plates are alarmed, and by what."""
    from plateloom.store.provenance import read_json

    rows = read_json(screen / "results" / "screen" / "records" / "profiles.json")["facts"]["shift"]
    alarmed = [
        f"{row['plate']} (AUC {between(row['auc'], row['low'], row['high'])}; "
        + ", ".join(f"{one['kind']}, q = {one['q']:.2g}" for one in row["shifted"][:3])
        + ")"
        for row in rows
        if row["alarm"]
    ]
    reasons = sorted({row["reason"] for row in rows if row["reason"]})
    quiet = sum(not row["alarm"] for row in rows)
    return f"Alarmed: {'; '.join(alarmed) or 'none'}; quiet: {quiet} of {len(rows)} plates." + (
        f" Not judged: {'; '.join(reasons)}." if reasons else ""
    )


if __name__ == "__main__":
    main()
