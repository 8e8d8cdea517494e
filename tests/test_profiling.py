"""Profiling against plain numpy and pandas, closed forms, and the published accuracy on BBBC021."""

import functools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import simulate
from in_process import run_stages
from pyarrow import parquet
from pydantic import ValidationError

from plateloom.planning import STAGES
from plateloom.profiling import (
    Params,
    aggregate_well,
    annotate,
    assay_quality,
    call_hits,
    compute_readout,
    dose_response,
    feature_columns,
    find_redundant,
    fit_hill,
    join_plates,
    normalize_profiles,
    robust_z,
    select_features,
)
from plateloom.store.provenance import read_json

DATA = Path(__file__).parents[2] / "shared" / "data"
AREA, GFP, RNA = "Nuclei_AreaShape_Area", "Nuclei_Intensity_MeanIntensity_GFP", "Cells_Intensity_MeanIntensity_RNA"


def make_profiles(seed=0, wells=24, controls=12, plate="P1", shift=0.0):
    """One plate: the first wells are negative controls."""
    random = np.random.default_rng(seed)
    table = pd.DataFrame(random.normal(10, 2, (wells, 3)) + shift, columns=[AREA, GFP, RNA])
    table.insert(0, "Metadata_Plate", plate)
    table.insert(1, "Metadata_Well", [f"A{i + 1:02d}" for i in range(wells)])
    table.insert(2, "Metadata_Control", ["negative"] * controls + [""] * (wells - controls))
    table.insert(3, "Metadata_CellCount", 100)
    return table


def test_positions_numbers_and_keys_are_no_features():
    names = ["Metadata_Well", AREA, "Nuclei_Location_Center_X", "Nuclei_AreaShape_BoundingBoxMinimum_X"]
    names += [
        "Nuclei_AreaShape_Center_Y",
        "Cells_Number_Object_Number",
        "Nuclei_Parent_Cells",
        "Nuclei_RadialDistribution_FracAtD_1",
    ]
    table = pd.DataFrame(np.ones((2, len(names))), columns=names).assign(
        Nuclei_AreaShape_Note="text", Nuclei_Is_Edge=True
    )
    assert feature_columns(table) == [AREA, "Nuclei_RadialDistribution_FracAtD_1"]


@pytest.mark.parametrize("statistic", ["median", "mean"])
def test_a_well_is_the_statistic_of_its_finite_values(statistic):
    values = np.array([3.0, np.nan, 1.0, np.inf, 8.0])
    row = aggregate_well(pd.DataFrame({AREA: values, GFP: np.arange(5)}), [AREA, GFP], statistic=statistic)
    expected = {"median": np.median, "mean": np.mean}[statistic]
    assert row == {AREA: expected([3.0, 1.0, 8.0]), GFP: 2.0, "Metadata_CellCount": 5}


@pytest.mark.parametrize("statistic", ["median", "mean"])
def test_wells_are_those_that_pycytominer_aggregates_and_annotates(statistic):
    from pycytominer import aggregate
    from pycytominer import annotate as annotate_by_pycytominer

    random = np.random.default_rng(0)
    wells = ["A01", "B12", "C03"]
    cells = pd.DataFrame({"Metadata_Plate": "P", "Metadata_Well": np.repeat(wells, 40)})
    cells[[AREA, GFP]] = random.lognormal(size=(120, 2))
    cells.loc[random.integers(0, 120, 9), GFP] = np.nan
    plate_map = pd.DataFrame({"well": wells, "treatment": ["DMSO", "a", "b"], "dose": [0.0, 1.0, 2.0]})
    rows = [aggregate_well(found, [AREA, GFP], statistic=statistic) for _, found in cells.groupby("Metadata_Well")]
    ours = annotate(pd.DataFrame(rows).assign(Metadata_Plate="P", Metadata_Well=wells), plate_map)
    strata = ["Metadata_Plate", "Metadata_Well"]
    theirs = aggregate(cells, strata=strata, features=[AREA, GFP], operation=statistic)
    renamed = plate_map.rename(columns={"well": "Metadata_well", "treatment": "Treatment", "dose": "Dose"})
    theirs = annotate_by_pycytominer(theirs, renamed, join_on=["Metadata_well", "Metadata_Well"])
    theirs = theirs.set_index("Metadata_Well").loc[wells]
    np.testing.assert_allclose(ours[[AREA, GFP]], theirs[[AREA, GFP]], rtol=1e-12)
    assert ours["Metadata_Treatment"].tolist() == theirs["Metadata_Treatment"].tolist() == ["DMSO", "a", "b"]
    assert ours["Metadata_Dose"].tolist() == theirs["Metadata_Dose"].tolist()


def test_a_well_without_cells_keeps_its_columns_and_counts_zero():
    row = aggregate_well(pd.DataFrame({AREA: np.empty(0), GFP: np.empty(0)}), [AREA, GFP])
    assert row["Metadata_CellCount"] == 0
    assert np.isnan(row[AREA]) and np.isnan(row[GFP])


def test_an_unknown_statistic_is_refused():
    with pytest.raises(ValueError, match="'mode'"):
        aggregate_well(pd.DataFrame({AREA: [1.0]}), statistic="mode")


def test_the_plate_map_joins_by_well_and_leaves_other_wells_without_treatment():
    profiles = pd.DataFrame({"Metadata_Plate": "P", "Metadata_Well": ["A01", "B12", "C03"], AREA: [1.0, 2.0, 3.0]})
    plate_map = pd.DataFrame(
        {
            "well": ["B12", "a1"],
            "treatment": ["nocodazole", "DMSO"],
            "dose": ["0.5", None],
            "unit": ["µM", None],
            "control": [None, "Negative"],
            "batch": ["x", "y"],
        }
    )
    table = annotate(profiles, plate_map)
    assert list(table[AREA]) == [1.0, 2.0, 3.0]
    assert list(table["Metadata_Treatment"]) == ["DMSO", "nocodazole", None]
    assert list(table["Metadata_Control"]) == ["negative", "", ""]
    assert list(table["Metadata_Unit"]) == ["", "µM", ""]
    assert table["Metadata_Dose"].dtype == float and table["Metadata_Dose"].isna().tolist() == [True, False, True]
    assert table["Metadata_Batch"].tolist()[:2] == ["y", "x"]
    assert list(annotate(table, plate_map).columns) == list(table.columns), "annotating twice changes nothing"


def test_a_plate_map_with_plates_joins_by_plate_and_well():
    profiles = pd.DataFrame({"Metadata_Plate": ["P1", "P2"], "Metadata_Well": ["A01", "A01"], AREA: [1.0, 2.0]})
    plate_map = pd.DataFrame({"plate": ["P2", "P1"], "well": ["A01", "A01"], "treatment": ["b", "a"]})
    assert list(annotate(profiles, plate_map)["Metadata_Treatment"]) == ["a", "b"]


@pytest.mark.parametrize(
    "plate_map, message",
    [
        ({"well": ["A1", "A01"], "treatment": ["a", "b"]}, "more than once"),
        ({"well": ["A1"]}, "treatment"),
        ({"well": ["A1"], "treatment": ["a"], "control": ["neutral"]}, "neutral"),
    ],
)
def test_a_wrong_plate_map_is_refused_with_the_reason(plate_map, message):
    with pytest.raises(ValueError, match=message):
        annotate(pd.DataFrame({"Metadata_Well": ["A01"]}), pd.DataFrame(plate_map))


def test_unknown_settings_are_refused():
    with pytest.raises(ValidationError):
        Params(samples="Metadata_Well == 'A01'")
    with pytest.raises(ValidationError):
        Params(feature_select=["spherize"])


def test_the_readout_is_the_ratio_of_two_aggregates_in_log2():
    profiles = pd.DataFrame({GFP: [8.0, 1.0, 1.0, np.nan], RNA: [2.0, 0.0, -1.0, 1.0]})
    assert list(compute_readout(profiles, Params(readout=GFP)))[:3] == [8.0, 1.0, 1.0]
    ratio = compute_readout(profiles, Params(readout=GFP, readout_denominator=RNA))
    np.testing.assert_array_equal(ratio, [4.0, np.nan, -1.0, np.nan])
    logs = compute_readout(profiles, Params(readout=GFP, readout_denominator=RNA, readout_log=True))
    np.testing.assert_array_equal(logs, [2.0, np.nan, np.nan, np.nan])
    assert logs.name == "Metadata_Readout"


def test_a_readout_that_does_not_exist_is_named_with_its_neighbor():
    with pytest.raises(ValueError, match=f"Did you mean '{GFP}'"):
        compute_readout(pd.DataFrame({GFP: [1.0]}), Params(readout=GFP[:-1]))


@pytest.mark.parametrize("method", ["mad_robustize", "standardize", "robustize"])
@pytest.mark.parametrize("reference", ["negative", "all"])
def test_normalization_is_the_plain_formula_on_the_reference_wells(method, reference):
    profiles = make_profiles()
    normalized, report = normalize_profiles(profiles, Params(method=method, normalize_to=reference))
    features = profiles[[AREA, GFP, RNA]].to_numpy()
    within = features[:12] if reference == "negative" else features
    if method == "mad_robustize":
        center = np.median(within, axis=0)
        scale = 1.482602218505602 * np.median(np.abs(within - center), axis=0)
        tolerance = 1e-5  # pycytominer writes 1.4826
    elif method == "standardize":
        center, scale, tolerance = within.mean(axis=0), within.std(axis=0), 1e-12
    else:
        center, scale, tolerance = (
            np.median(within, axis=0),
            np.subtract(*np.percentile(within, [75, 25], axis=0)),
            1e-12,
        )
    np.testing.assert_allclose(normalized[[AREA, GFP, RNA]], (features - center) / scale, rtol=tolerance, atol=1e-12)
    assert report["status"] == "normalized" and report["n_reference"] == len(within) and report["dropped"] == {}
    assert normalized["Metadata_Normalized"].all()
    assert list(normalized["Metadata_Well"]) == list(profiles["Metadata_Well"])


@pytest.mark.parametrize("method", ["mad_robustize", "standardize", "robustize"])
def test_features_without_spread_among_the_controls_are_dropped_and_listed(method):
    profiles = make_profiles().assign(Cells_Count_Constant=0.1, Cells_Count_Empty=np.nan)
    profiles["Cells_Count_ControlsConstant"] = [7.0] * 12 + list(range(12))
    profiles["Cells_Count_FewValues"] = [1.0, 2.0] + [np.nan] * 10 + [np.inf] * 12
    normalized, report = normalize_profiles(profiles, Params(method=method))
    assert set(report["dropped"]) == {name for name in profiles if "Count_" in name}
    assert "no spread" in report["dropped"]["Cells_Count_Constant"]
    assert "2 finite" in report["dropped"]["Cells_Count_FewValues"]
    assert feature_columns(normalized) == [AREA, GFP, RNA] and report["n_features"] == 3
    assert np.isfinite(normalized[[AREA, GFP, RNA]].to_numpy()).all()


def test_a_plate_with_too_few_controls_is_not_normalized_to_itself():
    profiles = make_profiles(controls=2)
    normalized, report = normalize_profiles(profiles, Params())
    assert report["status"] == "no_controls" and "2 negative control wells" in report["reason"]
    assert not normalized["Metadata_Normalized"].any()
    np.testing.assert_array_equal(normalized[[AREA, GFP, RNA]], profiles[[AREA, GFP, RNA]])


def test_empty_control_wells_do_not_count_as_controls():
    profiles = make_profiles(controls=3)
    profiles.loc[0, "Metadata_CellCount"] = 0
    profiles.loc[0, [AREA, GFP, RNA]] = np.nan
    assert normalize_profiles(profiles, Params())[1]["status"] == "no_controls"


def test_an_empty_well_stays_a_row_of_nan():
    profiles = make_profiles()
    profiles.loc[20, [AREA, GFP, RNA]] = np.nan
    profiles.loc[20, "Metadata_CellCount"] = 0
    normalized, _ = normalize_profiles(profiles, Params())
    assert normalized.loc[20, [AREA, GFP, RNA]].isna().all() and len(normalized) == 24


def test_no_text_of_the_user_is_ever_executed():
    profiles = make_profiles()
    profiles["Metadata_Treatment"] = "@pd.io.common.os.system('touch /tmp/executed') == 0"
    profiles["Metadata_`x`"] = "quote ` and '"
    normalized, report = normalize_profiles(profiles, Params())
    assert report["status"] == "normalized" and "Metadata_`x`" in normalized


def test_several_plates_at_once_are_refused():
    with pytest.raises(ValueError, match="one plate at a time"):
        normalize_profiles(pd.concat([make_profiles(), make_profiles(plate="P2")]), Params())


def test_plates_are_joined_on_the_features_that_all_of_them_kept():
    one = normalize_profiles(make_profiles(), Params())[0]
    other = make_profiles(1, plate="P2").assign(Metadata_Extra="x")
    other[GFP] = 5.0
    joined, dropped = join_plates([one, normalize_profiles(other, Params())[0]])
    assert dropped == [GFP] and feature_columns(joined) == [AREA, RNA]
    assert joined["Metadata_Plate"].tolist() == ["P1"] * 24 + ["P2"] * 24
    assert joined["Metadata_Extra"].tolist() == [None] * 24 + ["x"] * 24


def test_selection_drops_what_is_empty_constant_or_redundant_and_says_which():
    profiles = make_profiles().assign(Cells_A_Constant=1.0, Cells_A_Gaps=[np.nan, np.nan] + [1.0, 2.0] * 11)
    profiles["Cells_A_Copy"] = profiles[AREA] * 2 + 1
    selected, dropped = select_features(profiles, Params())
    assert dropped["drop_na_columns"] == ["Cells_A_Gaps"]
    assert dropped["variance_threshold"] == ["Cells_A_Constant"]
    assert len(dropped["correlation_threshold"]) == 1 and set(dropped["correlation_threshold"]) < {AREA, "Cells_A_Copy"}
    assert len(feature_columns(selected)) == 3 and len(selected) == len(profiles)


@pytest.mark.parametrize(("wells", "gaps"), [(2, 0.0), (3, 0.0), (9, 0.05), (40, 0.0), (40, 0.05)])
def test_redundant_features_are_those_that_pycytominer_finds(wells, gaps):
    from pycytominer.operations import correlation_threshold

    random = np.random.default_rng(wells)
    base = random.normal(size=(wells, 12))
    values = np.hstack([base, base[:, :8] + 0.3 * random.normal(size=(wells, 8)), -base[:, :3], base[:, :2]])
    values[random.random(values.shape) < gaps] = np.nan
    table = pd.DataFrame(values, columns=[f"Cells_Intensity_{i}" for i in range(values.shape[1])])
    for threshold in (0.0, 0.5, 0.9):
        with np.errstate(divide="ignore", invalid="ignore"):
            expected = correlation_threshold(table, features=list(table), threshold=threshold)
        assert find_redundant(table, threshold) == set(expected) and expected


def test_empty_wells_do_not_make_selection_drop_everything():
    profiles = make_profiles()
    profiles.loc[:5, [AREA, GFP, RNA]] = np.nan
    selected, dropped = select_features(profiles, Params())
    assert feature_columns(selected) == [AREA, GFP, RNA] and not any(dropped.values())


def test_selection_of_constant_features_leaves_none():
    profiles = make_profiles().assign(**{AREA: 1.0, GFP: 2.0, RNA: 3.0})
    selected, dropped = select_features(profiles, Params())
    assert feature_columns(selected) == [] and dropped["variance_threshold"] == sorted([AREA, GFP, RNA])
    assert len(select_features(profiles, Params(feature_select=["correlation_threshold"]))[0]) == 24


def test_z_prime_and_ssmd_follow_their_formulas():
    positive, negative = np.array([10.0, 11.0, 12.0, np.nan]), np.array([1.0, 2.0, 3.0, 4.0])
    quality = assay_quality(positive, negative)
    sd = np.std([1, 2, 3, 4], ddof=1)
    assert quality["z_prime"] == pytest.approx(1 - 3 * (1 + sd) / 8.5)
    assert quality["robust_z_prime"] == pytest.approx(1 - 3 * 1.4826 * (1 + 1) / 8.5, abs=1e-5)
    assert quality["ssmd"] == pytest.approx(8.5 / np.sqrt(1 + sd**2))
    assert (quality["n_positive"], quality["n_negative"], quality["reason"]) == (3, 4, "")
    assert quality["z_prime_low"] <= quality["z_prime"] <= quality["z_prime_high"]
    assert assay_quality(positive, negative) == quality


def test_the_bootstrap_interval_covers_the_true_z_prime():
    random = np.random.default_rng(3)
    covered = 0
    for _ in range(200):
        quality = assay_quality(random.normal(10, 1, 32), random.normal(0, 1, 32), n_bootstrap=200)
        covered += quality["z_prime_low"] <= 1 - 6 / 10 <= quality["z_prime_high"]
    assert 170 <= covered <= 199


@pytest.mark.parametrize("positive, reason", [([1.0, 2.0], "fewer than 3"), ([1.0, 2.0, 3.0], "no separation")])
def test_the_quality_is_undefined_with_few_wells_or_no_separation(positive, reason):
    quality = assay_quality(positive, [3.0, 2.0, 1.0])
    assert np.isnan(quality["z_prime"]) and np.isnan(quality["robust_z_prime_low"]) and reason in quality["reason"]


def hill_curve(dose, ec50, hill, bottom, top):
    return bottom + (top - bottom) * dose**hill / (dose**hill + ec50**hill)


@pytest.mark.parametrize("truth", [(0.3, 1.0, 0.0, 5.0), (2.0, 3.0, 900.0, 100.0), (1e-8, 1.5, -3e-6, 4e-6)])
def test_a_noiseless_hill_curve_is_recovered_rising_or_falling(truth):
    dose = np.repeat(truth[0] * np.geomspace(1 / 50, 50, 9), 2)
    dose[:2] = 0
    fit = fit_hill(dose, hill_curve(dose, *truth))
    assert [fit[name] for name in ("ec50", "hill", "bottom", "top")] == pytest.approx(
        truth, rel=1e-4, abs=1e-4 * abs(truth[3])
    )
    assert fit["r2"] == pytest.approx(1) and fit["reason"] == "" and fit["n"] == 18 and fit["n_doses"] == 9


def test_the_interval_of_the_ec50_covers_the_truth_about_as_often_as_it_says():
    random, covered, dose = np.random.default_rng(0), 0, np.repeat(np.geomspace(0.01, 30, 9), 3)
    for _ in range(60):
        fit = fit_hill(dose, hill_curve(dose, 0.5, 1.2, 1, 5) + random.normal(0, 0.4, len(dose)))
        covered += fit["ec50_low"] <= 0.5 <= fit["ec50_high"]
    assert 50 <= covered <= 60


@functools.cache
def fits_of_noise():
    random, dose = np.random.default_rng(1), np.repeat(np.geomspace(0.01, 10, 8), 2)
    return [fit_hill(dose, random.normal(size=len(dose))) for _ in range(100)]


def test_noise_is_not_given_an_ec50_more_often_than_the_level_says():
    assert np.mean([np.isfinite(fit["ec50"]) for fit in fits_of_noise()]) <= 0.1


CURVE = ("ec50", "ec50_low", "ec50_high", "hill", "bottom", "top")


def test_flat_lines_give_no_curve_however_they_wiggle():
    assert sum(fit["reason"] == "" for fit in fits_of_noise()) <= 1
    for fit in fits_of_noise():
        assert fit["reason"] == "" or all(np.isnan(fit[name]) for name in CURVE)


def test_of_a_step_between_two_doses_the_interval_is_the_gap_between_them():
    dose = np.repeat([0.01, 0.1, 1.0, 10.0, 100.0], 3)
    response = (dose >= 1) + np.random.default_rng(2).normal(0, 0.02, len(dose))
    fit = fit_hill(dose, response)
    assert fit["reason"] == "" and 0.1 < fit["ec50_low"] < fit["ec50"] < fit["ec50_high"] < 1
    assert fit["ec50_high"] / fit["ec50_low"] > 3, "nothing is known of where in the gap it lies"


@pytest.mark.parametrize("ec50, reason", [(3.0, ""), (20.0, "EC50"), (500.0, "EC50")])
def test_a_curve_without_a_plateau_has_no_ec50(ec50, reason):
    dose = np.repeat(np.geomspace(0.01, 30, 9), 3)
    response = hill_curve(dose, ec50, 1.0, 0, 10 * max(1, ec50 / 30)) + np.random.default_rng(4).normal(0, 0.3, 27)
    fit = fit_hill(dose, response)
    assert fit["p"] < 1e-6, "that it depends on the dose is beyond doubt"
    assert reason in fit["reason"] and (fit["reason"] == "") == (reason == "")
    assert np.isnan([fit[name] for name in CURVE]).all() == (reason != "")


def test_one_replicate_is_enough_where_the_noise_is_small():
    random, dose = np.random.default_rng(6), np.geomspace(0.01, 10, 8)
    fit = fit_hill(dose, hill_curve(dose, 0.3, 1.2, 1, 5) + random.normal(0, 0.1, 8))
    assert fit["reason"] == "" and fit["n"] == 8 and fit["ec50_low"] < 0.3 < fit["ec50_high"] < 1
    flat = [fit_hill(dose, random.normal(size=8))["reason"] for _ in range(40)]
    assert sum(reason == "" for reason in flat) <= 2


def test_a_response_within_the_spread_of_the_negative_controls_is_none():
    dose = np.repeat(np.geomspace(0.03, 10, 6), 4)
    effect = hill_curve(dose, 0.6, 3.0, 0, 1.0) + np.random.default_rng(0).normal(0, 0.1, len(dose))
    noise = np.random.default_rng(1).normal(0, 1.0, 40)
    plates = np.repeat(["P1", "P2"], 20)
    keys = ["Metadata_Plate", "Metadata_Treatment", "Metadata_Dose", "Metadata_Control", "Metadata_Readout"]

    def fitted(spread):
        rows = [("P1", "weak", d, "", value) for d, value in zip(dose, effect, strict=True)]
        rows += [
            (plate, "DMSO", 0.0, "negative", value * spread + 100 * (plate == "P2"))
            for plate, value in zip(plates, noise, strict=True)
        ]
        rows += [("P1", "reference", 10.0, "positive", 99.0)] * 9
        return dose_response(pd.DataFrame(rows, columns=keys)).set_index("Metadata_Treatment")

    assert list(fitted(0.1).index) == ["weak"], "controls are no dose response"
    assert 0.3 < fitted(0.1).loc["weak", "ec50"] < 1
    lost = fitted(0.5).loc["weak"]
    assert "spread of the negative controls" in lost["reason"] and lost["p"] < 0.05 and np.isnan(lost["ec50"])
    assert fitted(0.1).loc["weak", "reason"] == "", "the level of a plate is no spread"


def test_each_treatment_has_a_row_and_a_failed_fit_its_reason():
    dose = np.geomspace(0.1, 10, 6)
    tables = {
        "good": (dose, hill_curve(dose, 1, 1.5, 0, 1)),
        "constant": (dose, np.ones(6)),
        "few": (dose[:2], np.ones(2)),
        "beyond": (dose, 1e-3 * dose**1.0),
        "empty": (dose, np.full(6, np.nan)),
    }
    rows = [
        (name, d, y, "µM", "") for name, (doses, values) in tables.items() for d, y in zip(doses, values, strict=True)
    ]
    rows += [
        ("units", 1.0, 1.0, "nM", ""),
        ("units", 1.0, 1.0, "µM", ""),
        (None, 1.0, 1.0, "", ""),
        ("DMSO", np.nan, 1.0, "", ""),
    ]
    names = ["Metadata_Treatment", "Metadata_Dose", "Metadata_Readout", "Metadata_Unit", "Metadata_Control"]
    table = dose_response(pd.DataFrame(rows, columns=names)).set_index("Metadata_Treatment")
    assert list(table.index) == ["beyond", "constant", "empty", "few", "good", "units"]
    assert table.loc["good", "ec50"] == pytest.approx(1, rel=1e-3) and table.loc["good", "Metadata_Unit"] == "µM"
    assert table["ec50"].isna().sum() == 5 and (table["reason"] == "").sum() == 1
    assert "beyond the doses" in table.loc["beyond", "reason"] and "constant" in table.loc["constant", "reason"]
    assert "different units" in table.loc["units", "reason"]


def test_an_empty_readout_gives_an_empty_table_with_all_columns():
    names = ["Metadata_Treatment", "Metadata_Dose", "Metadata_Readout"]
    table = dose_response(pd.DataFrame({"Metadata_Treatment": [None], names[1]: [1.0], names[2]: [1.0]}))
    assert len(table) == 0 and {"ec50", "hill", "top", "bottom", "r2", "n", "reason"} <= set(table.columns)


def test_robust_z_without_spread_is_nan():
    assert np.isnan(robust_z([1.0, 2.0], [1.0, 1.0, 1.0])).all() and np.isnan(robust_z([1.0], [])).all()


def make_readout(seed=0, plates=3):
    """Plates with their own level and gain; 'strong' is 8 sd up, 'weak' nothing, 'single' on one plate only."""
    random, rows = np.random.default_rng(seed), []
    for plate in range(plates):
        effects = [("DMSO", np.nan, "negative", 0.0)] * 16 + [
            ("strong", 1.0, "", 8.0),
            ("strong", 0.1, "", 0.0),
            ("weak", 1.0, "", 0.0),
        ]
        effects += [("down", 1.0, "", -8.0)] + ([("single", 1.0, "", 9.0)] if plate == 0 else [])
        for treatment, dose, control, effect in effects:
            rows.append(
                (f"P{plate}", treatment, dose, control, 100 * plate + (plate + 1) * (effect + random.normal(0, 0.5)))
            )
    names = ["Metadata_Plate", "Metadata_Treatment", "Metadata_Dose", "Metadata_Control", "Metadata_Readout"]
    return pd.DataFrame(rows, columns=names)


def test_hits_are_called_against_the_controls_of_their_own_plate():
    readout = make_readout()
    hits, report = call_hits(readout, Params())
    found = hits.set_index(["Metadata_Treatment", "Metadata_Dose"])
    assert found["hit"].to_dict() == {
        ("strong", 1.0): True,
        ("down", 1.0): True,
        ("single", 1.0): False,
        ("strong", 0.1): False,
        ("weak", 1.0): False,
    }
    assert found.loc[("single", 1.0), "reason"] == "1 well, 2 needed"
    scores = []
    for _, wells in readout.groupby("Metadata_Plate"):
        controls = wells.loc[wells["Metadata_Control"] == "negative", "Metadata_Readout"]
        mad = 1.482602218505602 * np.median(np.abs(controls - np.median(controls)))
        value = wells.loc[
            (wells["Metadata_Treatment"] == "strong") & (wells["Metadata_Dose"] == 1), "Metadata_Readout"
        ].item()
        scores.append((value - np.median(controls)) / mad)
    assert found.loc[("strong", 1.0), "robust_z"] == pytest.approx(np.median(scores))
    assert found.loc[("strong", 1.0), "n_beyond"] == 3 and found.loc[("strong", 1.0), "n_plates"] == 3
    assert report["skipped_plates"] == {} and 0 <= report["false_rate"] < 0.1
    assert call_hits(readout, Params(hit_min_replicates=1))[0].set_index("Metadata_Treatment").loc["single", "hit"]


def test_positive_controls_are_listed_and_are_no_hits():
    readout = make_readout()
    strong = readout[(readout["Metadata_Treatment"] == "strong") & (readout["Metadata_Dose"] == 1)]
    hits, _ = call_hits(pd.concat([readout, strong.assign(Metadata_Control="positive")]), Params())
    found = hits.set_index(["Metadata_Treatment", "Metadata_Dose", "Metadata_Control"])
    assert found.loc[("strong", 1.0, ""), "hit"] and not found.loc[("strong", 1.0, "positive"), "hit"]
    control = found.loc[("strong", 1.0, "positive")]
    assert control["reason"] == "positive control" and control["robust_z"] > 3 and control["n_beyond"] == 3


def test_a_plate_without_controls_is_named_and_calls_no_hit():
    readout = make_readout(plates=2)
    readout = readout[(readout["Metadata_Control"] == "") | (readout["Metadata_Plate"] == "P1")]
    hits, report = call_hits(readout, Params())
    assert list(report["skipped_plates"]) == ["P0"]
    reason = hits.set_index("Metadata_Treatment").loc["single", "reason"]
    assert not hits["hit"].any() and reason == "its plates cannot be compared with negative controls"


@pytest.mark.parametrize(
    "flagged, cells, reason",
    [
        (["P0", "P1"], 0, "all wells left out: flagged fields"),
        (["P1"], 0, "no well with a value, 1 of 2 left out: flagged fields"),
        ([], 0, "no cell in any of its wells"),
        ([], 7, "no well with a value"),
    ],
)
def test_a_treatment_without_a_value_says_why_it_has_none(flagged, cells, reason):
    readout = make_readout(plates=2).assign(Metadata_CellCount=7)
    down = readout["Metadata_Treatment"] == "down"
    readout.loc[down, ["Metadata_Readout", "Metadata_CellCount"]] = [np.nan, cells]
    hits, _ = call_hits(readout, Params(), flagged=down & readout["Metadata_Plate"].isin(flagged))
    assert hits.set_index("Metadata_Treatment").loc["down", "reason"] == reason


def test_wells_are_left_out_where_all_fields_are_flagged_and_flags_count(monkeypatch):
    from plateloom.stages import fields as stage

    names = ["Metadata_Well", "SourceField", "Reason"]
    fields = [
        ("A01", 1, "dark"),
        ("A01", 1, ""),
        ("A01", 2, "dark"),
        ("A02", 1, "dark"),
        ("A02", 2, ""),
        ("A03", 1, ""),
    ]
    monkeypatch.setattr(stage, "read_table", lambda *_: pd.DataFrame(fields, columns=names))
    records = [{"plate": "P1", "facts": {"flagged_fields": 3}}, {"plate": "P2", "facts": {"flagged_fields": 0}}]
    assert stage.flagged_wells(records) == {("P1", "A01")}


def test_a_screen_without_wells_gives_an_empty_hit_table():
    hits, report = call_hits(make_readout().iloc[:0], Params())
    assert len(hits) == 0 and {"robust_z", "hit", "n"} <= set(hits.columns) and np.isnan(report["false_rate"])


@pytest.mark.slow
@pytest.mark.long
def test_normalization_reaches_the_published_accuracy_on_bbbc021():
    folder = DATA / "bbbc021_ljosa_profiles"
    if not folder.is_dir():
        pytest.skip("../shared/data/bbbc021_ljosa_profiles is not there")
    wells = pd.read_csv(folder / "ljosa_jbiomolscreen_2013_per_well_mean.csv.gz")
    wells = wells.rename(columns={"Image_Metadata_Plate": "Metadata_Plate", "Image_Metadata_Well": "Metadata_Well"})
    images = pd.read_csv(folder / "BBBC021_v1_image.csv.gz").drop_duplicates(
        ["Image_Metadata_Plate_DAPI", "Image_Metadata_Well_DAPI"]
    )
    mechanisms = pd.read_csv(folder / "BBBC021_v1_moa.csv").rename(
        columns={"compound": "treatment", "concentration": "dose"}
    )
    plate_map = pd.DataFrame(
        {
            "plate": images["Image_Metadata_Plate_DAPI"].str.split("/").str[-1],
            "well": images["Image_Metadata_Well_DAPI"],
            "treatment": images["Image_Metadata_Compound"],
            "dose": images["Image_Metadata_Concentration"],
            "control": np.where(images["Image_Metadata_Compound"] == "DMSO", "negative", ""),
        }
    ).merge(mechanisms, on=["treatment", "dose"], how="left")
    wells = annotate(wells, plate_map)
    features = [name for name in wells.columns if not name.startswith("Metadata_")]
    assert len(features) == 516
    plates = [
        normalize_profiles(g, Params(method="standardize"), features=features)
        for _, g in wells.groupby("Metadata_Plate")
    ]
    assert all(report["status"] == "normalized" for _, report in plates)
    shared = sorted(set.intersection(*(set(table.columns) for table, _ in plates)) & set(features))
    profiles = pd.concat([table for table, _ in plates])
    treated = profiles[profiles["Metadata_Control"] == ""]
    treatments = treated.groupby(["Metadata_Treatment", "Metadata_Dose", "Metadata_Moa"])[shared].mean().reset_index()
    unit = treatments[shared].to_numpy()
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    similarity = unit @ unit.T
    compounds = treatments["Metadata_Treatment"].to_numpy()
    similarity[compounds[:, None] == compounds] = -np.inf
    moa = treatments["Metadata_Moa"].to_numpy()
    assert len(treatments) == 103
    assert (moa[similarity.argmax(axis=1)] == moa).sum() >= 84


@pytest.mark.slow
def test_fields_of_unlike_counts_are_left_out_where_asked_for_and_the_page_says_why(tmp_path, monkeypatch):
    folder = simulate(
        tmp_path / "screen", rows=2, columns=3, fields=4, size_px=224, cells_per_field=30.0, treatments=(), seed=5
    )
    monkeypatch.chdir(folder)
    stages = ("profiling", "report")

    def configure(**profiling):
        settings = yaml.safe_load(Path("config.yaml").read_text())
        settings |= {"features": {"families": ["Intensity"]}, "latent": {"autoencoder": {"enabled": False}}}
        settings["profiling"] = settings.get("profiling", {}) | profiling
        Path("config.yaml").write_text(yaml.safe_dump(settings))

    configure()
    run_stages(folder, set(STAGES) - {"profiles", "map", "maps", "screen_report", *stages})
    plate = Path("results/plates/P1")
    table = parquet.read_table(plate / "segmentation/A02.parquet")
    counts = table["Count_Nuclei"].to_numpy().copy()
    assert len(counts) == 4 and np.median(np.delete(counts, 2)) >= 15
    counts[2] = 0  # as if its nuclei had been missed
    at = table.schema.get_field_index("Count_Nuclei")
    parquet.write_table(table.set_column(at, table.schema.field(at), [counts]), plate / "segmentation/A02.parquet")
    cells = pd.read_parquet(plate / "features/A02.parquet", columns=["Metadata_Field"])["Metadata_Field"].value_counts()
    found = {}
    for asked in (False, True):
        configure(exclude_unlike_counts=asked)
        run_stages(folder, stages)
        wells = pd.read_parquet(plate / "aggregates.parquet").set_index("Metadata_Well")["Metadata_CellCount"]
        facts = read_json(plate / "records/profiling/part-0.json")["facts"]
        notices = read_json(plate / "records/report/part-0.json")["facts"]["notices"]
        (said,) = [one["text"] for one in notices if "nuclei than the others" in one["text"]]
        found[asked] = wells, facts["unlike_fields"], said, (plate / "report.html").read_text()
    wells, number, said, page = found[False]
    assert wells["A02"] == cells.sum() and number == 0
    assert "which are used all the same: A02 field 3 (0; others" in said and "unlike its well" not in page
    less, number, said, page = found[True]
    assert less["A02"] == cells.sum() - cells[3] and number == 1
    assert (less.drop("A02") == wells.drop("A02")).all()
    assert "which are left out of values per well: A02 field 3 (0; others" in said
    assert "unlike its well" in page and "0 nuclei; the other fields of the well have" in page
