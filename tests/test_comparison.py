"""Comparison of spaces: retrieval against copairs, intervals that hold what they promise, profiles of latents, the stages."""

import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from conftest import simulate
from in_process import run_stages

from plateloom import comparison, profiling
from plateloom.cli import cli
from plateloom.cli.compare import _list_plates
from plateloom.errors import ConfigError, PlateLayoutError
from plateloom.planning import STAGES
from plateloom.report.comparison import comparison_section
from plateloom.simulation import Treatment
from plateloom.stages import comparison as stage
from plateloom.store.provenance import read_json, write_json
from plateloom.store.tables import read_record, read_table, write_table

TREATMENTS = tuple(
    Treatment(f"drug{i}", ("translocated", "condensed", "none")[i % 3], ec50=0.2, doses=(10.0,)) for i in range(6)
)


def make_wells(*, plates=5, treatments=12, controls=6, doses=1):
    """What is in the wells of a screen, every plate with the same layout."""
    rows = []
    for p in range(plates):
        names = [f"t{t}" for t in range(treatments)] + ["DMSO"] * controls
        for i, name in enumerate(names):
            dose = np.nan if name == "DMSO" else 1.0 + i % doses
            control = "negative" if name == "DMSO" else ""
            rows.append((f"P{p}", f"B{p // 2}", f"{chr(65 + i // 12)}{i % 12 + 1:02d}", name, dose, "", control))
    return pd.DataFrame(
        rows,
        columns=[f"Metadata_{name}" for name in stage.ANNOTATION if name != "Well"][:2]
        + ["Metadata_Well", "Metadata_Treatment", "Metadata_Dose", "Metadata_Unit", "Metadata_Control"],
    )


def make_values(wells, *, signal=1.0, shift=0.0, features=8, noise=1.0, seed=0):
    """Values of those wells: an effect per treatment, one per plate, noise."""
    random = np.random.default_rng(seed)
    effect = {name: random.normal(size=features) * signal for name in sorted(set(wells["Metadata_Treatment"]))}
    effect["DMSO"] = np.zeros(features)
    plates = {name: random.normal(size=features) * shift for name in sorted(set(wells["Metadata_Plate"]))}
    pairs = zip(wells["Metadata_Treatment"], wells["Metadata_Plate"], strict=True)
    return np.array([effect[t] + plates[p] for t, p in pairs]) + random.normal(size=(len(wells), features)) * noise


def make_space(wells, prefix, **options):
    """Profiles normalized plate by plate, and the aggregates that they come from."""
    values = make_values(wells, **options)
    raw = pd.concat(
        [wells, pd.DataFrame(values, columns=[f"{prefix}_{i:02d}" for i in range(values.shape[1])])], axis=1
    )
    tables = [profiling.normalize_profiles(one, profiling.Params())[0] for _, one in raw.groupby("Metadata_Plate")]
    return profiling.join_plates(tables)[0], raw


# Retrieval


def test_average_precision_is_that_of_ranks_counted_by_hand():
    wells = make_wells(plates=3, treatments=4, controls=3)
    values = make_values(wells, signal=0.7)
    scores, where = comparison.score_retrieval(values, wells, null_size=500)
    unit = values / np.linalg.norm(values, axis=1, keepdims=True)
    for row in scores.itertuples():
        precisions = []
        own = wells.index[wells["Metadata_Treatment"] == row.Metadata_Treatment]
        for i in own:
            plate = wells["Metadata_Plate"] == wells.loc[i, "Metadata_Plate"]
            others = [j for j in own if not plate[j]]
            controls = wells.index[plate & (wells["Metadata_Control"] == "negative")]
            ranked = sorted([*others, *controls], key=lambda j: -(unit[i] @ unit[j]))
            ranks = [rank for rank, j in enumerate(ranked, 1) if j in others]
            precisions.append(np.mean([(k + 1) / rank for k, rank in enumerate(ranks)]))
        assert row.map == pytest.approx(np.mean(precisions), abs=1e-5)
    assert where == "other plates" and list(scores["n_wells"]) == [3] * 4


def test_replicates_that_are_alike_are_found_and_noise_is_not():
    wells = make_wells()
    strong, _ = comparison.score_retrieval(make_values(wells, signal=5), wells)
    nothing, _ = comparison.score_retrieval(make_values(wells, signal=0), wells)
    assert (strong["map"] > 0.9).all() and (strong["q"] <= 0.05).all()
    assert nothing["map"].mean() == pytest.approx(nothing["expected"].mean(), abs=0.06)
    assert (nothing["q"] > 0.05).all()


def test_p_values_of_noise_are_no_smaller_than_they_should_be():
    found = [
        comparison.score_retrieval(make_values(w, signal=0, seed=s), w, null_size=1000)[0]["p"]
        for s, w in ((s, make_wells(plates=3, controls=2)) for s in range(8))
    ]
    p = np.concatenate(found)
    assert (p <= 0.05).mean() <= 0.05  # copairs' own would be: the best ranking of 2 among 4 comes up once in six


def test_what_plates_have_in_common_within_themselves_counts_against_retrieval():
    wells = make_wells()
    with_shift, _ = comparison.score_retrieval(make_values(wells, signal=1.5, shift=6), wells)
    without, _ = comparison.score_retrieval(make_values(wells, signal=1.5), wells)
    assert with_shift["map"].mean() < without["map"].mean() - 0.2


def test_replicates_of_one_plate_are_taken_only_where_there_is_no_other():
    wells = make_wells(plates=1)
    twice = pd.concat([wells, wells[wells["Metadata_Control"] == ""]], ignore_index=True)
    assert comparison.score_retrieval(make_values(twice), twice)[1] == "same plate"
    with pytest.raises(ValueError, match="no treatment has replicates"):
        comparison.score_retrieval(make_values(wells), wells)
    bare = make_wells(controls=0)
    with pytest.raises(ValueError, match="no plate has negative controls"):
        comparison.score_retrieval(make_values(bare), bare)


def test_a_treatment_on_hundreds_of_wells_costs_no_more_than_fifty():
    wells = make_wells(plates=120, treatments=1, controls=2)
    scores, _ = comparison.score_retrieval(make_values(wells), wells, null_size=100)
    assert scores["n_wells"].tolist() == [comparison.MOST_REPLICATES]


def test_average_precision_is_that_of_copairs():
    from copairs.map import average_precision

    wells = make_wells(plates=3, treatments=6, controls=4)
    values = make_values(wells, signal=0.7)
    table = wells.assign(reference=np.where(wells["Metadata_Control"] == "negative", np.arange(len(wells)), -1))
    same = ["Metadata_Treatment", "reference"]
    theirs = average_precision(
        table, values, same, ["Metadata_Plate"], ["Metadata_Plate"], same, distance="cosine", progress_bar=False
    )
    theirs = theirs[theirs["reference"] < 0].groupby("Metadata_Treatment")["average_precision"].mean()
    ours = comparison.per_treatment(comparison.score_retrieval(values, wells, null_size=200)[0])
    assert ours.to_dict() == pytest.approx(theirs.to_dict(), abs=1e-5)


def make_inert(*, plates=4, treatments=40, controls=8, features, latent, seed):
    """Wells in which nothing happened, and their values, correlated, relative to the controls of their plate."""
    wells, random = make_wells(plates=plates, treatments=treatments, controls=controls), np.random.default_rng(seed)
    mixing, values = random.normal(size=(latent, features)) / np.sqrt(latent), np.empty((len(wells), features))
    for plate in wells["Metadata_Plate"].unique():
        own = np.flatnonzero(wells["Metadata_Plate"] == plate)
        drawn = random.normal(size=(len(own), latent)) @ mixing + 0.5 * random.normal(size=(len(own), features))
        beside = drawn[wells["Metadata_Control"].iloc[own] == "negative"]
        center = np.median(beside, axis=0)
        values[own] = (drawn - center) / np.median(np.abs(beside - center), axis=0)
    return wells, values


def test_of_two_spaces_of_noise_none_is_better_whatever_their_width():
    """Centered on the controls that are ranked, wide profiles in which nothing happened come further behind them than narrow ones."""
    called, differences, below, biased = [], [], [], []
    for seed in range(20):
        maps, scores = {}, {}
        for name, features, latent in (("features", 300, 40), ("latent", 32, 6)):
            wells, values = make_inert(features=features, latent=latent, seed=seed + 1000 * features)
            found, _ = comparison.score_retrieval(values, wells, null_size=500)
            scores[name] = comparison.per_treatment(found, "beyond")
            maps[name] = comparison.per_treatment(found)
            below.append((found["p"] <= 0.05).mean())
        row = comparison.compare_spaces(scores)[0]
        called.append(bool(row["better"]))
        differences.append(row["difference"])
        biased.append(comparison.compare_spaces(maps)[0]["better"])
    assert sum(called) <= 4
    assert biased.count("latent") >= 10 and "features" not in biased  # by mAP itself
    assert np.mean(differences) == pytest.approx(0, abs=0.01)
    assert np.mean(below) <= 0.07


def test_replicates_that_are_alike_only_as_all_treatments_are_do_not_count():
    wells = make_wells()
    values = make_values(wells, signal=0) + np.where(wells["Metadata_Control"] == "", 4.0, 0.0)[:, None]
    scores, _ = comparison.score_retrieval(values, wells, null_size=1000)
    assert scores["map"].mean() > 0.9
    assert scores["beyond"].mean() == pytest.approx(0, abs=0.02) and (scores["q"] > 0.05).all()


def test_chance_is_of_random_rankings_where_there_are_too_few_treatments():
    wells = make_wells(plates=4, treatments=2)
    scores, _ = comparison.score_retrieval(make_values(wells, signal=5), wells, null_size=1000)
    assert (scores["p"] < 0.01).all() and scores["beyond"].isna().all()
    assert not len(comparison.per_treatment(scores, "beyond")) and len(comparison.per_treatment(scores)) == 2


def test_more_replicates_than_treatments_are_thinned_evenly_over_plates():
    wells = make_wells(plates=9, treatments=6)
    scores, _ = comparison.score_retrieval(make_values(wells, signal=5), wells, null_size=1000)
    assert scores["n_wells"].tolist() == [6] * 6 and (scores["q"] <= 0.05).all() and (scores["beyond"] > 0.3).all()
    plates = np.array(["A"] * 60 + ["B"])
    assert comparison._thin(np.arange(61), plates, 5).tolist() == [0, 1, 2, 3, 60]


# Classes


def test_treatments_are_recognized_on_plates_not_learned_from():
    wells = make_wells()
    keys, plates = comparison.treatment_keys(wells), wells["Metadata_Plate"]
    strong, facts = comparison.score_classes(make_values(wells, signal=4), keys, plates)
    nothing, _ = comparison.score_classes(make_values(wells, signal=0), keys, plates)
    assert strong.mean() > 0.9 and list(strong.index) == ["P0", "P1", "P2", "P3", "P4"]
    assert facts == {"n_wells": 90, "n_classes": 13, "chance": pytest.approx(1 / 13), "n_left_out": 0, "n_unseen": 0}
    assert nothing.mean() < 0.2


def test_a_plate_is_not_recognized_by_itself():
    """Values that say which plate it is and nothing else: other wells of the plate would give the class away, other plates do not."""
    wells = make_wells(plates=4, treatments=4, controls=0)
    values = make_values(wells, signal=0, shift=20)
    scores, _ = comparison.score_classes(values, comparison.treatment_keys(wells), wells["Metadata_Plate"])
    assert scores.mean() < 0.5


def test_one_plate_is_refused_and_classes_on_one_plate_are_left_out():
    wells = make_wells(plates=1)
    with pytest.raises(ValueError, match="1 plate cannot be held out, at least 2 are needed"):
        comparison.score_classes(make_values(wells), comparison.treatment_keys(wells), wells["Metadata_Plate"])
    wells = make_wells(plates=2, treatments=3)
    alone = (wells["Metadata_Plate"] == "P0") & (wells["Metadata_Treatment"] == "t0")
    keys = np.where(alone, "alone", comparison.treatment_keys(wells))
    _, facts = comparison.score_classes(make_values(wells), keys, wells["Metadata_Plate"])
    assert facts["n_left_out"] == 2 and facts["n_classes"] == 3


@pytest.mark.parametrize("order", ["replicates", "libraries"])
def test_of_many_plates_those_with_the_same_treatments_are_held_out_one_by_one(order):
    """40 libraries on two plates each, numbered by replicate or by library: dealt by number, both could be held out at once."""
    random, rows = np.random.default_rng(0), []
    centers = random.normal(size=(40, 3, 12)) * 5
    for library, replicate in np.ndindex(40, 2):
        number = 40 * replicate + library if order == "replicates" else 2 * library + replicate
        rows += [(f"P{number:02d}", f"c{library}-{k}", centers[library, k]) for k in range(3)]
        rows += [(f"P{number:02d}", "DMSO", np.zeros(12))]
    plates, treatments, values = (np.array(column) for column in zip(*rows, strict=True))
    values = values + random.normal(size=values.shape) * 0.5
    scores, facts = comparison.score_classes(values, treatments, plates)
    assert len(scores) == 80 and facts["n_unseen"] == 0 and facts["n_wells"] == 320
    assert scores.mean() > 0.95


def test_wells_of_a_class_that_was_not_learned_are_not_scored(monkeypatch):
    """Three plates in two parts: what is only on the two that are held out together cannot be recognized."""
    monkeypatch.setattr(comparison, "MOST_FOLDS", 2)
    plates = np.repeat(["P1", "P2", "P3"], 3)
    treatments = np.array(["a", "b", "ab", "a", "b", "ab", "a", "b", "c"])
    monkeypatch.setattr(comparison, "_deal_plates", lambda classes, plates: (plates == "P3").astype(int))
    values = np.array([[10.0, 0], [0, 10], [9, 9]] * 3) + np.random.default_rng(0).normal(size=(9, 2)) * 0.1
    scores, facts = comparison.score_classes(values, treatments, plates)
    assert facts["n_unseen"] == 2 and facts["n_wells"] == 6 and facts["n_left_out"] == 1
    assert scores.tolist() == [1.0, 1.0, 1.0]
    assert facts["chance"] == pytest.approx((1 / 2 + 1 / 2 + 1 / 3) / 3)


# Which is better


def test_an_interval_of_few_units_holds_the_truth_as_often_as_it_says():
    random = np.random.default_rng(0)
    for units in (5, 8, 20):
        inside = 0
        for seed in range(400):
            _, low, high = comparison.interval_of_mean(random.beta(2, 2, units), n_resamples=1000, seed=seed)
            inside += low <= 0.5 <= high
        assert 0.9 <= inside / 400 <= 0.985, units


def test_better_is_said_only_where_the_interval_excludes_zero():
    random = np.random.default_rng(1)
    base = pd.Series(random.uniform(0.4, 0.8, 12), [f"t{i}" for i in range(12)])
    spaces = {"a": base, "b": base + 0.1 + random.normal(size=12) * 0.02, "c": base + random.normal(size=12) * 0.1}
    found = {(row["first"], row["second"]): row for row in comparison.compare_spaces(spaces)}
    assert found["a", "b"]["better"] == "b" and found["a", "b"]["high"] < 0
    assert found["a", "c"]["better"] == "" and found["a", "c"]["reason"] == "the interval holds 0"
    assert found["a", "b"]["difference"] == pytest.approx(-0.1, abs=0.03)


def test_two_equal_spaces_are_seldom_called_different():
    random = np.random.default_rng(2)
    called = 0
    for seed in range(200):
        one, other = (pd.Series(random.beta(2, 2, 6)) for _ in range(2))
        called += bool(comparison.compare_spaces({"a": one, "b": other}, seed=seed)[0]["better"])
    assert called <= 22


def test_only_what_both_spaces_have_is_compared():
    one, other = pd.Series(1.0, list("abcdef")), pd.Series(0.0, list("defghi"))
    row = comparison.compare_spaces({"x": one, "y": other})[0]
    assert row["n"] == 3 and row["better"] == "" and "3 treatments in common, 5 needed" in row["reason"]


def test_an_interval_of_very_many_units_is_drawn_in_blocks(monkeypatch):
    scores = np.random.default_rng(0).normal(size=500)
    whole = comparison.interval_of_mean(scores)
    monkeypatch.setattr(comparison, "BLOCK", 10_000)
    assert comparison.interval_of_mean(scores) == whole
    sizes, real = [], np.random.default_rng

    class Watched:
        def __init__(self, seed):
            self.random = real(seed)

        def multinomial(self, n, shares, size):
            sizes.append(size * len(shares))
            return self.random.multinomial(n, shares, size=size)

    monkeypatch.setattr(np.random, "default_rng", Watched)
    assert comparison.interval_of_mean(scores) == whole
    assert max(sizes) <= 10_000 and sum(sizes) == comparison.RESAMPLES * 500


# Correction


def test_sphering_makes_the_controls_round_and_keeps_the_columns():
    wells = make_wells(plates=6, controls=12)
    normalized, _ = make_space(wells, "Latent_Autoencoder", shift=0)
    features = profiling.feature_columns(normalized)
    mixed = normalized.copy()
    mixed[features] = normalized[features].to_numpy() @ np.random.default_rng(0).normal(size=(8, 8))
    sphered, reason = profiling.sphere_profiles(mixed, regularization=1e-6)
    assert not reason and list(sphered.columns) == list(mixed.columns)
    controls = sphered.loc[sphered["Metadata_Control"] == "negative", features]
    assert np.cov(controls.T) == pytest.approx(np.eye(8), abs=0.02)


def test_regularization_bounds_what_sphering_blows_up():
    wells = make_wells(plates=4, controls=5)
    normalized, _ = make_space(wells, "Latent_Autoencoder")
    features = profiling.feature_columns(normalized)
    flat = normalized.assign(**{features[1]: normalized[features[0]] + 1e-4 * normalized[features[1]]})
    apart = {
        strength: (sphered[features[1]] - sphered[features[0]]).std()
        for strength in (1e-9, 0.5)
        for sphered, _ in [profiling.sphere_profiles(flat, regularization=strength)]
    }
    assert apart[1e-9] > 0.5 and apart[0.5] < 0.01  # what is apart by rounding is not made a feature of its own


def test_few_controls_are_not_sphered_by():
    normalized, _ = make_space(make_wells(plates=3, controls=3), "Latent_Autoencoder")
    same, reason = profiling.sphere_profiles(normalized)
    assert same is normalized and reason == "9 negative control wells, 10 needed"


def test_gaps_are_filled_and_wells_without_a_value_are_left_out():
    table = pd.DataFrame(
        {
            "Metadata_Well": ["A01", "A02", "A03", "A04"],
            "a": [1, np.nan, np.inf, 3],
            "b": [1, 2, np.nan, np.nan],
            "c": np.nan,
        }
    )
    found = profiling.complete_profiles(table)
    assert found["Metadata_Well"].tolist() == ["A01", "A02", "A04"] and list(found) == ["Metadata_Well", "a", "b"]
    assert found[["a", "b"]].to_numpy().tolist() == [[1, 1], [2, 2], [3, 1.5]]


def test_a_treatment_is_the_median_of_its_wells():
    normalized, _ = make_space(make_wells(doses=2), "Latent_Autoencoder")
    table = profiling.summarize_treatments(normalized)
    own = normalized[normalized["Metadata_Treatment"] == "t3"]
    row = table[table["Metadata_Treatment"] == "t3"].iloc[0]
    assert row["Latent_Autoencoder_02"] == own["Latent_Autoencoder_02"].median()
    assert (row["Metadata_Wells"], row["Metadata_Plates"], row["Metadata_Dose"]) == (5, 5, 2.0)


# Spaces side by side


@pytest.fixture(scope="module")
def compared():
    """Features with little signal and latents with much, both with effects of plates."""
    wells = make_wells(plates=6, treatments=14, controls=8, doses=2)
    spaces = {
        "features": make_space(wells, "Nuclei_Texture_A", signal=0.4, shift=3, features=20, seed=1),
        "contrastive": make_space(wells, "Latent_Contrastive", signal=1.5, shift=3, features=12, seed=2),
    }
    return stage.compare_profiles(spaces)


def test_correction_lets_plates_mix_and_replicates_be_found(compared):
    found, scores = compared
    for space in found["spaces"]:
        before, after = space["corrections"][0], space["corrections"][-1]
        assert after["correction"] == "sphered" and not after["reason"]
        assert before["mixing"]["plate"]["own"] > after["mixing"]["plate"]["own"] + 0.2
        assert after["retrieval"]["map"] > before["retrieval"]["map"]
        assert before["mixing"]["batch"]["n_batches"] == 3
    assert set(scores["correction"]) == set(stage.CORRECTIONS) and set(scores["space"]) == {"features", "contrastive"}


def test_the_better_space_is_named(compared):
    found, _ = compared
    (by_retrieval,), (by_classes,) = found["better"]["by_retrieval"], found["better"]["by_classes"]
    assert by_retrieval["better"] == by_classes["better"] == "contrastive"
    assert by_retrieval["n"] == 14 and by_classes["n"] == 6


def test_the_corrected_profiles_of_all_spaces_are_one_table(compared):
    table = compared[0]["profiles"]
    assert len(table) == 6 * 22 == compared[0]["n_wells"]
    assert sum(name.startswith("Latent_Contrastive") for name in table) == 12


def test_the_page_says_it_in_words(compared):
    found = json.loads(
        json.dumps(stage.plain({name: value for name, value in compared[0].items() if name != "profiles"}))
    )
    page = str(comparison_section(found))
    assert (
        "Replicates find each other better by latents (contrastive) than by measured features (mAP beyond chance +"
        in page
    )
    assert "How batches mix" in page
    assert "wells are not scored" not in page
    for space in found["spaces"]:
        space["classes"]["n_unseen"] = 4
    assert "4 wells are not scored: all plates with their treatment" in str(comparison_section(found))
    words = re.search(
        r"By measured features, (\d+) % of a well&#39;s 10 nearest wells are of its own plate before any", page
    )
    assert int(words[1]) == round(100 * found["spaces"][0]["corrections"][0]["mixing"]["plate"]["own"])


def test_the_page_says_which_wells_are_compared_and_which_plates_are_left_out():
    wells = make_wells(plates=4)
    whole, (normalized, raw) = make_space(wells, "Nuclei_Texture_A"), make_space(wells, "Latent_Contrastive")
    latents = [table[table["Metadata_Plate"] != "P3"] for table in (normalized, raw)]
    found, _ = stage.compare_profiles({"features": whole, "contrastive": latents})
    assert len(found.pop("profiles")) == found["n_wells"] == 54
    page = str(comparison_section(stage.plain(found) | {"left_out": {"P3": "its encoder crashed"}}))
    assert "of 54 wells, those with a profile of each kind (measured features 72, latents (contrastive) 54)" in page
    assert "Left out, with all of their wells: P3 (its encoder crashed)." in page
    assert "Left out" not in str(comparison_section(stage.plain(found) | {"left_out": {}}))
    for space in found["spaces"]:
        del space["n_wells"]  # as code wrote it that did not count them
    assert "All figures and tables are of 54 wells." in str(comparison_section(stage.plain(found)))


def test_a_space_alone_is_compared_with_nothing():
    wells = make_wells(plates=1, treatments=4)
    found, scores = stage.compare_profiles({"features": make_space(wells, "Nuclei_Texture_A")}, sphering=None)
    assert found["better"] == {"by_retrieval": [], "by_classes": []}
    assert not len(scores) and {"map", "q", "space", "correction"} <= set(scores)
    steps = {step["correction"]: step for step in found["spaces"][0]["corrections"]}
    assert steps["sphered"]["reason"] == "switched off"
    assert steps["none"]["retrieval"]["reason"] == "no treatment has replicates"
    assert "two batches" in steps["none"]["mixing"]["plate"]["reason"]
    assert found["spaces"][0]["classes"]["reason"].startswith("1 plate cannot be held out")
    page = str(
        comparison_section(json.loads(json.dumps(stage.plain({k: v for k, v in found.items() if k != "profiles"}))))
    )
    assert "cannot be told" in page and "no treatment has replicates" in page


def test_a_screen_without_controls_is_compared_as_it_is():
    wells = make_wells(controls=0)
    found, _ = stage.compare_profiles({"features": make_space(wells, "Nuclei_Texture_A")})
    reasons = {step["correction"]: step["reason"] for step in found["spaces"][0]["corrections"]}
    assert reasons == {"none": "", "normalized": "too few negative controls", "sphered": "too few negative controls"}


# The stages


@pytest.fixture(scope="module")
def screen(once):
    """Two plates through all stages that lead to the comparison, and the page."""

    def make(folder):
        simulate(folder, plates=("P1", "P2"), treatments=TREATMENTS, size_px=192)
        run_stages(folder, [name for name in STAGES if name not in ("map", "maps")])

    return once("compared", make)


@pytest.mark.slow
def test_profiles_of_latents_are_made_as_those_of_features(screen):
    plate = screen / "results/plates/P1"
    aggregates, profiles = (read_table(plate / f"latent_{name}.parquet") for name in ("aggregates", "profiles"))
    features = read_table(plate / "aggregates.parquet")
    assert aggregates["Metadata_Well"].tolist() == features["Metadata_Well"].tolist()
    assert aggregates["Metadata_Treatment"].tolist() == features["Metadata_Treatment"].tolist()
    row = aggregates.iloc[5]
    cells = read_table(plate / f"latent/{row['Metadata_Well']}.parquet")
    assert row["Latent_Autoencoder_03"] == pytest.approx(cells["Latent_Autoencoder_03"].median())
    assert row["Metadata_CellCount"] == len(cells)
    assert "Latent_error" not in aggregates and "Metadata_SourceField" not in aggregates
    controls = profiles.loc[profiles["Metadata_Control"] == "negative", "Latent_Autoencoder_03"]
    assert profiles["Metadata_Normalized"].all() and controls.median() == pytest.approx(0, abs=1e-9)


@pytest.mark.slow
def test_the_screen_is_compared_and_its_page_says_so(screen):
    record = read_json(screen / "results/screen/records/comparison.json")
    assert record["status"] == "done" and record["facts"]["spaces"] == ["features", "autoencoder"]
    found = read_json(screen / "results/screen/comparison.json")
    assert [space["space"] for space in found["spaces"]] == ["features", "autoencoder"]
    corrected = read_table(screen / "results/screen/corrected_profiles.parquet")
    assert len(corrected) == found["n_wells"] <= 24
    treatments = read_table(screen / "results/screen/treatments.parquet")
    assert set(treatments["Metadata_Treatment"]) == {"DMSO", *(one.name for one in TREATMENTS)}
    page = (screen / "results/screen/report.html").read_text()
    assert "Features against latents" in page and "nearest wells are of its own plate" in page


@pytest.mark.slow
def test_flagged_fields_are_left_out_of_latents_as_of_features(screen, monkeypatch):
    monkeypatch.chdir(screen)
    every = stage.aggregate_latents("P1", "A02", [], "median")
    none = stage.aggregate_latents("P1", "A02", [1], "median")
    assert every["Metadata_CellCount"] > 0 == none["Metadata_CellCount"]
    assert np.isnan(none["Latent_Autoencoder_00"])
    errors = read_table("results/plates/P1/latent/A02.parquet")["Latent_error"]
    some = stage.aggregate_latents("P1", "A02", [], "median", limit=float(errors.median()))
    assert some["Metadata_CellCount"] == (errors <= errors.median()).sum()


def test_what_compare_lacks_is_said_before_anything_is_computed(tmp_path):
    folder = simulate(tmp_path / "screen", plates=("P1",), rows=2, columns=2, fields=1, size_px=64)
    for name in ("profiling", "latent_profiling"):
        write_json(folder / f"results/plates/P1/records/{name}/part-0.json", {"status": "done"})
    refuse = lambda *options: CliRunner().invoke(cli, ["compare", str(folder), *options]).exception  # noqa: E731
    error = refuse()
    assert isinstance(error, ConfigError)
    assert f"the screen has no profiles; `plateloom run {folder}` makes them" in str(error)
    write_json(folder / "results/screen/records/profiles.json", {"status": "failed", "reason": "no plate is complete"})
    assert "the screen has no profiles (no plate is complete)" in str(refuse())
    error = refuse("--json", str(tmp_path / "none" / "found.json"))
    assert isinstance(error, ConfigError) and "there is no folder" in str(error)


@pytest.mark.slow
def test_two_encoders_are_compared_on_the_same_wells(screen, tmp_path):
    """A copy of the screen whose latents are another encoder's: here the same ones, drowned in noise."""
    other, random = shutil.copytree(screen, tmp_path / "other"), np.random.default_rng(0)
    for plate in ("P1", "P2"):
        for name in ("latent_profiles.parquet", "latent_aggregates.parquet"):
            path = other / "results/plates" / plate / name
            table = read_table(path)
            latents = [column for column in table if column.startswith("Latent_")]
            table[latents] = random.normal(size=(len(table), len(latents)))
            write_table(path, table.rename(columns=lambda column: column.replace("Autoencoder", "Contrastive")), {})
    out = tmp_path / "found.json"
    done = CliRunner().invoke(cli, ["compare", str(screen), str(other), "--json", str(out)])
    assert done.exit_code == 0, done.output
    found = json.loads(out.read_text())
    assert [space["space"] for space in found["spaces"]] == ["features", "autoencoder", "contrastive"]
    assert [(pair["first"], pair["second"]) for pair in found["better"]["by_retrieval"]] == [
        ("features", "autoencoder"),
        ("features", "contrastive"),
        ("autoencoder", "contrastive"),
    ]
    assert "eplicates find each other better by measured features or by latents (autoencoder)" in done.output
    assert "better by latents (contrastive) than" not in done.output  # noise does not win
    refused = CliRunner().invoke(cli, ["compare", str(tmp_path), str(other)])
    assert refused.exit_code and isinstance(refused.exception, ConfigError)


@pytest.mark.slow
def test_only_plates_of_the_screen_as_it_is_now_are_compared(screen, tmp_path):
    other = shutil.copytree(screen, tmp_path / "other")
    assert _list_plates(other, "latent_profiling") == ["P1", "P2"]
    (other / "quarantine.tsv").unlink(missing_ok=True)
    done = CliRunner().invoke(cli, ["quarantine", str(other), "P2", "--reason", "wrong staining", "--by", "Ada"])
    assert done.exit_code == 0, done.output
    assert _list_plates(other, "latent_profiling") == _list_plates(other, "profiling") == ["P1"]
    (other / "quarantine.tsv").unlink()
    lines = (other / "plates.tsv").read_text().splitlines()
    (other / "plates.tsv").write_text("\n".join(line for line in lines if not line.startswith("P1")) + "\n")
    assert _list_plates(other, "latent_profiling") == ["P2"]


@pytest.mark.slow
def test_latents_of_several_encoders_in_a_screen_are_refused(screen, tmp_path):
    other = shutil.copytree(screen, tmp_path / "other")
    path = other / "results/plates/P2/latent/A02.parquet"
    made = read_record(path)
    write_table(path, read_table(path), made | {"inputs": made["inputs"] | {"model": "another"}})
    refused = CliRunner().invoke(cli, ["compare", str(other)])
    assert isinstance(refused.exception, PlateLayoutError)
    assert "another: P2" in str(refused.exception) and ": P1, P2" in str(refused.exception)
