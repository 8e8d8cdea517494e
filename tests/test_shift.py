"""Controls of a plate against those of the others, and how far a classifier carries."""

import numpy as np
import pandas as pd
import pytest

from plateloom.classification import METHODS, shift
from plateloom.classification.shift import find_shift, grade_transfer, kind_of, shift_text, tell_apart
from plateloom.registry import load_method

FEATURES = [f"Cells_Kind{i % 10}_Measure{i}" for i in range(40)]


def controls(seed, *, plates=6, wells=8, effect=0.5, of_batch=0.0, per_batch=None, shifted=0, by=8.0):
    """Control wells of plates that differ a little; those of the last `shifted` plates are stained otherwise.

    Features depend on twelve things that vary, as those of cells do; one of them is changed.
    """
    random = np.random.default_rng(seed)
    mixing = random.normal(size=(12, len(FEATURES)))
    values, names, batches, of_batches = [], [], [], {}
    for plate in range(plates):
        batch = f"B{plate // per_batch}" if per_batch else ""
        center = random.normal(0, effect, 12) + of_batches.setdefault(batch, random.normal(0, of_batch, 12))
        center[0] += by * (plate >= plates - shifted)
        own = random.normal(center, 1, (wells, 12)) @ mixing + random.normal(size=(wells, len(FEATURES)))
        values.append(own)
        names += [f"P{plate:02d}"] * wells
        batches += [batch] * wells
    return pd.DataFrame(np.vstack(values), columns=FEATURES), np.array(names), np.array(batches)


def alarms(found):
    return [row["plate"] for row in found if row["alarm"]]


@pytest.fixture
def without_classifier(monkeypatch):
    """All plates can be told apart, as in most screens: the features alone decide."""
    monkeypatch.setattr(shift, "tell_apart", lambda *_, **__: (1.0, 1.0, 1.0))


@pytest.mark.parametrize(
    "options",
    [{}, {"plates": 4}, {"plates": 4, "wells": 4}, {"effect": 2.0}, {"effect": 0.0}, {"plates": 15}]
    + [{"plates": 8, "per_batch": 2, "of_batch": 1.0}],
    ids=str,
)
def test_plates_that_differ_as_plates_do_are_hardly_ever_alarmed(without_classifier, options):
    screens = [controls(seed, **options) for seed in range(25)]
    found = [find_shift(values, plates, batches=batches) for values, plates, batches in screens]
    assert np.mean([row["alarm"] for rows in found for row in rows]) <= 0.035


def test_a_plate_that_is_stained_otherwise_is_alarmed_and_no_other(monkeypatch):
    # of the last plate alone, which is the shifted one; of the others the features alone decide, which alarm no less
    own = lambda X, new, *rest, **options: tell_apart(X, new, *rest, **options) if new[-1] else (1.0, 1.0, 1.0)  # noqa: E731
    monkeypatch.setattr(shift, "tell_apart", own)
    found = [find_shift(*controls(seed, shifted=1)[:2]) for seed in range(20)]
    assert np.mean(["P05" in alarms(rows) for rows in found]) >= 0.9
    assert np.mean([row["alarm"] for rows in found for row in rows if row["plate"] != "P05"]) <= 0.035
    monkeypatch.undo()
    clear = find_shift(*controls(0, shifted=1, by=30.0)[:2])
    row = clear[-1]
    assert row["low"] > 0.5 and row["n_others"] == 5 and row["unit"] == "plate" and row["n_features"] == 40
    assert len(row["shifted"]) == 5 and row["shifted"][0]["q"] <= 0.02 < abs(row["shifted"][0]["change"])
    assert row["n_kinds"] == 10 and kind_of(row["shifted"][0]["feature"]) == row["shifted"][0]["kind"]
    words = shift_text(row)
    assert f"{row['n_shifted']} of 10 kinds of features" in words and row["shifted"][0]["kind"] in words
    assert not shift_text(clear[0])


def test_a_feature_that_stands_at_a_bound_in_most_wells_says_nothing(without_classifier):
    values, plates, _ = controls(3)
    at_bound = np.ones(len(values))
    at_bound[plates == "P02"] -= np.linspace(0, 0.03, 8)
    at_bound[:2] -= 1e-4
    tied = values.assign(Cells_Correlation_Costes_DNA_ER=at_bound)
    assert find_shift(tied, plates) == find_shift(values, plates)
    free = tied.assign(Cells_Correlation_Costes_DNA_ER=at_bound - np.random.default_rng(0).normal(0, 1e-5, len(values)))
    rows = {row["plate"]: row for row in find_shift(free, plates)}
    assert rows["P02"]["alarm"] and rows["P02"]["shifted"][0]["kind"] == "Correlation DNA ER", (
        "without ties it is a change"
    )


def test_plates_of_one_night_that_shift_together_do_not_hide_each_other(without_classifier):
    options = {"plates": 10, "per_batch": 2, "shifted": 2}
    hidden, seen = [], []
    for seed in range(10):
        values, plates, batches = controls(seed, **options)
        hidden += alarms(find_shift(values, plates))
        found = find_shift(values, plates, batches=batches)
        seen += alarms(found)
        assert found[-1]["unit"] == "batch" and found[-1]["n_others"] == 4
    assert seen.count("P08") + seen.count("P09") >= 16 > hidden.count("P08") + hidden.count("P09")


@pytest.mark.parametrize("shifted", [2, 3, 6])
def test_plates_that_shift_alike_are_all_alarmed_against_those_learned_from(without_classifier, shifted):
    """A new lot of dye: among all plates it is soon what is usual, against those that were learned from it never is."""
    options = {"plates": 6 + shifted, "shifted": shifted}
    seen, old, hidden = [], [], []
    for seed in range(10):
        values, plates, _ = controls(seed, **options)
        known = sorted(set(plates))[:6]
        found = find_shift(values, plates, reference=known)
        assert all(row["learned"] and row["n_others"] == 6 - (row["plate"] in known) for row in found)
        assert found[:6] == find_shift(values[:48], plates[:48], reference=known), (
            "the new ones change nothing for the old"
        )
        old += [row["alarm"] for row in found[:6]]
        seen += [row["alarm"] for row in found[6:]]
        hidden += [row["alarm"] for row in find_shift(values, plates)[6:]]
    assert np.mean(seen) >= 0.9 and np.mean(old) <= 0.035 and np.mean(hidden) <= 0.2
    assert "unlike those of 6 plates learned from:" in shift_text(next(row for row in found[6:] if row["alarm"]))


@pytest.mark.parametrize(
    "options", [{}, {"effect": 0.0}, {"effect": 2.0}, {"wells": 4}, {"per_batch": 2, "of_batch": 1.0}], ids=str
)
def test_new_plates_that_differ_as_plates_do_are_hardly_ever_alarmed_against_those_learned_from(
    without_classifier, options
):
    rows = []
    for seed in range(25):
        values, plates, batches = controls(seed, plates=12, **options)
        rows += find_shift(values, plates, batches=batches, reference=sorted(set(plates))[:6])[6:]
    assert np.mean([row["alarm"] for row in rows]) <= 0.035
    assert {row["unit"] for row in rows} == {"batch" if "per_batch" in options else "plate"}


def test_a_shifted_batch_hides_no_other_from_those_learned_from(without_classifier):
    seen = []
    for seed in range(10):
        values, plates, batches = controls(seed, plates=12, per_batch=2, shifted=4)
        known = [*sorted(set(plates))[:8], "P99"]
        found = find_shift(values, plates, batches=batches, reference=known)
        assert (found[-1]["unit"], found[-1]["n_others"]) == ("batch", 4)
        seen += [row["alarm"] for row in found[8:]]
    assert np.mean(seen) >= 0.9


def test_with_few_plates_learned_from_all_are_compared_and_none_is_said_to_be_like_them(without_classifier):
    values, plates, _ = controls(0, shifted=1, by=30.0)
    found = find_shift(values, plates, reference=["P00", "P01"])
    reason = "only 2 plates learned from have the 3 control wells needed; it takes 3 such plates"
    assert {row["reason"] for row in found} == {f"{reason}; compared with all others instead"}
    assert [row | {"reason": ""} for row in found] == find_shift(values, plates) and alarms(found) == ["P05"]
    for known, words in ((["P00"], "only 1 plate learned from has"), ([], "no plate learned from has")):
        assert find_shift(values, plates, reference=known)[0]["reason"].startswith(words)
    three = find_shift(values, plates, reference=["P00", "P01", "P02"])
    assert [row["reason"] for row in three[:3]] == [reason.replace("plates", "other plates", 1)] * 3
    assert not any(row["reason"] for row in three[3:]) and alarms(three) == ["P05"]


def test_one_odd_control_well_is_no_shift_of_its_plate(without_classifier):
    values, plates, _ = controls(1)
    values.iloc[-1] += 100
    assert not alarms(find_shift(values, plates))


def test_what_cannot_be_judged_is_said_and_not_alarmed():
    values, plates, _ = controls(0, plates=3, shifted=1, by=100)
    found = find_shift(values, plates)
    reason = "only 2 other plates have the 3 control wells needed; it takes 3 such plates"
    assert [row["reason"] for row in found] == [reason] * 3
    two, one = (find_shift(values[plates <= last], plates[plates <= last]) for last in ("P01", "P00"))
    assert two[0]["reason"].startswith("only 1 other plate has the 3") and one[0]["reason"].startswith("no other plate")
    values, plates, _ = controls(0, plates=5, shifted=1, by=100)
    kept = np.r_[0:34]
    rows = find_shift(values.iloc[kept], plates[kept])
    assert rows[-1]["reason"] == "2 control wells with cells, 3 needed" and not alarms(rows)
    assert find_shift(values.head(0), plates[:0]) == []
    nothing = find_shift(values.assign(**dict.fromkeys(FEATURES, np.nan)), plates)
    assert {row["reason"] for row in nothing} == {"no feature has a value in every control well"}


def test_a_gap_or_a_constant_leaves_out_the_feature_only(without_classifier):
    values, plates, _ = controls(0, plates=5)
    values.loc[3, FEATURES[0]], values[FEATURES[1]] = np.nan, 7.0
    assert {row["n_features"] for row in find_shift(values, plates)} == {38}


def test_samples_of_one_kind_are_not_told_apart_and_others_are():
    intervals, inside = [], 0
    for seed in range(20):
        random = np.random.default_rng(seed)
        effects = random.normal(0, 1, (24, 10))
        X = random.normal(np.repeat(effects, 30, axis=0), 1)
        new, wells = np.repeat(np.arange(24) < 12, 30), np.repeat(np.arange(24), 30)
        auc, low, high = tell_apart(X, new, wells, seed=seed)
        intervals.append(auc)
        inside += low <= 0.5 <= high
    assert abs(np.mean(intervals) - 0.5) < 0.1 and inside >= 15, "cells of a well would be recognized by their well"
    X[new] += 3
    assert tell_apart(X, new, wells)[0] > 0.99
    with pytest.raises(ValueError, match="1 wells"):
        tell_apart(X[:60], wells[:60] == 0, wells[:60])


def labeled_cells(seed, *, of_well=0.0, of_plate=0.0, of_batch=0.0):
    """Cells of two classes on six plates of three batches; effects blur the feature that tells the classes."""
    random = np.random.default_rng(seed)
    rows = []
    for batch in range(3):
        shift_of_batch = random.normal(0, of_batch, 6)
        for plate in range(2):
            shift_of_plate = random.normal(0, of_plate, 6)
            for well in range(8):
                center = shift_of_batch + shift_of_plate + random.normal(0, of_well, 6)
                center[0] += 2 * (well % 2)
                cells = random.normal(center, 1, (25, 6))
                name = f"P{batch}{plate}"
                rows += [(cell, "ab"[well % 2], f"{name}/A{well:02d}", name, f"B{batch}") for cell in cells]
    X, *texts = zip(*rows, strict=True)
    return np.array(X), *(np.array(text) for text in texts)


def grade(*cells):
    params = load_method(METHODS, "logistic", "classification method").Params()
    found = grade_transfer(*cells, method="logistic", params=params, n_bootstrap=100)
    return {row["tested_on"]: row for row in found}


def test_without_effects_a_classifier_carries_everywhere():
    rows = grade(*labeled_cells(0))
    scores = [row["balanced_accuracy"] for row in rows.values()]
    assert list(rows) == list(shift.GRADES) and min(scores) > 0.8 and np.ptp(scores) < 0.02
    assert all(row["cells"] == 1200 for row in rows.values())
    batch = rows.pop("other batch")
    assert all(row["low"] <= row["balanced_accuracy"] <= row["high"] for row in rows.values()) and batch["low"] is None


def test_effects_show_where_they_are():
    mean = lambda **effects: [  # noqa: E731
        np.mean(scores)
        for scores in zip(
            *(
                [row["balanced_accuracy"] for row in grade(*labeled_cells(seed, **effects)).values()]
                for seed in range(4)
            ),
            strict=True,
        )
    ]
    same_well, other_well, other_plate, other_batch = mean(of_batch=3.0)
    assert other_plate - other_batch > 0.03 and abs(other_well - other_plate) < 0.03
    same_well, other_well, other_plate, other_batch = mean(of_plate=3.0)
    assert other_well - other_plate > 0.03 and abs(same_well - other_well) < 0.03


def test_a_step_that_cannot_be_tested_says_why():
    X, y, wells, plates, batches = labeled_cells(0)
    one = plates == "P00"
    rows = grade(X[one], y[one], wells[one], plates[one], np.full(one.sum(), ""))
    assert rows["other well"]["balanced_accuracy"] > 0.7
    assert rows["other plate"]["balanced_accuracy"] is None and "cannot be split" in rows["other plate"]["reason"]
    assert rows["other batch"]["reason"] == "the batch of some cells is not known"


def test_a_shifted_plate_is_warned_of_on_its_page_and_in_the_list_of_the_screen(tmp_path, monkeypatch):
    from plateloom.stages.profiling import controls_shift
    from plateloom.stages.report import _shift_notice
    from plateloom.stages.screen_report import _shift_table
    from plateloom.store.layout import plate_folder
    from plateloom.store.provenance import recipe
    from plateloom.store.tables import write_table

    monkeypatch.chdir(tmp_path)
    values, plates, _ = controls(0, shifted=1)
    for plate in np.unique(plates):
        table = values[plates == plate].reset_index(drop=True)
        keys = {"Metadata_Plate": plate, "Metadata_Batch": "", "Metadata_CellCount": 50}
        table = pd.DataFrame(keys, index=table.index).assign(Metadata_Control="negative").join(table)
        treated = table.assign(Metadata_Control="positive")
        treated[values.columns] += 1000.0
        dead = table.head(1).assign(Metadata_CellCount=0)
        dead[values.columns] = np.nan
        made = recipe("test", parameters={}, code="", inputs={})
        write_table(plate_folder(plate) / "aggregates.parquet", pd.concat([table, treated, dead]), made)
    assert {row["n_others"] for row in controls_shift(sorted(set(plates)), ["P00", "P01", "P02", "P03"])} == {3, 4}
    rows = controls_shift(sorted(set(plates)))
    assert alarms(rows) == ["P05"] and {row["n_wells"] for row in rows} == {8}
    screened = {"facts": {"shift": rows}}
    (notice,) = _shift_notice("P05", screened)
    assert notice.kind == "shift" and "unlike those of 5 other plates" in notice.text
    assert not _shift_notice("P01", screened) and not _shift_notice("P01", {})
    assert list(_shift_table(rows)["alarm"]) == ["no"] * 5 + ["yes"]


def test_plates_that_cannot_be_judged_are_no_alarm_and_show_why_and_no_dashes():
    from plateloom.report.screen import shift_section
    from plateloom.stages.screen_report import _shift_table

    values, plates, _ = controls(0, plates=2)
    shown = str(shift_section(_shift_table(find_shift(values, plates))))
    assert shown.count("<td>not judged</td>") == 2 and "only 1 other plate has" in shown
    assert "–" not in shown and ">AUC " not in shown


def test_channels_may_be_called_by_numbers():
    features = [
        "Cells_Intensity_MeanIntensity_488",
        "Cells_Intensity_MeanIntensity_Alexa_561",
        "Cells_Correlation_K_405_488",
    ]
    features += [
        "Cells_Texture_Contrast_488_3_00_256",
        "Cells_RadialDistribution_FracAtD_488_1of4",
        "Cells_Granularity_3_488",
    ]
    features += ["Cells_RadialDistribution_ZernikePhase_488_2_0", "Cells_AreaShape_Zernike_4_0"]
    assert [kind_of(name) for name in features] == [
        "Intensity 488",
        "Intensity Alexa 561",
        "Correlation 405 488",
        "Texture 488",
        "RadialDistribution 488",
        "Granularity 488",
        "RadialDistribution 488",
        "AreaShape",
    ]
