"""Clusters of cells: what is found, what it is worth, and that each cell is judged by itself."""

import functools
import importlib.util
import sys

import numpy as np
import pandas as pd
import pytest
import yaml
from in_process import run_stages
from scipy.stats import false_discovery_control
from sklearn.metrics import adjusted_rand_score, jaccard_score

from plateloom.errors import ModelMismatchError
from plateloom.latent import CLUSTERINGS, hdbscan, kmeans, leiden, pca
from plateloom.latent.clusters import (
    Clusters,
    describe_clusters,
    draw_wells,
    fit_clusters,
    measure_stability,
    number_clusters,
)
from plateloom.latent.maps import fit_map
from plateloom.registry import load_method
from plateloom.repair import find_damage
from plateloom.store.provenance import read_json

SIZES = (160, 100, 60, 40)
METHODS = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            name == "leiden" and importlib.util.find_spec("leidenalg") is None,
            reason="leidenalg is not installed (it is under the GPL)",
        ),
    )
    for name in CLUSTERINGS
]
SETTINGS = {"leiden": {"resolution": 0.05}}


def groups(seed=0, sizes=SIZES, apart=12.0, dimensions=5):
    """Cells in separate round groups, dealt at random to twelve wells: components, group, well."""
    random = np.random.default_rng(seed)
    truth = random.permutation(np.repeat(np.arange(len(sizes)), sizes))
    centers = apart * np.eye(max(dimensions, len(sizes)))[: len(sizes), :dimensions]
    components = (centers[truth] + random.normal(size=(len(truth), dimensions))).astype(np.float32)
    return components, truth, np.array([f"P/W{i:02d}" for i in random.integers(0, 12, len(truth))])


def fit(method, components, wells, **options):
    params = load_method(CLUSTERINGS, method, "clustering method").Params(**(options or SETTINGS.get(method, {})))
    return fit_clusters(components, wells, method=method, params=params, resamples=10)


@functools.cache
def fit_groups(method, apart):
    """Components, group and well of cells, and what is fitted to them; not to be changed."""
    components, truth, wells = groups(apart=apart)
    components.flags.writeable = False
    return components, truth, wells, *fit(method, components, wells)


@pytest.mark.parametrize("method", METHODS)
def test_separate_groups_are_found_the_largest_first_and_found_again_in_other_wells(method):
    _, truth, _, clusters, labels = fit_groups(method, 12.0)
    inside = labels >= 0
    assert inside.mean() > 0.95
    np.testing.assert_array_equal(labels[inside], truth[inside])
    assert clusters.config["number"] == len(SIZES) and clusters.config["reason"] == ""
    assert min(clusters.config["stability"]) > 0.9 and clusters.config["agreement"] > 0.9
    assert clusters.config["resamples"] == 10


@pytest.mark.parametrize("method", METHODS)
def test_fitting_again_gives_the_same_bytes(method):
    components, _, wells, one, labels = fit_groups(method, 3.0)
    other, again = fit(method, components, wells)
    np.testing.assert_array_equal(labels, again)
    assert one.config == other.config
    for name, array in one.to_arrays()[0].items():
        assert array.tobytes() == other.to_arrays()[0][name].tobytes()


@pytest.mark.parametrize("method", METHODS)
def test_a_cell_gets_its_cluster_whichever_others_come_with_it(method):
    clusters = fit_groups(method, 3.0)[3]
    cells = np.random.default_rng(1).normal(2, 4, (1300, 5)).astype(np.float32)
    together = clusters.assign(cells)
    assert len(set(together)) > 1
    one_by_one = np.concatenate([clusters.assign(cells[i : i + 1]) for i in range(60)])
    np.testing.assert_array_equal(one_by_one, together[:60])
    np.testing.assert_array_equal(clusters.assign(cells[::-1])[::-1], together)
    np.testing.assert_array_equal(clusters.assign(cells[700:]), together[700:])


@pytest.mark.parametrize("method", METHODS)
def test_a_cell_of_the_sample_keeps_its_cluster_and_one_without_values_has_none(method):
    components, _, _, clusters, labels = fit_groups(method, 3.0)
    np.testing.assert_array_equal(clusters.assign(components), labels)
    components = components.copy()
    components[3, 2] = np.nan
    assert clusters.assign(components)[3] == -1
    np.testing.assert_array_equal(np.delete(clusters.assign(components), 3), np.delete(labels, 3))


@pytest.mark.parametrize("method", METHODS)
def test_clusters_survive_a_file_and_refuse_what_is_not_theirs(method, tmp_path):
    components, _, _, clusters, labels = fit_groups(method, 12.0)
    arrays, config = clusters.to_arrays()
    np.savez(tmp_path / "clusters.npz", **arrays)
    with np.load(tmp_path / "clusters.npz", allow_pickle=False) as stored:
        again = Clusters.from_arrays(dict(stored), config)
    np.testing.assert_array_equal(again.assign(components), labels)
    with pytest.raises(ModelMismatchError, match="5 components"):
        clusters.assign(components[:, :4])
    with pytest.raises(ModelMismatchError, match="4 clusters"):
        Clusters.from_arrays(arrays | {"reach": arrays["reach"][:2]}, config)
    with pytest.raises(ModelMismatchError, match="Expected"):
        Clusters.from_arrays({"centers": arrays["centers"]}, config)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("cells", [1, 2, 12])
def test_a_handful_of_cells_and_cells_that_are_the_same_are_no_error(method, cells):
    wells = np.array([f"P/{i % 4}" for i in range(cells)])
    clusters, labels = fit(method, np.zeros((cells, 3), np.float32), wells)
    assert len(labels) == cells and clusters.config["number"] <= 1
    np.testing.assert_array_equal(clusters.assign(np.zeros((2, 3))), clusters.assign(np.zeros((5, 3)))[:2])


def test_the_number_of_a_cluster_does_not_depend_on_the_random_start():
    components, truth, wells = groups(sizes=(80, 80, 70, 60, 50))
    for seed in range(4):
        _, labels = fit("kmeans", components, wells, seed=seed, n_clusters=5)
        # The first two are of one size: that with the smaller first component is 0.
        first = sorted((0, 1), key=lambda group: components[truth == group, 0].mean())
        np.testing.assert_array_equal(labels, np.array([*np.argsort(first), 2, 3, 4])[truth])


def test_clusters_of_one_size_are_numbered_along_the_first_axis():
    components = np.array([[5.0], [5.0], [1.0], [1.0], [9.0]])
    assert number_clusters([0, 0, 4, 4, 2], components).tolist() == [1, 1, 0, 0, 2]


@pytest.mark.parametrize("number", [2, 4, 6])
def test_kmeans_finds_how_many_groups_there_are(number):
    components, truth, wells = groups(sizes=(60,) * number, dimensions=6)
    clusters, labels = fit("kmeans", components, wells)
    assert clusters.config["number"] == number and adjusted_rand_score(truth, labels) == 1
    assert [one["number"] for one in clusters.config["tried"]] == list(range(2, min(10, 3 * number) + 1))


def test_kmeans_takes_the_number_that_is_given():
    components, _, wells = groups()
    clusters, labels = fit("kmeans", components, wells, n_clusters=7)
    assert clusters.config["number"] == 7 == len(np.unique(labels)) and len(clusters.config["tried"]) == 1
    # Two groups at least are cut where nothing lies, elsewhere in other wells.
    assert min(clusters.config["stability"]) < 0.75


def test_a_round_cloud_has_no_number_of_clusters_and_it_is_said():
    components = np.random.default_rng(0).normal(size=(600, 8)).astype(np.float32)
    wells = np.array([f"P/{i % 20}" for i in range(600)])
    clusters, _ = fit("kmeans", components, wells)
    assert "all were found again" in clusters.config["reason"]
    assert min(clusters.config["stability"]) < 0.75


def test_with_two_wells_nothing_is_known_of_stability():
    components, _, _ = groups()
    clusters, _ = fit("kmeans", components, np.where(np.arange(len(components)) % 2, "P/a", "P/b"))
    assert clusters.config["stability"] == [] and clusters.config["agreement"] is None
    assert "fewer than 3 wells" in clusters.config["reason"]


def test_between_dense_places_and_far_from_them_a_cell_is_in_no_cluster():
    components, _, wells = groups(apart=16.0)
    clusters, _ = fit("hdbscan", components, wells)
    middles = clusters.centers
    np.testing.assert_array_equal(clusters.assign(middles), range(len(SIZES)))
    between = (middles[0] + middles[1]) / 2
    far = middles[2] + 100
    np.testing.assert_array_equal(clusters.assign(np.stack([between, far])), [-1, -1])


def test_where_nothing_is_dense_hdbscan_finds_no_cluster():
    components = np.random.default_rng(0).uniform(size=(300, 10)).astype(np.float32)
    clusters, labels = fit("hdbscan", components, np.array([f"P/{i % 9}" for i in range(300)]))
    assert clusters.config["number"] == 0 and set(labels) == {-1} == set(clusters.assign(components))
    assert clusters.config["stability"] == []


def test_whole_wells_are_drawn():
    wells = groups()[2]
    draws = draw_wells(wells, 6)
    assert len(draws) == 6 and len({tuple(rows) for rows in draws}) > 1
    for rows in draws:
        assert len(set(wells[rows])) == round(0.632 * len(set(wells)))
        assert not set(wells[rows]) & set(np.delete(wells, rows))
    assert draw_wells(np.array(["a", "b", "a"]), 6) == []


def test_stability_is_the_best_jaccard_index():
    random = np.random.default_rng(0)
    labels = np.concatenate([np.arange(3), random.integers(-1, 3, 200)])
    rows = np.sort(random.permutation(203)[:120])
    found = random.integers(-1, 4, 120)
    stability, agreement = measure_stability(labels, [(rows, found)])
    expected = [max(jaccard_score(labels[rows] == i, found == j) for j in range(4)) for i in range(3)]
    np.testing.assert_allclose(stability, expected)
    assert agreement == pytest.approx(adjusted_rand_score(labels[rows], found))


def test_a_cluster_of_one_well_is_not_found_where_that_well_is_not_drawn():
    components, truth, wells = groups()
    wells = np.where(truth == 3, "P/alone", wells)
    clusters, _ = fit("kmeans", components, wells, n_clusters=4)
    drawn = np.mean([np.isin("P/alone", wells[rows]) for rows in draw_wells(wells, 10)])
    assert 0 < drawn < 1 and clusters.config["stability"][3] == pytest.approx(drawn, abs=0.02)


def test_a_cluster_is_told_by_what_it_differs_in_once():
    random = np.random.default_rng(0)
    values = random.normal(size=(400, 5))
    truth = (np.arange(400) < 100).astype(int)
    values[:, 1] += 6 * truth
    values[:, 2] = 3 * values[:, 1] + 0.01 * random.normal(size=400)  # the same once more
    values[:, 3] -= 4 * truth
    values[0, 3] = np.nan
    names = ["same", "larger", "double", "smaller", "still"]
    fitted = fit_map(values, features=names, method="pca", params=pca.Params())
    components = fitted.project(values, features=names)
    wells = np.array([f"P/{i % 7}" for i in range(400)])
    labels = np.where(truth == 1, 1, 0)
    labels[5] = -1
    rows = describe_clusters(labels, components, values, fitted=fitted, wells=wells)
    assert [(row["cluster"], row["cells"]) for row in rows] == [(0, 300), (1, 99)]
    told = dict(rows[1]["features"])
    assert len({"larger", "double"} & set(told)) == 1 and set(told) - {"larger", "double"} == {"smaller"}
    table = pd.DataFrame(values, columns=names)
    sides = table[labels == 1], table[labels != 1]
    spread = np.maximum(*((side.quantile(0.84) - side.quantile(0.16)) / 2 for side in sides))
    expected = (sides[0].median() - sides[1].median()) / spread
    for name, difference in told.items():
        assert difference == pytest.approx(expected[name], rel=0.03)
    assert rows[1]["of_one_well"] == pytest.approx(np.bincount(np.arange(400)[labels == 1] % 7).max() / 99)
    examples = rows[1]["examples"]
    assert len(examples) == len(set(wells[examples])) == 6 and set(labels[examples]) == {1}


def test_a_feature_that_is_next_to_0_in_half_of_the_cells_does_not_differ_by_hundreds_of_its_spread():
    random = np.random.default_rng(0)
    truth = (np.arange(1000) < 300).astype(int)
    without = random.random(1000) < np.where(truth, 0.4, 0.6)
    values = (
        np.column_stack([np.where(without, 1e-3, 5.0), truth * 4.0])
        + random.normal(size=(1000, 2)) * np.array([np.where(without, 1e-4, 1.0), np.ones(1000)]).T
    )
    names = ["granularity", "clear"]
    fitted = fit_map(values, features=names, method="pca", params=pca.Params())
    components = fitted.project(values, features=names)
    rows = describe_clusters(truth, components, values, fitted=fitted, wells=np.full(1000, "P/1"))
    (first, most), *others = rows[1]["features"]
    assert first == "clear" and 3 < most < 5 and all(abs(difference) < 2.5 for _, difference in others)


def test_one_cluster_of_all_cells_differs_in_nothing():
    components, _, wells = groups()
    names = [f"f{i}" for i in range(5)]
    fitted = fit_map(components, features=names, method="pca", params=pca.Params())
    (row,) = describe_clusters(np.zeros(len(wells), int), components, components, fitted=fitted, wells=wells)
    assert row["features"] == [] and row["share"] == 1


def test_cells_are_joined_by_the_neighbors_that_they_share():
    points = np.random.default_rng(0).normal(size=(40, 3))
    edges, weights = leiden.shared_neighbors(points, 6)
    distance = np.linalg.norm(points[:, None] - points, axis=2)
    near = [set(np.argsort(row)[:7]) for row in distance]
    expected = {
        (i, j): len(near[i] & near[j]) / len(near[i] | near[j])
        for i in range(40)
        for j in range(i + 1, 40)
        if i in near[j] or j in near[i]
    }
    assert dict(zip(map(tuple, edges.tolist()), weights.tolist(), strict=True)) == pytest.approx(expected)


def test_leiden_without_its_package_says_what_to_type_and_under_which_license(monkeypatch):
    monkeypatch.setitem(sys.modules, "leidenalg", None)
    with pytest.raises(ModelMismatchError, match="pip install leidenalg.*GNU General Public License"):
        leiden.cluster(np.zeros((30, 2)), leiden.Params())


def test_parameters_are_checked():
    for module, wrong in ((kmeans, {"n_clusters": 0}), (hdbscan, {"min_share": 1.0}), (leiden, {"resolution": 0})):
        with pytest.raises(ValueError):
            module.Params(**wrong)


def configure(folder, **clusters):
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    settings["latent"]["autoencoder"] = {"enabled": False}
    settings["latent"]["maps"]["clusters"] = {"resamples": 5} | clusters
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    return settings


def test_checking_a_screen_says_under_which_license_leiden_is_and_that_it_is_missing(screen, monkeypatch):
    from plateloom.cli.check import find_problems

    monkeypatch.setitem(sys.modules, "leidenalg", None)
    configure(screen, method="leiden")
    problems, notes = find_problems(screen, files=False)[:2]
    assert any("leidenalg" in problem and "pip install leidenalg" in problem for problem in problems)
    assert any("GNU General Public License" in note for note in notes)


def test_settings_of_clusters_change_the_map_and_the_pages_only(screen):
    from plateloom.planning import STAGES, Screen

    plain = Screen(configure(screen))
    other = Screen(configure(screen, parameters={"n_clusters": 3}))
    none = Screen(configure(screen, method="none"))
    changed = {stage for stage in STAGES if plain.settings(stage, "P1") != other.settings(stage, "P1")}
    assert changed == {"map", "report", "screen_report"}
    assert {stage for stage in STAGES if plain.code(stage) != none.code(stage)} == {"map"}


TO_PAGES = ("flagging", "features", "profiling", "profiles", "map", "maps", "report", "screen_report")


def test_every_cell_of_a_screen_has_a_cluster_and_the_pages_show_them(profiled):
    configure(profiled, parameters={"n_clusters": 3})
    run_stages(profiled, TO_PAGES)
    card = read_json("results/screen/models/map/map.json")["clusters"]
    assert card["config"]["number"] == 3 and len(card["rows"]) == 3
    tables = {
        path.stem: pd.read_parquet(path) for path in sorted((profiled / "results/plates/P1/maps").glob("*.parquet"))
    }
    cells = pd.concat(tables.values())
    assert cells["Cluster"].dtype == np.int32 and set(cells["Cluster"]) == {0, 1, 2}
    assert sum(len(row["examples"]) for row in card["rows"]) == 18
    page = (profiled / "results/screen/report.html").read_text()
    assert "Clusters of cells" in page and "3 clusters by k-means" in page and "cells of Cluster 2" in page
    assert (
        read_json("results/screen/records/screen_report.json")["cluster"]["tasks"] == 1 + 18
    )  # one counts, the others cut
    assert (
        "by cluster" in page
        and "Share of cells of cluster 0" in (profiled / "results/plates/P1/report.html").read_text()
    )
    found = pd.read_parquet("results/screen/clusters.parquet")
    wells = pd.read_parquet("results/plates/P1/aggregates.parquet")
    of_well = wells.set_index("Metadata_Well")
    keys = ["Metadata_Treatment", "Metadata_Dose", "Metadata_Control"]
    cells = cells.join(of_well[keys], on="Metadata_Well")
    negative = cells[cells["Metadata_Control"] == "negative"]
    assert found["q"].notna().any()
    assert found["q"].dropna().to_numpy() == pytest.approx(false_discovery_control(found["p"].dropna()))
    for row in found[found["p"].notna()].to_dict("records"):
        own = cells[(cells[keys] == [row[key] for key in keys]).all(axis=1)]
        cluster = int(row["kind"].removeprefix("cluster "))
        own = own[own.groupby("Metadata_Well")["Cluster"].transform("size") >= 10]
        known = negative[negative.groupby("Metadata_Well")["Cluster"].transform("size") >= 10]
        assert row["cells"] == len(own) > 0 and row["share"] == pytest.approx((own["Cluster"] == cluster).mean())
        assert row["control_share"] == pytest.approx((known["Cluster"] == cluster).mean())
    damage = lambda: [one.file for one in find_damage(profiled, "", deep=True) if one.stage == "screen_report"]  # noqa: E731
    assert damage() == []
    (profiled / "results/screen/clusters.parquet").unlink()
    assert damage() == ["clusters.parquet"]


def test_cells_of_flagged_fields_are_counted_only_where_they_are_used(profiled):
    from plateloom.stages.clusters import count_clusters
    from plateloom.stages.fields import flagged_fields

    configure(profiled)
    run_stages(profiled, TO_PAGES[:-2])
    quality = pd.read_parquet("results/plates/P1/qc.parquet")
    well = next(path.stem for path in (profiled / "results/plates/P1/maps").glob("*.parquet"))
    quality.loc[quality["Metadata_Well"] == well, "Reason"] = "blurred"
    quality.to_parquet("results/plates/P1/qc.parquet")
    assert well in {name for name, _ in flagged_fields("P1")}
    number = read_json("results/screen/models/map/map.json")["clusters"]["config"]["number"]
    all_cells, used = (
        count_clusters("P1", number, leave_out).set_index("Metadata_Well") for leave_out in (False, True)
    )
    assert all_cells.loc[well, "cells"] > 0 == used.loc[well, "cells"]
    kinds = [f"cluster {i}" for i in range(number)]
    assert (all_cells["cells"] == all_cells[kinds].sum(axis=1)).all() and (used.loc[well, kinds] == 0).all()


def test_a_cell_that_is_gone_or_lacks_a_channel_has_no_picture(profiled, monkeypatch, caplog):
    from plateloom.stages.cell_crops import store
    from plateloom.stages.clusters import ask_examples, sort_examples

    def cut(*cells, plates=("P1",), channels=("DNA",)):
        rows = [{"cluster": 7 + i, "examples": [cell]} for i, cell in enumerate(cells)]
        owners, tasks = ask_examples(rows, plates, channels=list(channels), size_um=20.0, out_px=24)
        return sort_examples(owners, [function(*given) for function, *given in tasks])

    cells = pd.read_parquet("results/plates/P1/features/A01.parquet")
    cell = cells.iloc[0]
    key = "P1", "A01", int(cell["Metadata_Field"]), int(cell["Metadata_ObjectNumber"])
    ((picture,),) = cut(key).values()
    assert picture.shape == (1, 24, 24)
    assert picture[0, 8:16, 8:16].mean() > picture[0, [0, -1]].mean()  # the nucleus is in the middle
    gone, unmeasured = (*key[:3], 10_000), ("P1", "P24", 1, 1)
    assert list(cut(gone, key, unmeasured, key)) == [8, 10]
    assert cut(key, plates=["P2"]) == cut(key, channels=["Actin"]) == {}
    assert "a cell of cluster 9 has no picture" in caplog.text and "needed are also Actin" in caplog.text
    described = store.describe_image
    for missing, shown in (["DNA"], False), (["Another"], True):
        monkeypatch.setattr(store, "describe_image", lambda path, has=missing: described(path) | {"missing": has})
        assert bool(cut(key)) == shown


def test_without_clusters_there_is_no_column_no_table_and_the_page_says_why(profiled):
    configure(profiled, method="none")
    run_stages(profiled, TO_PAGES)
    assert read_json("results/screen/models/map/map.json")["clusters"] is None
    path = next((profiled / "results/plates/P1/maps").glob("*.parquet"))
    assert "Cluster" not in pd.read_parquet(path) and not (profiled / "results/screen/clusters.parquet").exists()
    assert (
        "The config does not ask for them (latent.maps.clusters.method)"
        in (profiled / "results/screen/report.html").read_text()
    )


def test_the_page_names_unstable_clusters_and_how_many_cells_are_in_none():
    from plateloom.stages import report_clusters as stage

    config = {"method": "hdbscan", "number": 3, "stability": [0.9, 0.59, 0.7], "agreement": 0.5, "resamples": 8}
    config |= {"tried": [{"number": 3}], "reason": ""}
    words = stage._clusters_words(config, [{"cluster": i} for i in range(3)], 2000, 1500)
    assert "3 clusters by HDBSCAN. Looked for 8 times again" in words and "agree by 0.50" in words
    assert "Unstable, and not to be relied on: 1." in words
    assert words.endswith("In no cluster: 500 of 2,000 cells (25.0%).")
    assert [stage._grade(value) for value in (0.75, 0.6, 0.59, np.nan)] == [
        "0.75",
        "0.60 doubtful",
        "0.59 unstable",
        "not known",
    ]


def test_treatments_that_a_cluster_is_enriched_in_are_named_with_dose_and_control():
    from plateloom.report import name_enriched

    names = ["Metadata_Treatment", "Metadata_Dose", "Metadata_Unit", "Metadata_Control", "kind", "change"]
    rows = [
        ("a", 10.0, "µM", "positive", "cluster 1", "enriched"),
        ("a", 10.0, "µM", "", "cluster 1", "depleted"),
        ("b", np.nan, "", "", "cluster 1", "enriched"),
        ("c", 0.3, "µM", "", "cluster 2", "enriched"),
        ("c", 0.3, "µM", "", "cluster 1", "enriched"),
        ("d", 1.0, "µM", "", "cluster 1", "enriched"),
    ]
    found = pd.DataFrame(rows, columns=names)
    assert name_enriched(found, "cluster 1") == "a 10 µM (positive control), b, c 0.3 µM and 1 more"
    assert name_enriched(found, "cluster 0") == ""


def test_the_section_shows_table_and_cells_and_folds_the_treatments():
    from plateloom.report.clusters import ClustersReport, clusters_section

    rows = pd.DataFrame({"cluster": ["0"], "cells": [12]})
    cells = np.zeros((3, 8, 8, 3), np.uint8)
    shown = clusters_section(ClustersReport(rows=rows, words="<one>", note="two", pictures=(("Cluster 0", cells),)))
    assert "&lt;one&gt;" in shown and 'alt="cells of Cluster 0" width="30" height="8"' in shown
    assert "<details>" not in shown and clusters_section(None) is None
    table = pd.DataFrame({"kind": ["cluster 0"], "reason": [""]})
    folded = clusters_section(ClustersReport(rows=rows, words="", note="", enrichment=table))
    assert "<details>" in folded and "reason" not in folded
