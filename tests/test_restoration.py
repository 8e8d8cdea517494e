"""Restoration: the contract of every method, what each does to known images, and its place among the stages."""

import hashlib
import importlib

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from conftest import simulate
from in_process import run_stages
from pydantic import ValidationError
from scipy import ndimage

from plateloom.config import load_config
from plateloom.errors import ConfigError
from plateloom.planning import Screen
from plateloom.restoration import METHODS, chain_halo, restore_image
from plateloom.stages.illumination import read_corrected
from plateloom.store.provenance import read_json
from plateloom.store.tables import read_table

MODULES = {name: importlib.import_module(path) for name, path in METHODS.items()}
# Small enough that a halo is a part of the image; in the second set other sizes, even ones and odd ones.
PARAMETERS = {
    "background": ({"radius_um": 2.0, "smoothing_um": 0.4}, {"radius_um": 3.1, "smoothing_um": 0}),
    "gaussian": ({"sigma_um": 0.4}, {"sigma_um": 1.3}),
    "median": ({"radius_px": 1}, {"radius_px": 4}),
    "non_local_means": ({"noise": 0.02, "patch_px": 3, "distance_px": 4}, {"noise": 0.1, "strength": 2}),
}
CASES = [(name, given) for name, sets in PARAMETERS.items() for given in sets]
PIXEL_UM = 0.5


def texture(shape=(90, 110), seed=0):
    """Blobs of all sizes with noise: float32 in 0 … 1."""
    rng = np.random.default_rng(seed)
    plane = sum(ndimage.gaussian_filter(rng.normal(size=shape), sigma) * sigma for sigma in (1, 3, 9))
    plane = (plane - plane.min()) / max(np.ptp(plane), 1e-9) + rng.normal(0, 0.02, shape)
    return np.clip(plane, 0, 1).astype(np.float32)


def restored(name, given, plane):
    module = MODULES[name]
    return module.restore(plane, module.Params(**given), PIXEL_UM)


def test_every_method_is_under_the_contract():
    assert set(PARAMETERS) == set(METHODS)


@pytest.mark.parametrize(("name", "given"), CASES)
@pytest.mark.parametrize("shape", [(90, 110), (7, 40), (1, 1)])
def test_a_plane_keeps_its_shape_type_and_range_and_is_left_alone(name, given, shape):
    plane = texture(shape)
    before = plane.copy()
    found = restored(name, given, plane)
    assert found.shape == shape and found.dtype == np.float32
    assert 0 <= found.min() <= found.max() <= 1
    np.testing.assert_array_equal(plane, before)


@pytest.mark.parametrize("shape", [(90, 110), (90, 111)])
@pytest.mark.parametrize(("name", "given"), CASES)
def test_a_method_changes_a_textured_plane_and_does_so_the_same_way_again(name, given, shape):
    found = restored(name, given, texture(shape))
    assert np.abs(found - texture(shape)).max() > 0.01
    np.testing.assert_array_equal(restored(name, given, texture(shape)), found)


@pytest.mark.parametrize("value", [0, 0.3, 0.7001, 1])
@pytest.mark.parametrize(("name", "given"), CASES)
def test_a_constant_plane_stays_as_it_is_and_is_all_background(name, given, value):
    plane = np.full((50, 60), value, np.float32)
    np.testing.assert_array_equal(restored(name, given, plane), 0 if name == "background" else plane)


@pytest.mark.parametrize(("name", "given"), CASES)
def test_a_window_with_its_halo_is_the_window_of_the_whole_to_the_last_bit(name, given):
    chain = [{"method": name, "parameters": given, "channels": None}]
    assert_windows_agree(texture()[None], ["DNA"], chain)


def test_a_chain_looks_as_far_as_its_steps_together_and_its_windows_agree_too():
    chain = [
        {"method": "median", "parameters": {"radius_px": 2}, "channels": None},
        {"method": "background", "parameters": {"radius_um": 2.0}, "channels": ["DNA"]},
        {"method": "gaussian", "parameters": {"sigma_um": 0.5}, "channels": ["ER", "DNA"]},
    ]
    halos = {name: chain_halo(chain, [name], pixel_size_um=PIXEL_UM) for name in ("DNA", "ER", "GFP")}
    assert halos == {"DNA": 2 + (6 + 3 * 4) + 4, "ER": 2 + 4, "GFP": 2}
    assert chain_halo(chain, ["GFP", "DNA", "ER"], pixel_size_um=PIXEL_UM) == halos["DNA"]
    assert chain_halo(chain, [], pixel_size_um=PIXEL_UM) == chain_halo([], ["DNA"], pixel_size_um=PIXEL_UM) == 0
    assert_windows_agree(np.stack([texture(seed=seed) for seed in range(3)]), list(halos), chain)


def assert_windows_agree(image, channels, chain):
    whole = restore_image(image, channels, chain, pixel_size_um=PIXEL_UM)
    halo = chain_halo(chain, channels, pixel_size_um=PIXEL_UM)
    height, width = image.shape[1:]
    for top, left, size in [
        (0, 0, 30),
        (1, 3, 30),
        (41, 57, 9),
        (height - 20, 60, 20),
        (33, width - 31, 31),
        (70, 1, 3),
    ]:
        bottom, right = min(top + size, height), min(left + size, width)
        first = [max(top - halo, 0), max(left - halo, 0)]
        view = image[:, first[0] : bottom + halo, first[1] : right + halo]
        found = restore_image(view, channels, chain, pixel_size_um=PIXEL_UM)
        inner = found[:, top - first[0] : bottom - first[0], left - first[1] : right - first[1]]
        np.testing.assert_array_equal(inner, whole[:, top:bottom, left:right])


@pytest.mark.parametrize("name", METHODS)
def test_the_halo_is_no_wider_than_what_the_method_sees(name):
    given = {"radius_um": 2.0, "smoothing_um": 0} if name == "background" else PARAMETERS[name][0]
    halo = MODULES[name].halo_px(MODULES[name].Params(**given), PIXEL_UM)
    plane = texture((101, 101))
    if name == "median":  # of a disk of five, two are bright, two dark, and the fifth is farthest to the right
        plane[:], plane[50, 49:51], plane[49, 50] = 0.1, 0.5, 0.3
    if name == "background":  # the only square that fits begins where the smoothing of the floor ends
        plane[:], plane[:, 54:63], plane[50, 50] = 0.1, 0.5, 1
    changed = plane.copy()
    changed[:, 50 + halo] = 0.01 if name == "background" else 1
    assert restored(name, given, changed)[50, 50] != restored(name, given, plane)[50, 50]


@pytest.mark.parametrize("name", METHODS)
def test_unknown_parameters_are_refused(name):
    with pytest.raises(ValidationError, match="extra_forbidden"):
        MODULES[name].Params(**PARAMETERS[name][0], wrong=1)


def test_the_background_goes_and_the_object_on_it_stays():
    y, x = np.mgrid[:200, :200]
    slope = 0.1 + 0.3 * x / 200 + 0.05 * np.sin(y / 60)
    cell = 0.2 * ((y - 90) ** 2 + (x - 110) ** 2 < 15**2)
    noise = np.random.default_rng(0).normal(0, 0.004, slope.shape)
    found = restored("background", {"radius_um": 12.0}, (slope + cell + noise).astype(np.float32))
    inside, outside = cell > 0, ndimage.binary_dilation(cell > 0, iterations=3)
    assert found[inside].mean() - found[~outside].mean() == pytest.approx(0.2, abs=0.02)
    assert found[~outside].mean() < 0.03 and found[~outside].std() < 0.1 * slope.std()


def test_the_gaussian_is_one_in_um():
    plane = np.zeros((81, 81), np.float32)
    plane[40, 40] = 1
    found = restored("gaussian", {"sigma_um": 2.0}, plane)
    y, x = np.mgrid[-40:41, -40:41]
    expected = np.exp(-(y**2 + x**2) / 2 / 4**2)
    np.testing.assert_allclose(found, expected / expected.sum(), atol=2e-6)


def test_the_median_takes_single_pixels_away_and_leaves_edges():
    plane = np.zeros((40, 40), np.float32)
    plane[:, 20:] = 0.5
    spoiled = plane.copy()
    spoiled[5::9, 4::9] = 1
    np.testing.assert_array_equal(restored("median", {"radius_px": 1}, spoiled), plane)


def test_non_local_means_are_what_their_definition_says():
    rng = np.random.default_rng(4)
    plane = (0.4 + 0.2 * (rng.random((14, 17)) > 0.5) + rng.normal(0, 0.03, (14, 17))).astype(np.float32)
    noise, strength, half, distance = 0.03, 1.5, 1, 3
    padded = np.pad(plane.astype(float), half + distance, mode="symmetric")

    def patch(y, x):
        return padded[y + distance : y + distance + 3, x + distance : x + distance + 3]

    expected = np.empty(plane.shape)
    for y, x in np.ndindex(plane.shape):
        total = weight = 0
        for dy, dx in np.ndindex(2 * distance + 1, 2 * distance + 1):
            other = patch(y + dy - distance, x + dx - distance)
            apart = max(((other - patch(y, x)) ** 2).mean() - 2 * noise**2, 0) / (strength * noise) ** 2
            likeness = max(1 - apart / 64, 0) ** 64
            total += likeness * other[half, half]
            weight += likeness
        expected[y, x] = total / weight
    given = {"noise": noise, "strength": strength, "patch_px": 3, "distance_px": distance}
    found = restored("non_local_means", given, plane)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert np.abs(plane - expected).max() > 0.05


def test_non_local_means_leave_no_more_noise_than_those_of_scikit_image():
    from skimage.restoration import denoise_nl_means

    clean = ndimage.gaussian_filter(np.random.default_rng(5).normal(size=(150, 160)), 8)
    clean = ndimage.gaussian_filter(0.2 + 0.5 * (clean > 0.02), 1)
    noisy = np.clip(clean + np.random.default_rng(6).normal(0, 0.05, clean.shape), 0, 1).astype(np.float32)
    module = MODULES["non_local_means"]
    params = module.Params(noise=0.05)
    options = {"patch_size": params.patch_px, "patch_distance": params.distance_px, "h": params.strength * 0.05}
    other = denoise_nl_means(noisy.astype(float), sigma=0.05, fast_mode=True, **options)
    error = [np.std(one - clean) for one in (noisy, other, module.restore(noisy, params, PIXEL_UM))]
    assert error[2] < 0.22 * error[0] and error[2] < 1.05 * error[1]


TO_FEATURES = ("conversion", "assembly", "illumination", "quality", "flagging", "segmentation", "features")
CHAIN = [
    {"method": "median"},
    {"method": "background", "parameters": {"radius_um": 20}, "channels": ["DNA"]},
]
CHANNELS = {"DNA": {"source": "1"}, "GFP": {"source": "2"}}


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A screen of two wells, one field each, run as far as features without any restoration."""
    folder = simulate(tmp_path / "screen", rows=1, columns=2, size_px=200, cells_per_field=8.0)
    monkeypatch.chdir(folder)
    run_stages(folder, TO_FEATURES)
    return folder


def configure(folder, **settings):
    config = yaml.safe_load((folder / "config.yaml").read_text()) | settings
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


def records(folder):
    return {stage: read_json(folder / f"results/plates/P1/records/{stage}/part-0.json") for stage in TO_FEATURES}


def image_digests(folder):
    """Content of every file of the images, labels left out."""
    plate = folder / "results/plates/P1/plate.zarr"
    files = [path for path in sorted(plate.rglob("*")) if path.is_file() and "labels" not in path.parts]
    assert files
    return {str(path.relative_to(plate)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_chain_changes_features_and_nothing_that_is_stored_and_reruns_what_follows_from_the_illumination(small):
    before, images = records(small), image_digests(small)
    table = read_table(small / "results/plates/P1/features/A01.parquet")
    configure(small, restoration=CHAIN)
    run_stages(small, TO_FEATURES)
    after = records(small)
    assert image_digests(small) == images
    assert {stage for stage in TO_FEATURES if after[stage]["computed"]} == {"illumination", "segmentation", "features"}
    for stage in ("conversion", "quality", "flagging"):
        assert after[stage]["artefacts"] == before[stage]["artefacts"]
    changed = read_table(small / "results/plates/P1/features/A01.parquet")
    low = "Cytoplasm_Intensity_LowerQuartileIntensity_"
    left = {name: changed[low + name].median() / table[low + name].median() for name in ("DNA", "ER")}
    assert left["DNA"] < 0.4 and left["ER"] > 0.6  # the cells' outlines are others, too

    configure(small, restoration=[*CHAIN[:1], CHAIN[1] | {"parameters": {"radius_um": 21}}])
    run_stages(small, TO_FEATURES)
    assert records(small)["features"]["artefacts"] != after["features"]["artefacts"]
    configure(small, restoration=[])
    run_stages(small, TO_FEATURES)
    assert {stage: one["artefacts"] for stage, one in records(small).items()} == {
        stage: one["artefacts"] for stage, one in before.items()
    }


def test_windows_of_restored_fields_are_those_of_the_whole_field(small):
    configure(small, restoration=CHAIN)
    run_stages(small, TO_FEATURES[:3])
    fingerprint = records(small)["illumination"]["artefacts"]["illumination"]
    whole = read_corrected("P1", "A01", 1, fingerprint)
    assert whole.shape == (3, 200, 200)
    for window in ((slice(20, 90), slice(101, 140)), (slice(0, 5), slice(190, 200)), (slice(None), slice(None))):
        found = read_corrected("P1", "A01", 1, fingerprint, window=window)
        np.testing.assert_array_equal(found, whole[(slice(None), *window)])
    dna = read_corrected("P1", "A01", 1, fingerprint, channels=["DNA"], window=window)
    np.testing.assert_array_equal(dna[0], whole[0])


def test_without_a_chain_settings_are_as_if_there_were_no_such_thing(small):
    screen = Screen(yaml.safe_load((small / "config.yaml").read_text()), small)
    assert set(screen.settings("illumination")) == {"method", "parameters", "fields", "late"}
    before = {stage: screen.code(stage) for stage in ("illumination", "segmentation")}
    configure(small, restoration=[{"method": "gaussian"}])
    screen = Screen(yaml.safe_load((small / "config.yaml").read_text()), small)
    assert screen.settings("illumination")["restoration"] == [
        {"method": "gaussian", "parameters": {"sigma_um": 0.5}, "channels": None}
    ]
    assert screen.code("illumination") != before["illumination"]
    assert screen.code("segmentation") == before["segmentation"]


def test_every_mistake_in_a_chain_is_told():
    steps = [
        {"method": "gausian"},
        {"method": "median", "parameters": {"radius_pixels": 2}},
        {"method": "non_local_means"},
        {"method": "gaussian", "channels": ["DAN"], "parameters": {"sigma_um": -1}},
    ]
    with pytest.raises(ConfigError) as caught:
        load_config({"channels": CHANNELS, "restoration": steps})
    text = "\n".join(caught.value.problems)
    for part in (
        "restoration.0.method: Unknown restoration method 'gausian'. Did you mean 'gaussian'?",
        "restoration.1.parameters.radius_pixels: unknown setting. Did you mean 'radius_px'?",
        "restoration.2.parameters.noise: Field required",
        "restoration.3.parameters.sigma_um",
        "restoration.3.channels: no channel 'DAN'. Did you mean 'DNA'?",
    ):
        assert part in text, part
    assert len(caught.value.problems) == 5


def test_a_step_that_is_none_hides_no_other_mistake():
    with pytest.raises(ConfigError) as caught:
        load_config({"channels": CHANNELS, "restoration": [{"metod": "median"}], "report": {"composite": ["DAN"]}})
    text = "\n".join(caught.value.problems)
    assert "restoration.0.metod: unknown setting. Did you mean 'method'?" in text and "Did you mean 'DNA'?" in text


def test_a_preview_shows_restored_fields(tmp_path, monkeypatch):
    from plateloom import segmentation
    from plateloom.cli.preview import command

    folder = simulate(tmp_path / "screen", rows=1, columns=2, size_px=200, cells_per_field=8.0)
    darkest, segment = [], segmentation.segment_image
    monkeypatch.setattr(
        segmentation,
        "segment_image",
        lambda image, *_, **more: darkest.append(image.min((1, 2))) or segment(image, *_, **more),
    )
    for chain in ([], CHAIN):
        configure(folder, restoration=chain)
        assert CliRunner().invoke(command, [str(folder), "--wells", "A01"]).exit_code == 0
    plain, clean = darkest
    assert (plain > 0).all() and clean[0] == 0 and (clean[1:] > 0.9 * plain[1:]).all()
