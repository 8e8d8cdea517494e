"""Novel cells and cells of a class, counted well by well: what is rare is found, and what is chance is not."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from test_classification_stage import CELLS, WELLS, learned, tables  # noqa: F401

from plateloom.classification import METHODS
from plateloom.classification.enrichment import count_kinds, find_enrichment
from plateloom.classification.evaluation import evaluate
from plateloom.classification.model import dumps, loads, predict, train
from plateloom.registry import load_method
from plateloom.report.screen import enrichment_section
from plateloom.stages.screen_report import count_plate
from plateloom.store.layout import plate_folder
from plateloom.store.provenance import recipe
from plateloom.store.tables import read_table, write_table

KEYS = ["Metadata_Plate", "Metadata_Treatment", "Metadata_Dose", "Metadata_Unit", "Metadata_Control"]


def screen(seed, share, *, alike=0.005, special=None, treatments=30, controls=16, cells=200, plate_share=None):
    """Two plates with controls and treatments in two wells each; `special` is the share of novel cells of treatment T00."""
    random = np.random.default_rng(seed)
    rows = []
    for plate in ("P1", "P2"):
        rows += [(plate, "DMSO", np.nan, "", "negative")] * controls
        rows += [(plate, f"T{i:02d}", 1.0, "µM", "") for i in range(treatments) for _ in range(2)]
    table = pd.DataFrame(rows, columns=KEYS)
    mean = np.full(len(table), share)
    if plate_share is not None:
        mean[table["Metadata_Plate"] == "P2"] = plate_share
    if special is not None:
        mean[table["Metadata_Treatment"] == "T00"] = special
    size = 1 / alike - 1
    table["cells"] = random.poisson(cells, len(table))
    table["novel"] = random.binomial(table["cells"], random.beta(mean * size, (1 - mean) * size))
    return table


def row_of(found, treatment):
    return found[found["Metadata_Treatment"] == treatment].iloc[0]


def test_a_phenotype_of_a_few_percent_of_the_cells_is_found():
    calls = [row_of(find_enrichment(screen(seed, 0.01, special=0.06), ["novel"]), "T00") for seed in range(20)]
    assert np.mean([row["change"] == "enriched" for row in calls]) >= 0.8
    assert calls[0]["n"] == 4 and calls[0]["n_plates"] == 2 and calls[0]["share"] == pytest.approx(0.06, abs=0.03)


@pytest.mark.parametrize(("share", "alike"), [(0.01, 1e-6), (0.01, 0.01), (0.3, 0.05), (0.003, 0.005)])
def test_p_values_hold_what_they_promise_where_nothing_is_enriched(share, alike):
    found = [find_enrichment(screen(seed, share, alike=alike), ["novel"]) for seed in range(40)]
    assert np.mean([(one["p"] <= 0.05).mean() for one in found]) <= 0.07
    assert np.mean([(one["change"] != "").any() for one in found]) <= 0.075


def test_wells_are_what_is_counted_not_cells():
    naive, ours = [], []
    for seed in range(10):
        table = screen(seed, 0.2, alike=0.05, cells=1000)
        pooled = table.groupby("Metadata_Treatment")[["cells", "novel"]].sum()
        rest = pooled["cells"] - pooled["novel"]
        tests = [
            stats.chi2_contingency([[pooled["novel"][name], rest[name]], [pooled["novel"]["DMSO"], rest["DMSO"]]])
            for name in pooled.index.drop("DMSO")
        ]
        naive += [test.pvalue <= 0.001 for test in tests]
        ours += list(find_enrichment(table, ["novel"])["p"] <= 0.001)
    assert np.mean(naive) > 0.5 and np.mean(ours) < 0.01


def test_a_plate_with_more_novel_cells_everywhere_enriches_no_treatment():
    table = screen(1, 0.02, plate_share=0.2)
    one_plate = table[(table["Metadata_Control"] == "negative") | (table["Metadata_Plate"] == "P2")]
    assert not (find_enrichment(one_plate, ["novel"])["change"] != "").any()


def test_depletion_is_told_from_enrichment_and_kinds_from_each_other():
    table = screen(2, 0.5, special=0.1)
    table["class a"] = table["cells"] - table["novel"]
    found = find_enrichment(table, ["novel", "class a"]).set_index(["Metadata_Treatment", "kind"])
    assert found.loc[("T00", "novel"), "change"] == "depleted" and found.loc[("T00", "class a"), "change"] == "enriched"
    assert (found["q"] >= found["p"]).all() and found["q"].is_monotonic_increasing


def test_wells_that_cannot_be_compared_are_named_or_left_out():
    table = screen(3, 0.1)
    table = table[~((table["Metadata_Plate"] == "P2") & (table["Metadata_Control"] == "negative"))]
    assert set(find_enrichment(table, ["novel"])["n_plates"]) == {1}
    alone = find_enrichment(table[table["Metadata_Plate"] == "P2"], ["novel"])
    assert alone["p"].isna().all() and set(alone["reason"]) == {"too few negative control wells"}
    elsewhere = table["Metadata_Treatment"].where(table["Metadata_Plate"] == "P1", table["Metadata_Treatment"] + " too")
    unknown = find_enrichment(table.assign(Metadata_Treatment=elsewhere), ["novel"]).set_index("Metadata_Treatment")
    assert unknown.loc["T05 too", "reason"] == "no negative control on its plates" and unknown.loc["T05", "p"] <= 1
    few = screen(3, 0.1, controls=2)
    assert find_enrichment(few, ["novel"])["p"].notna().all(), "two controls on each of two plates tell a spread"
    sparse = screen(3, 0.1).assign(cells=5)
    assert not len(find_enrichment(sparse, ["novel"]))
    one = screen(3, 0.1, controls=16)
    empty = one[one["Metadata_Treatment"] == "T01"].assign(Metadata_Control="empty")
    rest = one[one["Metadata_Treatment"] != "T01"]
    assert "T01" not in set(find_enrichment(pd.concat([rest, empty]), ["novel"])["Metadata_Treatment"])


def test_no_novel_cell_at_all_is_no_finding_and_no_division_by_zero():
    found = find_enrichment(screen(4, 0.1).assign(novel=0), ["novel"])
    assert not (found["change"] != "").any() and np.isfinite(found["p"]).all()


def test_cells_without_a_value_are_not_counted_and_novel_ones_have_no_class():
    cells = pd.DataFrame({"Class": ["a", "a", "", "b"], "Novelty": [0.5, 1.5, np.nan, 1.0]})
    assert count_kinds(cells, ["a", "b"]) == {"cells": 3, "novel": 1, "class a": 1, "class b": 1}
    assert count_kinds(cells.head(0)) == {"cells": 0, "novel": 0}


CELLS_OF_WELL = 120


def classified_screen(seed):
    """Wells of a screen with two known phenotypes and, in treatment T03, one in twenty cells of a third that no class was made for."""
    random = np.random.default_rng(seed)
    treatments = ["DMSO"] * 16 + ["kills"] * 8 + [f"T{i:02d}" for i in range(12) for _ in range(4)]
    X, wells = [], []
    for number, treatment in enumerate(treatments):
        cells = random.normal(0, 1, (CELLS_OF_WELL, 8)) + random.normal(0, 0.3, 8)
        if treatment == "kills":
            cells[:, 0] += 4
        if treatment == "T03":
            cells[: CELLS_OF_WELL // 20, 5] += 9
        X.append(cells)
        control = {"DMSO": "negative", "kills": "positive"}.get(treatment, "")
        wells.append(("P1", f"W{number:02d}", treatment, 1.0, "µM", control))
    return X, pd.DataFrame(wells, columns=["Metadata_Plate", "Metadata_Well", *KEYS[1:]])


def test_a_phenotype_that_no_class_was_made_for_is_flagged_and_its_treatment_named():
    named, others = 0, 0
    for seed in range(5):
        X, wells = classified_screen(seed)
        features = [f"f{i}" for i in range(8)]
        labeled = np.flatnonzero(wells["Metadata_Control"] != "")
        groups = np.repeat([f"P1/{wells['Metadata_Well'][i]}" for i in labeled], CELLS_OF_WELL)
        y = np.repeat(wells["Metadata_Control"].to_numpy(str)[labeled], CELLS_OF_WELL)
        params = load_method(METHODS, "logistic", "classification method").Params()
        model = train(
            np.vstack([X[i] for i in labeled]), y, groups, features=features, method="logistic", params=params
        )
        found = predict(model, pd.DataFrame(np.vstack(X), columns=features))
        counts = [count_kinds(cells) for _, cells in found.groupby(found.index // CELLS_OF_WELL)]
        found = find_enrichment(wells.join(pd.DataFrame(counts)), ["novel"])
        enriched = set(found.loc[found["change"] == "enriched", "Metadata_Treatment"])
        named += "T03" in enriched
        others += len(enriched - {"T03"})
    assert named == 5 and others <= 2


def test_labeled_wells_are_no_less_novel_than_others_that_hold_the_same():
    """A labeled cell among those that novelty is measured against would find its own well there, and controls be no measure."""
    shares = {"labeled": [], "other": []}
    for seed in range(6):
        random = np.random.default_rng(seed)
        wells = [random.normal(0, 1, (300, 15)) + random.normal(0, 0.5, 15) for _ in range(24)]
        groups = np.repeat([f"P1/W{i:02d}" for i in range(8)], 300)
        X = np.vstack(wells[:8])
        y = np.where(X[:, 0] + random.normal(0, 1, len(X)) > 0, "a", "b")
        features = [f"f{i}" for i in range(15)]
        params = load_method(METHODS, "logistic", "classification method").Params()
        model = train(X, y, groups, features=features, method="logistic", params=params)
        for i, cells in enumerate(wells):
            found = predict(model, pd.DataFrame(cells, columns=features), group=f"P1/W{i:02d}")
            shares["labeled" if i < 8 else "other"].append(float((found["Novelty"] > 1).mean()))
    labeled, other = (np.mean(found) for found in shares.values())
    assert 0.006 < labeled < 0.014 and abs(labeled - other) < 0.006, (labeled, other)


def unequal_wells(seed, wells, share=0.05):
    """Cells of wells of which nearly all are of a narrow class `a`; the few of `b` and `c` differ more from each other."""
    random = np.random.default_rng(seed)
    X = random.normal(0, 1, (wells, 200, 8)) + random.normal(0, 0.2, (wells, 1, 8))
    kind = random.choice(3, (wells, 200), p=[1 - 2 * share, share, share])
    X[kind == 1] = X[kind == 1] * 1.5 + np.eye(8)[0] * 5
    X[kind == 2] = X[kind == 2] * [2, 2, 2, 1, 1, 1, 1, 1] + np.eye(8)[1] * 8
    return X.reshape(-1, 8), kind.ravel(), np.repeat([f"P1/W{i:02d}" for i in range(wells)], 200)


def learn_unequal(seed, wells=24, **options):
    X, kind, groups = unequal_wells(seed, wells)
    chosen = {"method": "logistic", "params": load_method(METHODS, "logistic", "classification method").Params()}
    if options:
        options["folds"] = kept = []
        options["metrics"] = evaluate(X, np.array(list("abc"))[kind], groups, kept=kept, **chosen)
    return train(X, np.array(list("abc"))[kind], groups, features=[f"f{i}" for i in range(8)], **chosen, **options)


def novel_to(model, X):
    return (predict(model, pd.DataFrame(X, columns=model.card["features"]))["Novelty"] > 1).to_numpy()


def test_no_trained_class_is_novel_however_rare_and_however_much_its_cells_differ():
    shares, strange = [], []
    for seed in range(3):
        model = learn_unequal(seed)
        X, kind, _ = unequal_wells(100 + seed, 24)
        novel = novel_to(model, X)
        shares.append([novel[kind == c].mean() for c in range(3)])
        strange.append(novel_to(model, X[kind == 0] + 7 * np.eye(8)[5]).mean())
    assert np.mean(shares, axis=0).max() < 0.02, shares
    assert np.mean(strange) > 0.7, "what no class was made for is novel all the same"


def test_a_treatment_that_brings_more_of_a_trained_class_holds_no_more_novel_cells():
    model, random = learn_unequal(0), np.random.default_rng(1)
    rows = []
    for seed, treatment in enumerate(["DMSO"] * 12 + ["more"] * 6):
        X, _, _ = unequal_wells(200 + seed, 1, share=0.4 if treatment == "more" else 0.05)
        counts = {"cells": len(X), "novel": int(novel_to(model, X[random.permutation(len(X))]).sum())}
        control = "negative" if treatment == "DMSO" else ""
        rows.append(dict(zip(KEYS, ["P1", treatment, 1.0, "µM", control], strict=True)) | counts)
    found = find_enrichment(pd.DataFrame(rows), ["novel"])
    assert len(found) == 1 and row_of(found, "more")["change"] == "" and row_of(found, "more")["share"] < 0.02


def test_the_card_says_what_share_of_held_out_cells_is_novel():
    held = learn_unequal(0, metrics=True).card["novelty"]["held_out"]
    assert [row["class"] for row in held] == ["a", "b", "c"] and sum(row["cells"] for row in held) == 24 * 200
    assert all(row["novel"] < 0.04 for row in held)
    assert learn_unequal(0).card["novelty"]["held_out"] == [], "without a test nothing is known"


def test_a_model_of_the_format_before_is_read_and_judges_by_its_one_unit(monkeypatch):
    model = learn_unequal(0)
    old = {name: value for name, value in model.novelty.items() if name != "class"} | {"unit": np.float64(4.0)}
    monkeypatch.setattr("plateloom.classification.model.FORMAT", "plateloom-classifier-4")
    data = dumps(replace(model, novelty=old))
    monkeypatch.undo()
    again, X = loads(data), unequal_wells(1, 2)[0]
    table = pd.DataFrame(X, columns=model.card["features"])
    known = model.novelty | {"unit": np.full(3, 4.0)}
    expected = predict(replace(model, novelty=known), table)["Novelty"]
    pd.testing.assert_series_equal(predict(again, table)["Novelty"], expected)


def test_a_cell_that_is_reconstructed_badly_is_new_wherever_its_latents_lie():
    random = np.random.default_rng(0)
    X, y = random.normal(0, 1, (2000, 4)), np.repeat(["a", "b"], 1000)
    X[1000:] += 2
    groups, features = np.tile([f"P1/W{i:02d}" for i in range(10)], 200), [f"l{i}" for i in range(4)]
    errors = random.gamma(4, 0.02, 2000)
    params = load_method(METHODS, "logistic", "classification method").Params()
    model = loads(dumps(train(X, y, groups, features=features, method="logistic", params=params, errors=errors)))
    table = pd.DataFrame(X, columns=features)
    groups_of = pd.DataFrame({"group": groups}).groupby("group").indices.items()
    known = np.full(len(X), np.nan)
    for group, rows in groups_of:
        known[rows] = predict(model, table.iloc[rows], group=group, errors=errors[rows])["Novelty"]
    assert 0.005 < (known > 1).mean() < 0.015, "two ways of being new are no twice as many new cells"
    assert model.card["novelty"]["error_unit"] == model.novelty["error_unit"].tolist()
    assert (model.novelty["error_unit"] > np.quantile(errors, 0.98)).all()
    badly = predict(model, table, errors=np.full(len(X), 1.0))["Novelty"]
    unknown = predict(model, table, errors=np.full(len(X), np.nan))["Novelty"]
    assert (badly > 1).all() and unknown.notna().all() and (unknown > 1).mean() < 0.02
    far = predict(model, table.assign(l0=40.0), errors=np.zeros(len(X)))["Novelty"]
    assert (far > 1).all()


def test_cells_of_a_screen_are_counted_well_by_well_without_those_of_flagged_fields(learned):  # noqa: F811
    learned()
    made = recipe("test", parameters={}, code="", inputs={})
    wells = read_table(plate_folder("P2") / "profiles.parquet")
    wells = wells.assign(Metadata_Treatment="x", Metadata_Dose=1.0, Metadata_Unit="")
    write_table(plate_folder("P2") / "aggregates.parquet", wells, made)
    flags = pd.DataFrame({"Metadata_Well": WELLS, "SourceField": 1, "Reason": ""})
    flags.loc[flags["Metadata_Well"] == "A02", "Reason"] = "out of focus"
    write_table(plate_folder("P2") / "qc.parquet", flags, made)
    counted = count_plate("P2", False).set_index("Metadata_Well")
    assert list(counted.columns[-4:]) == ["cells", "novel", "class negative", "class positive"]
    assert (counted["cells"] == CELLS).all() and (counted.iloc[:, -3:].sum(axis=1) == CELLS).all()
    assert counted.loc["A01", "class negative"] > 8 and counted.loc["A02", "class positive"] > 8
    without = count_plate("P2", True).set_index("Metadata_Well")
    assert without.loc["A02", "cells"] == 0 and without.drop("A02").equals(counted.drop("A02"))


def test_the_page_of_the_screen_sums_up_which_treatments_differ():
    found = find_enrichment(screen(2, 0.05, special=0.5), ["novel"])
    words = str(enrichment_section(found))
    assert "1 in the share of novel cells" in words and "T00" in words and "enrichment.parquet" in words
    assert enrichment_section(None) is None
