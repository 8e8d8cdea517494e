"""Maps: PCA, UMAP, densMAP and PaCMAP of tables, their neighbors and their layout."""

import hashlib
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import TO_PROFILES, edit
from in_process import run_stages

from plateloom.config import load_config
from plateloom.engine import parts
from plateloom.errors import ConfigError, ModelMismatchError, PlateLayoutError
from plateloom.latent import MAPS, densmap, layout, neighbors, pacmap, umap
from plateloom.latent.maps import Map, fit_map
from plateloom.planning import Screen
from plateloom.registry import load_method
from plateloom.stages import maps as stage
from plateloom.store.layout import model_folder, plate_folder, record_path, well_table
from plateloom.store.provenance import recipe, write_json
from plateloom.store.tables import KEYS, read_table, write_table

SLOW = {"densmap": pytest.mark.slow}  # umap-learn is compiled anew by each process


def make_clusters(seed=0, per_cluster=60, features=12):
    """Three clusters with gaps, a constant and an empty column; returns the table, its names and the clusters."""
    random = np.random.default_rng(seed)
    centers = np.random.default_rng(99).normal(0, 6, (3, features))
    X = np.concatenate([random.normal(center, 1, (per_cluster, features)) for center in centers])
    X = np.column_stack([X, np.full(len(X), 0.1), np.full(len(X), np.nan)])
    X[random.random(X.shape) < 0.02] = np.nan
    names = [f"Cells_AreaShape_F{i}" for i in range(features)] + ["Cells_A_Constant", "Cells_A_Empty"]
    return X, names, np.repeat(np.arange(3), per_cluster)


@pytest.fixture(scope="module", params=[pytest.param(name, marks=SLOW.get(name, ())) for name in sorted(MAPS)])
def fitted(request):
    module = load_method(MAPS, request.param, "map")
    if hasattr(module, "PACKAGE"):
        pytest.importorskip(module.PACKAGE, reason=module.INSTALL)
    X, names, clusters = make_clusters()
    return fit_map(X, features=names, method=request.param, params=module.Params()), X, names, clusters


def test_every_map_keeps_neighbors_together(fitted):
    fitted_map, X, names, clusters = fitted
    unseen, _, truth = make_clusters(seed=1)
    placed = fitted_map.transform(unseen, features=names)
    assert placed.shape == (len(unseen), 2) and placed.dtype == np.float32 and np.isfinite(placed).all()
    reference = fitted_map.transform(X, features=names)
    nearest = ((placed[:, None] - reference[None]) ** 2).sum(axis=2).argmin(axis=1)
    assert np.mean(clusters[nearest] == truth) > 0.98


def test_every_map_places_a_row_the_same_whatever_else_is_in_the_call(fitted):
    fitted_map, _, names, _ = fitted
    unseen, _, _ = make_clusters(seed=2, per_cluster=400)
    whole = fitted_map.transform(unseen, features=names)
    order = np.random.default_rng(0).permutation(len(unseen))
    np.testing.assert_array_equal(fitted_map.transform(unseen[order], features=names), whole[order])
    parts = [fitted_map.transform(unseen[start : start + 77], features=names) for start in range(0, len(unseen), 77)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    np.testing.assert_array_equal(fitted_map.transform(unseen[:1], features=names), whole[:1])
    assert fitted_map.transform(unseen[:0], features=names).shape == (0, 2)


def test_every_map_survives_npz_without_pickle(fitted, tmp_path):
    fitted_map, X, names, _ = fitted
    arrays, config, features = fitted_map.to_arrays()
    np.savez(tmp_path / "map.npz", **arrays)
    with np.load(tmp_path / "map.npz", allow_pickle=False) as stored:
        again = Map.from_arrays(dict(stored), config, features)
    np.testing.assert_array_equal(again.transform(X, features=names), fitted_map.transform(X, features=names))
    with pytest.raises(ModelMismatchError):
        Map.from_arrays(arrays, config, features[:-1])
    with pytest.raises(ModelMismatchError):
        Map.from_arrays({"mean": arrays["mean"]}, config, features)


def test_every_map_refuses_another_schema_and_names_both(fitted):
    fitted_map, X, names, _ = fitted
    with pytest.raises(ModelMismatchError, match="they differ in"):
        fitted_map.transform(X[:, 1:], features=names[1:])
    with pytest.raises(ModelMismatchError, match="the order"):
        fitted_map.transform(X, features=names[::-1])
    with pytest.raises(ValueError, match="Expected"):
        fitted_map.transform(X, features=names[1:])


def test_every_map_drops_what_does_not_vary_and_marks_rows_without_values(fitted):
    fitted_map, X, names, _ = fitted
    assert fitted_map.config["dropped"] == ["Cells_A_Constant", "Cells_A_Empty"]
    rows = X[:3].copy()
    rows[1] = np.nan
    placed = fitted_map.transform(rows, features=names)
    assert np.isnan(placed[1]).all() and np.isfinite(placed[[0, 2]]).all()
    rows[0, -2] = 1e9  # a dropped feature is of no influence
    np.testing.assert_array_equal(fitted_map.transform(rows, features=names)[0], placed[0])


def test_every_map_is_the_same_when_fitted_again(fitted):
    fitted_map, X, names, _ = fitted
    method = fitted_map.config["method"]
    again = fit_map(X, features=names, method=method, params=load_method(MAPS, method, "map").Params())
    for name, value in again.to_arrays()[0].items():
        np.testing.assert_array_equal(value, getattr(fitted_map, name))


def test_pca_agrees_with_scikit_learn():
    from sklearn.decomposition import PCA

    random = np.random.default_rng(0)
    for rows in (200, 8):  # more and fewer rows than features
        X = random.normal(size=(rows, 10)) @ random.normal(size=(10, 10))
        names = [f"Cells_A_F{i}" for i in range(10)]
        fitted_map = fit_map(X, features=names, method="pca", params=load_method(MAPS, "pca", "map").Params(clip=1e6))
        scaled = (X - np.median(X, axis=0)) / (1.482602218505602 * np.median(np.abs(X - np.median(X, axis=0)), axis=0))
        oracle = PCA(2, svd_solver="full").fit(scaled)
        expected = oracle.transform(scaled)
        signs = np.sign((expected * fitted_map.transform(X, features=names)).sum(axis=0))
        np.testing.assert_allclose(fitted_map.transform(X, features=names), expected * signs, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(fitted_map.config["explained"], oracle.explained_variance_ratio_, rtol=1e-8)
        assert (fitted_map.axes[np.abs(fitted_map.axes).argmax(axis=0), [0, 1]] > 0).all()


def test_wells_lie_by_what_a_treatment_changes_however_many_features_it_leaves_alone():
    from plateloom.stages.profiling import place_wells

    random = np.random.default_rng(0)
    treated = np.arange(48) % 2 == 1
    values = random.normal(size=(48, 400))  # [SD of the controls]
    values[treated, :6] += 8.0
    values[0, 399] = 1e6  # a broken well
    wells = pd.DataFrame(values, columns=[f"Cells_Texture_{i}" for i in range(400)])
    placed, _, explained = place_wells(wells.assign(Metadata_Normalized=True), "pca")
    first = placed["Metadata_PCA_1"].to_numpy()
    assert min(abs(first[treated])) > 5 and len(set(np.sign(first[treated]))) == 1, "all on one side"
    assert set(np.sign(first[~treated])) == {-np.sign(first[treated][0])} and explained[0] > 0.15
    # Without controls features have units of their own, and none may own an axis by its unit.
    raw = values[:, :20] * np.where(np.arange(20) == 19, 1e4, 1.0)
    wells = pd.DataFrame(raw, columns=[f"Cells_Texture_{i}" for i in range(20)])
    placed, _, explained = place_wells(wells.assign(Metadata_Normalized=False), "pca")
    assert abs(np.corrcoef(placed["Metadata_PCA_1"], treated)[0, 1]) > 0.9 and explained[0] < 0.6


def test_umap_places_the_rows_of_the_sample_where_they_were_fitted():
    X, names, _ = make_clusters()
    fitted_map = fit_map(X, features=names, method="umap", params=load_method(MAPS, "umap", "map").Params())
    np.testing.assert_allclose(fitted_map.transform(X, features=names), fitted_map.embedding, atol=1e-5)


@pytest.mark.parametrize("rows", [2, 5, 15, 16])
def test_a_handful_of_wells_still_gets_a_map(rows):
    X, names, _ = make_clusters()
    X = X[:rows]
    fitted_map = fit_map(X, features=names, method="umap", params=load_method(MAPS, "umap", "map").Params())
    assert np.isfinite(fitted_map.transform(X, features=names)).all()
    assert ("UMAP needs more than its 15 neighbors" in fitted_map.config["reason"]) == (rows <= 15)


def test_a_map_of_nothing_is_refused_with_the_reason():
    params = load_method(MAPS, "umap", "map").Params()
    with pytest.raises(ValueError, match="No rows"):
        fit_map(np.empty((0, 2)), features=["a", "b"], params=params)
    with pytest.raises(ValueError, match="None of 2 features varies"):
        fit_map(np.ones((9, 2)), features=["a", "b"], params=params)


def test_a_map_is_the_same_whatever_the_number_of_cores():
    code = (
        "import numpy as np; from plateloom.latent import umap; from plateloom.latent.maps import fit_map;"
        "X = np.random.default_rng(0).normal(size=(1500, 300)); X[::2] += 1; names = [str(i) for i in range(300)];"
        "made = fit_map(X, features=names, params=umap.Params(n_components=50));"
        "print(*[value.tobytes().hex()[-4000:] for value in (made.axes, made.sample, made.embedding)])"
    )
    found = set()
    for threads in ("1", "2"):
        names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
        environment = os.environ | dict.fromkeys(names, threads)
        run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        found.add(hashlib.sha256(run.stdout.encode()).hexdigest())
    assert len(found) == 1


# ------------------------------------------------------------------------------------------------------------ neighbors


def nearest(rows, count):
    """Plainly: numbers and distances of the nearest other rows."""
    every = np.linalg.norm(rows[:, None].astype(float) - rows[None], axis=2)
    np.fill_diagonal(every, np.inf)
    order = np.argsort(every, axis=1, kind="stable")[:, :count]
    return order, np.take_along_axis(every, order, axis=1)


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_neighbors_are_exact_even_far_from_the_origin(offset):
    rows = (np.random.default_rng(0).normal(size=(600, 5)) + offset).astype(np.float32)
    numbers, distances = neighbors.find_neighbors(rows, 7)
    expected, lengths = nearest(rows, 7)
    np.testing.assert_array_equal(numbers, expected)
    np.testing.assert_allclose(distances, lengths, rtol=1e-6)


def far_apart(groups, each):
    """Rows of tight groups that are far apart: what is near is small beside what is not."""
    random = np.random.default_rng(0)
    centers = 1000 * random.permutation(groups)[:, None] * np.ones(5)
    return (np.repeat(centers, each, axis=0) + random.normal(size=(groups * each, 5))).astype(np.float32)


def test_neighbors_within_tight_groups_far_apart_are_exact():
    rows = far_apart(14, 60)
    numbers, distances = neighbors.find_neighbors(rows, 7)
    expected, lengths = nearest(rows, 7)
    np.testing.assert_array_equal(numbers, expected)
    np.testing.assert_allclose(distances, lengths, rtol=1e-6)


def test_of_many_rows_too_tight_groups_far_apart_keep_their_neighbors(monkeypatch):
    monkeypatch.setattr(neighbors, "EXACT", 100)
    monkeypatch.setattr(neighbors, "GROUP", 60)
    rows = far_apart(30, 60)
    _, distances = neighbors.find_neighbors(rows, 7)
    lengths = nearest(rows, 7)[1]
    assert (np.abs(distances - lengths) <= 1e-5 * lengths).mean() > 0.98


def test_of_rows_equally_near_the_first_come_first_and_no_row_is_its_own_neighbor():
    rows = np.repeat(np.arange(3.0), 4)[:, None]
    numbers, distances = neighbors.find_neighbors(rows, 3)
    assert numbers[:4].tolist() == [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]] and not distances.any()
    with pytest.raises(ValueError, match="more than the 12"):
        neighbors.find_neighbors(rows, 12)


def test_many_rows_are_compared_by_groups_and_few_neighbors_are_missed(monkeypatch):
    monkeypatch.setattr(neighbors, "EXACT", 1000)
    monkeypatch.setattr(neighbors, "GROUP", 50)
    monkeypatch.setattr(neighbors, "NEAR_GROUPS", 8)
    random = np.random.default_rng(0)
    rows = (random.normal(size=(2000, 6)) + 5 * random.integers(0, 3, (2000, 1))).astype(np.float32)
    rows[:500] = rows[0]  # more rows in one place than a group has
    numbers, distances = neighbors.find_neighbors(rows, 10)
    expected, lengths = nearest(rows, 10)
    found = np.mean([len(np.intersect1d(*pair)) for pair in zip(numbers[500:], expected[500:], strict=True)]) / 10
    assert 0.9 < found < 1
    assert (np.sort(numbers, axis=1)[:, 1:] > np.sort(numbers, axis=1)[:, :-1]).all()
    assert (numbers != np.arange(2000)[:, None]).all() and not distances[:500].any()
    plain = np.linalg.norm(rows[numbers].astype(float) - rows[:, None], axis=2)
    np.testing.assert_allclose(distances, plain, rtol=1e-6)


def test_more_neighbors_than_the_groups_nearby_have_are_found(monkeypatch):
    monkeypatch.setattr(neighbors, "EXACT", 100)
    monkeypatch.setattr(neighbors, "GROUP", 2)
    rows = np.random.default_rng(0).normal(size=(300, 2)).astype(np.float32)
    numbers, _ = neighbors.find_neighbors(rows, 200)
    assert (np.sort(numbers, axis=1)[:, 1:] > np.sort(numbers, axis=1)[:, :-1]).all() and numbers.max() == 299


def test_strengths_fall_with_the_distance_and_add_up():
    distances = np.sort(np.random.default_rng(0).uniform(1, 2, (5, 8)), axis=1).astype(np.float32)
    strengths = neighbors._strengths(distances)
    np.testing.assert_allclose(strengths.sum(axis=1), np.log2(9), rtol=1e-5)
    np.testing.assert_allclose(strengths[:, 0], 1)
    slopes = np.log(strengths[:, 1:]) / (distances[:, 1:] - distances[:, :1])
    np.testing.assert_allclose(slopes, slopes[:, :1].repeat(7, axis=1), rtol=1e-3)


def test_a_pair_is_joined_from_both_sides():
    graph = neighbors.fuzzy_graph(np.array([[1], [0], [1]]), np.array([[1.0], [1.0], [2.0]])).toarray()
    np.testing.assert_array_equal(graph, [[0, 1, 0], [1, 0, 1], [0, 1, 0]])
    rows = make_clusters()[0][:, :12]
    graph = neighbors.fuzzy_graph(*neighbors.find_neighbors(np.nan_to_num(rows), 5)).toarray()
    np.testing.assert_array_equal(graph, graph.T)
    assert 0 < graph.max() <= 1 and not graph.diagonal().any()


# --------------------------------------------------------------------------------------------------------------- layout


def test_the_forces_are_those_of_the_curve_to_one_percent():
    a, b = layout.fit_curve(0.1)
    pull, push = layout._force_tables(a, b)
    squared = np.float32(10) ** np.random.default_rng(0).uniform(-6, 3, 1000).astype(np.float32)
    bits = squared.view(np.uint32) >> layout.SHIFT
    step = 1e-4 * squared.astype(float)

    def slope(cost):  # of the cross entropy by the squared distance
        return (cost(squared + step) - cost(squared - step)) / (2 * step)

    np.testing.assert_allclose(pull[bits], 2 * slope(lambda d: np.log1p(a * d**b)), rtol=0.01)
    pushed = -2 * slope(lambda d: np.log1p(a * d**b) - b * np.log(d)) * squared / (1e-3 + squared)
    np.testing.assert_allclose(push[bits], pushed, rtol=0.01)


def test_joined_points_come_together_and_others_part():
    from scipy import sparse

    block = np.ones((20, 20)) - np.eye(20)
    graph = sparse.csr_array(np.kron(np.eye(3), block).astype(np.float32))
    start = np.random.default_rng(0).uniform(0, 10, (60, 2)).astype(np.float32)
    kept = start.copy()
    places = layout.lay_out(graph, start)
    np.testing.assert_array_equal(start, kept)
    groups = places.reshape(3, 20, 2)
    widths = np.linalg.norm(groups - groups.mean(axis=1, keepdims=True), axis=2).max()
    apart = min(np.linalg.norm(groups[i].mean(0) - groups[j].mean(0)) for i, j in ((0, 1), (0, 2), (1, 2)))
    assert apart > 2 * widths
    np.testing.assert_array_equal(layout.lay_out(graph, start), places)
    assert not np.array_equal(layout.lay_out(graph, start, seed=1), places)


def test_rows_without_a_value_have_no_neighbors_and_are_refused():
    rows = np.zeros((20, 2), np.float32)
    rows[3] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        umap.find_neighbors(rows, 2)


def test_pulls_inside_of_a_group_do_not_move_it():
    graph = umap.fuzzy_graph(*umap.find_neighbors(np.random.default_rng(0).normal(size=(60, 5)).astype(np.float32), 14))
    places = np.random.default_rng(1).normal(0, 5, (60, 2)).astype(np.float32)
    before = places.copy()
    pull, push = layout._force_tables(*layout.fit_curve(0.1))
    ends = graph.indptr.astype(np.int64), graph.indices.astype(np.int32)
    layout._move(places, *ends, graph.data, 200, pull, np.zeros_like(push), np.uint64(0))
    assert places.std() < 0.5 * before.std()
    np.testing.assert_allclose(places.mean(axis=0), before.mean(axis=0), atol=1e-3)


def test_groups_that_nothing_joins_lie_a_quarter_of_their_radii_apart_and_are_not_bent():
    from scipy import sparse
    from scipy.spatial.distance import pdist

    graph = sparse.csr_array(np.kron(np.eye(3), np.ones((20, 20)) - np.eye(20)).astype(np.float32))
    scattered = np.random.default_rng(0).normal(0, [1.0, 2.0], (3, 20, 2))
    far = (scattered + np.array([[0, 0], [90, 0], [0, 200]])[:, None]).reshape(-1, 2).astype(np.float32)
    near = layout.draw_together(graph, far).reshape(3, 20, 2)
    np.testing.assert_allclose(
        near - near.mean(1, keepdims=True), scattered - scattered.mean(1, keepdims=True), atol=1e-4
    )
    middles = near.mean(axis=1)
    radii = np.linalg.norm(near - middles[:, None], axis=2).max(axis=1)
    pairs = ((0, 1), (0, 2), (1, 2))
    gaps = [np.linalg.norm(middles[i] - middles[j]) / (radii[i] + radii[j]) for i, j in pairs]
    assert min(gaps) == pytest.approx(1.25, abs=1e-4)
    before = far.reshape(3, 20, 2).mean(axis=1)
    np.testing.assert_allclose(pdist(middles) / pdist(before), pdist(middles)[0] / pdist(before)[0], rtol=1e-4)
    np.testing.assert_array_equal(layout.draw_together(graph, near.reshape(-1, 2)), near.reshape(-1, 2))
    whole = sparse.csr_array(np.ones((60, 60), np.float32))
    assert layout.draw_together(whole, far) is far


@pytest.mark.parametrize("rows", [np.ones((40, 3)), np.arange(40.0)[:, None]], ids=["one place", "one component"])
def test_what_lies_in_one_place_or_on_a_line_still_has_a_layout(rows):
    places, reason = umap.embed(rows.astype(np.float32), umap.Params())
    assert reason == "" and np.isfinite(places).all() and len(np.unique(places, axis=0)) == 40


# ------------------------------------------------------------------------------------------------------------- the peers


def call_peer(rows):
    """The layout of umap-learn."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from umap import UMAP

        return UMAP(random_state=0).fit_transform(rows)


@pytest.mark.slow
@pytest.mark.long
def test_graph_and_curve_are_those_of_umap_learn():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from umap import umap_ as peer
    rows = np.random.default_rng(0).normal(size=(500, 6)).astype(np.float32)
    rows[:20] = rows[0]  # more equal rows than neighbors
    rows[20:26] = rows[20]
    numbers, distances = neighbors.find_neighbors(rows, 14)
    own = np.arange(500)[:, None]
    theirs, _, _ = peer.fuzzy_simplicial_set(
        rows,
        15,
        None,
        "euclidean",
        knn_indices=np.hstack([own, numbers]),
        knn_dists=np.hstack([np.zeros((500, 1)), distances]).astype(np.float32),
    )
    np.testing.assert_allclose(neighbors.fuzzy_graph(numbers, distances).toarray(), theirs.toarray(), atol=2e-4)
    for min_dist in (0.0, 0.1, 0.5):
        np.testing.assert_allclose(layout.fit_curve(min_dist), peer.find_ab_params(1.0, min_dist), rtol=1e-2)


def kept_neighbors(rows, places, count=15):
    """Share of each row's nearest ones that are its nearest ones on the map."""
    pairs = zip(nearest(rows, count)[0], nearest(places, count)[0], strict=True)
    return np.mean([len(np.intersect1d(*pair)) for pair in pairs]) / count


@pytest.mark.slow
@pytest.mark.long
def test_the_layout_keeps_neighbors_as_well_as_umap_learn():
    random = np.random.default_rng(0)
    hidden = random.normal(0, 3, (8, 6))[random.integers(0, 8, 1500)] + random.normal(size=(1500, 6))
    rows = (hidden @ random.normal(size=(6, 20)) + random.normal(0, 0.3, (1500, 20))).astype(np.float32)
    rows = (rows - rows.mean(axis=0)) @ np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)[2].T
    places, _ = umap.embed(rows, umap.Params())
    theirs = call_peer(rows)
    assert kept_neighbors(rows, places) > kept_neighbors(rows, theirs) - 0.01
    assert kept_neighbors(rows, places) > 5 * kept_neighbors(rows, rows[random.permutation(1500), :2])


@pytest.mark.slow
def test_densmap_draws_a_narrow_cluster_smaller_than_a_wide_one():
    random = np.random.default_rng(0)
    rows = np.concatenate([random.normal(0, 0.2, (200, 5)), random.normal(0, 2, (200, 5)) + 20]).astype(np.float32)

    def widths(module):
        places, _ = module.embed(rows, module.Params())
        return [np.linalg.norm(part - part.mean(axis=0), axis=1).mean() for part in (places[:200], places[200:])]

    narrow, wide = widths(densmap)
    assert wide > 1.5 * narrow
    narrow, wide = widths(umap)
    assert wide < 1.2 * narrow


def test_pacmap_says_how_it_is_installed(monkeypatch):
    monkeypatch.setattr(pacmap.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelMismatchError, match="'pacmap' is not installed: pip install pacmap"):
        pacmap.embed(np.zeros((99, 2), np.float32), pacmap.Params())


# ------------------------------------------------------------------------------------------------------ maps of latents

WELLS = ["A01", "A02", "B01"]
OF_LATENTS = {"channels": {"DNA": {"source": "1"}}, "latent": {"maps": {"inputs": "latent", "method": "pca"}}}


@pytest.fixture
def encoded(tmp_path, monkeypatch):
    """A plate of three wells of 40 cells with features and latents; one field was not encoded, another one is flagged."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(parts, "EXECUTION", parts.Execution(threads=1, cluster={"kind": "threads"}))
    random = np.random.default_rng(0)
    plain = recipe("test", parameters={}, code="", inputs={})
    wells = pd.DataFrame({"Metadata_Plate": "P1", "Metadata_Well": WELLS})
    write_table(plate_folder("P1") / "profiles.parquet", wells, plain)
    flags = {"Metadata_Well": ["A01"], "SourceField": [3], "Reason": ["blurred"]}
    write_table(plate_folder("P1") / "qc.parquet", pd.DataFrame(flags), plain)
    for well in WELLS:
        field = np.repeat([1, 2, 3, 4], 10)
        keys = {"Metadata_Plate": "P1", "Metadata_Well": well, "Metadata_Field": field}
        table = pd.DataFrame(keys | {"Metadata_ObjectNumber": np.tile(np.arange(1, 11), 4)})
        values = random.normal(size=(40, 3))
        features = pd.DataFrame(random.normal(size=(40, 2)), columns=["Cells_AreaShape_Area", "Cells_AreaShape_Extent"])
        write_table(well_table("P1", "features", well), table.assign(Metadata_SourceField=field).join(features), plain)
        latents = pd.DataFrame(values, columns=[f"Latent_Autoencoder_{i:02d}" for i in range(3)])
        latents["Latent_error"] = 1e6 * np.arange(40)
        made = recipe("latent", parameters={}, code="", inputs={"model": "encoder-1"})
        write_table(well_table("P1", "latent", well), table.join(latents)[field != 4], made)
    for name in ("features", "latent", "flagging"):
        made = {"status": "done", "reason": "", "plate": "P1", "stage": name}
        write_json(record_path("P1", name), made | {"artefacts": {well: f"{name}-{well}" for well in WELLS}})
    return tmp_path


def fit_latents():
    """Fit; gives the path of the record."""
    config = load_config(OF_LATENTS | {"latent": OF_LATENTS["latent"] | {"autoencoder": {"enabled": True}}})
    settings = config.latent.maps.model_dump(mode="json")
    settings["clusters"]["method"] = "none"
    of = {name: str(record_path("P1", name)) for name in ("features", "latent", "flagging")}
    record = "results/screen/records/map.json"
    stage.fit_screen(
        plates=["P1"],
        settings=settings,
        code="",
        measured=[of["features"]],
        flagged=[of["flagging"]],
        encoded=[of["latent"]],
        record=record,
    )
    return record


def map_latents():
    """Fit and place; gives the map's card and the places of the plate's cells."""
    of = {name: str(record_path("P1", name)) for name in ("features", "latent", "maps")}
    stage.map_part(
        plate="P1",
        part=0,
        parts=1,
        code="",
        fitted=fit_latents(),
        measured=of["features"],
        encoded=[of["latent"]],
        record=of["maps"],
    )
    places = pd.concat([read_table(well_table("P1", "maps", well)) for well in WELLS], ignore_index=True)
    return json.loads((model_folder("map") / "map.json").read_text()), places


def test_a_map_of_latents_has_a_place_for_every_cell_that_is_encoded(encoded):
    card, places = map_latents()
    assert card["features"] == [f"Latent_Autoencoder_{i:02d}" for i in range(3)] and card["encoder"] == "encoder-1"
    assert card["config"]["n_sample"] == 30 * 3 - 10  # the flagged field is no part of the sample
    features = pd.concat([read_table(well_table("P1", "features", well)) for well in WELLS], ignore_index=True)
    pd.testing.assert_frame_equal(places[list(KEYS)], features[list(KEYS)])
    there = places["Metadata_Field"] != 4
    assert there.sum() == 90 and places.loc[there, "Map_1"].notna().all() and places.loc[~there, "Map_1"].isna().all()
    latents = pd.concat([read_table(well_table("P1", "latent", well)) for well in WELLS], ignore_index=True)
    oracle = np.linalg.lstsq(
        np.column_stack([latents[card["features"]], np.ones(90)]), places.loc[there, "Map_1"], rcond=None
    )
    assert oracle[1] < 1e-6  # a linear map of the latents, and of nothing else


def test_latents_that_are_all_alike_are_a_fault_of_the_data_and_of_no_job(encoded):
    for well in WELLS:
        path = well_table("P1", "latent", well)
        table = read_table(path)
        names = [name for name in table if name.startswith("Latent_Autoencoder")]
        table[names] = [0.5, np.inf, np.nan]
        write_table(path, table, recipe("latent", parameters={}, code="", inputs={"model": "encoder-1"}))
    with pytest.raises(FileNotFoundError):  # no map, so no places
        map_latents()
    for name, status in (("results/screen/records/map.json", "failed"), (record_path("P1", "maps"), "skipped")):
        found = json.loads(Path(name).read_text())
        assert found["status"] == status and "none of 3 features varies among 80 cells" in found["reason"]


def test_of_features_a_map_of_latents_reads_where_the_cells_are_and_no_more(encoded, monkeypatch):
    asked = []
    read = lambda path, columns=None: asked.append(columns) or read_table(path, columns)  # noqa: E731
    monkeypatch.setattr(stage, "read_table", read)
    cells = stage.read_cells("P1", "A01", "latent")
    assert asked[0] == [*KEYS, "Metadata_SourceField"]
    assert list(cells) == [*asked[0], *(f"Latent_Autoencoder_{i:02d}" for i in range(3))] and len(cells) == 40


def test_a_cell_of_another_encoder_is_not_placed(encoded):
    card, _ = map_latents()
    path = well_table("P1", "latent", "A02")
    write_table(path, read_table(path), recipe("latent", parameters={}, code="", inputs={"model": "encoder-2"}))
    with pytest.raises(PlateLayoutError, match="encoder-1, these are of encoder-2"):
        stage.place_cells("P1", "A02", card["plateloom"]["fingerprint"])
    (model_folder("map") / "map.json").unlink()
    record = json.loads(Path(fit_latents()).read_text())
    assert record["status"] == "failed" and "different encoders (encoder-1: P1; encoder-2: P1)" in record["reason"]


def test_the_map_waits_for_latents_only_where_it_is_of_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("plates.tsv").write_text("plate\tsource\nP1\traw\n")
    for inputs in ("features", "latent"):
        latent = {"maps": {"inputs": inputs}, "autoencoder": {"enabled": True}}
        asked = Screen({"channels": {"DNA": {"source": "1"}}, "latent": latent})
        assert [("latent" in asked.after(name)) for name in ("map", "maps")] == [inputs == "latent"] * 2
        order = asked.stages()
        assert inputs == "features" or order.index("latent") < order.index("map") < order.index("maps")
    with pytest.raises(ConfigError, match="latent.maps.inputs: latents are made with"):
        load_config({"channels": {"DNA": {"source": "1"}}, "latent": latent | {"autoencoder": {"enabled": False}}})


def test_a_screen_maps_the_latents_of_its_cells(profiled):
    def change(settings):
        encoder = {"enabled": True, "cells": 100, "parameters": {"latent_dim": 4, "epochs": 1, "out_px": 16}}
        cells = {"method": "pca", "inputs": "latent", "clusters": {"method": "none"}}
        settings["latent"] = {"autoencoder": encoder, "maps": cells}

    edit(profiled, change)
    run_stages(profiled, (*TO_PROFILES, "autoencoder", "latent", "map", "maps"))
    card = json.loads((model_folder("map") / "map.json").read_text())
    assert card["inputs"] == "latent" and len(card["features"]) == 4
    places, latents = (
        pd.concat([pd.read_parquet(path) for path in sorted(plate_folder("P1").glob(f"{name}/*.parquet"))])
        for name in ("maps", "latent")
    )
    both = places.merge(latents, on=list(KEYS), how="left")
    assert both["Map_1"].notna().sum() > 100
    np.testing.assert_array_equal(both["Map_1"].notna(), both[card["features"][0]].notna())
