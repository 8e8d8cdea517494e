"""Quality of raw fields: metrics against closed forms, flags against simulated defects."""

from functools import cache

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import simulate
from in_process import run_stages
from pydantic import ValidationError
from scipy.stats import rankdata

from plateloom import simulation
from plateloom.config import read_config
from plateloom.planning import Screen
from plateloom.quality import FLAGS, METRICS, Params, find_unlike_counts, flag_fields, measure_plane
from plateloom.simulation import ScreenDesign, all_defects, all_fields, plate_map, render_field

KEYS = ["Metadata_Plate", "Metadata_Well", "Metadata_Field", "Channel"]
DESIGN = ScreenDesign(
    plates=("P1",),
    rows=6,
    columns=8,
    seed=33,
    size_px=400,
    cells_per_field=32,
    defects={"blurred": 9, "debris": 9, "saturated": 7, "empty": 7},
)


@cache
def measured(design):
    rows = []
    for plate, well, field in all_fields(design):
        image = render_field(design, plate, well, field).image
        for name, plane in zip(design.channel_names, image, strict=True):
            rows.append(
                dict(zip(KEYS, (plate, well, field, name), strict=True)) | {"SourceField": field} | measure_plane(plane)
            )
    return pd.DataFrame(rows)


@cache
def flagged(design, table=None):
    table = flag_fields(measured(design) if table is None else table)
    defects = all_defects(design)
    empty = {row["well"] for row in plate_map(design, "P1") if row["control"] == "empty"}
    table["truth"] = [
        "empty" if well in empty else defects.get((plate, well, field), ("good",))[0]
        for plate, well, field in table[KEYS[:3]].itertuples(index=False)
    ]
    return table


def area_under_curve(scores, positive):
    """Probability that a positive scores above a negative, by ranks."""
    ranks, count = rankdata(scores), positive.sum()
    return (ranks[positive].sum() - count * (count + 1) / 2) / (count * (~positive).sum())


def rows(count, **columns):
    """A table of fields of one plate and channel, all alike but for the columns given."""
    typical = dict.fromkeys(METRICS, 1.0) | {
        "focus_slope": -3.0,
        "focus_laplacian": 0.004,
        "focus_detail": 80.0,
        "mean": 200.0,
        "saturated_fraction": 0.0,
        "contrast": 80.0,
        "background": 100.0,
        "p999": 1000.0,
        "artefact_fraction": 0.0,
    }
    table = pd.DataFrame([typical] * count)
    table.insert(0, "Metadata_Plate", "P1")
    table.insert(1, "Metadata_Well", [f"A{k + 1:02d}" for k in range(count)])
    table.insert(2, "Metadata_Field", 1)
    table.insert(3, "SourceField", 1)
    table.insert(4, "Channel", "DNA")
    return table.assign(**columns)


SIGNS = [
    ("blurred", "focus_laplacian", -1),
    ("blurred", "focus_slope", -1),
    ("saturated", "saturated_fraction", 1),
    ("empty", "contrast", -1),
    ("debris", "p999", 1),
    ("debris", "artefact_fraction", 1),
]


def separation(table, kind, metric, sign, channel):
    """Area under the ROC curve of a metric, defective against good fields."""
    table = table[(table["Channel"] == channel) & table["truth"].isin(["good", kind])]
    return area_under_curve(sign * table[metric].to_numpy(), (table["truth"] == kind).to_numpy())


@pytest.mark.parametrize("channel", DESIGN.channel_names)
@pytest.mark.parametrize(("kind", "metric", "sign"), SIGNS)
def test_each_metric_separates_its_defect_from_good_fields(kind, metric, sign, channel):
    least = 0.9 if metric == "artefact_fraction" else 0.95
    assert separation(flagged(DESIGN), kind, metric, sign, channel) >= least


@pytest.mark.parametrize("um", [1.5, 3.2, 8, 15, 40])
def test_fields_are_blurred_however_far_they_are_out_of_focus(um, monkeypatch):
    design = ScreenDesign(
        plates=("P1",), rows=3, columns=5, size_px=256, fields=1, cells_per_field=14.0, defects={"blurred": 3}, seed=4
    )
    table = measured(design).set_index(KEYS)
    monkeypatch.setattr(simulation, "_DEFOCUS_UM", (um, um))
    for key in all_defects(design):
        for name, plane in zip(design.channel_names, render_field(design, *key).image, strict=True):
            table.loc[(*key, name), list(METRICS)] = pd.Series(measure_plane(plane))
    table = flagged.__wrapped__(design, table.reset_index())
    for channel in design.channel_names:
        assert separation(table, "blurred", "focus_laplacian", -1, channel) >= 0.95
        assert separation(table, "blurred", "focus_detail", -1, channel) >= 0.95 or um < 3
    found = table.groupby([*KEYS[:3], "truth"])[list(FLAGS)].any().groupby("truth").mean()
    assert found.loc["blurred", "Flag_Blurred"] == 1 or um < 3
    assert found.loc["blurred", "Flag_Empty"] == 0 and found.loc["good"].max() == 0
    if um >= 15:
        assert table.loc[table["Flag_Blurred"], "Reason"].str.contains("median, no detail but noise").all()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_each_metric_does_so_on_other_screens_with_small_fields(seed):
    defects = {"blurred": 6, "debris": 6, "saturated": 5, "empty": 5}
    design = ScreenDesign(
        plates=("P1",), rows=6, columns=8, size_px=256, fields=1, cells_per_field=12.0, defects=defects, seed=seed
    )
    table = flagged(design)
    for kind, metric, sign in SIGNS[:-1]:
        for channel in design.channel_names:
            assert separation(table, kind, metric, sign, channel) >= 0.95, (kind, metric, channel)
    found = table.groupby([*KEYS[:3], "truth"])[list(FLAGS)].any().groupby("truth").mean()
    for kind in defects:  # though nearly half of the fields are defective
        assert found.loc[kind, f"Flag_{kind.capitalize()}"] >= 0.95
    assert found.loc["good"].max() <= 0.02


@pytest.mark.parametrize(
    ("kind", "flag", "least"),
    [("blurred", FLAGS[0], 0.95), ("saturated", FLAGS[1], 0.95), ("empty", FLAGS[2], 1.0), ("debris", FLAGS[3], 0.95)],
)
def test_defective_fields_are_flagged_for_what_they_are(kind, flag, least):
    table = flagged(DESIGN)
    found = table[table["truth"] == kind].groupby(KEYS[:3])[flag].any()
    assert found.mean() >= least


def test_no_more_than_two_percent_of_good_fields_are_flagged():
    table = flagged(DESIGN)
    good = table[table["truth"] == "good"]
    assert good.groupby(KEYS[:3])[list(FLAGS)].any().any(axis=1).mean() <= 0.02


def test_a_reason_stands_where_a_flag_stands_and_nowhere_else():
    table = flagged(DESIGN)
    np.testing.assert_array_equal(table["Reason"] != "", table[list(FLAGS)].any(axis=1))
    assert table.loc[table["Flag_Saturated"], "Reason"].str.contains("saturated: ").all()
    assert table.loc[table["Flag_Blurred"], "Reason"].str.contains("blurred: ").all()


def test_flagging_keeps_rows_index_and_metrics_and_leaves_its_input_alone():
    table = measured(DESIGN).sample(frac=1, random_state=0)
    before = table.copy()
    found = flag_fields(table)
    pd.testing.assert_frame_equal(table, before)
    pd.testing.assert_frame_equal(found[list(table.columns)], before)
    assert [*table.columns, "Dark", *FLAGS, "Reason"] == list(found.columns)
    assert all(found[flag].dtype.kind == "b" for flag in ("Dark", *FLAGS))
    pd.testing.assert_frame_equal(found.sort_index(), flag_fields(measured(DESIGN)))


def test_fields_are_compared_within_their_plate_and_channel_only():
    sharp, dull = rows(12), rows(12, focus_laplacian=0.0001, focus_slope=-6.0)
    for other in (dull.assign(Metadata_Plate="P2"), dull.assign(Channel="ER")):
        found = flag_fields(pd.concat([sharp, other], ignore_index=True))
        assert not found["Flag_Blurred"].any()
    assert (
        flag_fields(pd.concat([sharp, dull[:2]], ignore_index=True))["Flag_Blurred"].tolist()
        == [False] * 12 + [True] * 2
    )


def test_a_plate_that_is_blurred_as_a_whole_meets_the_absolute_limit():
    assert flag_fields(rows(5, focus_slope=-7.0))["Flag_Blurred"].all()
    assert not flag_fields(rows(5, focus_slope=-7.0), Params(min_focus_slope=None))["Flag_Blurred"].any()


def test_brightness_in_one_of_three_channels_is_no_debris_and_in_two_it_is():
    table = pd.concat([rows(10, Channel=name) for name in ("DNA", "ER", "GFP")], ignore_index=True)
    table.loc[4, "p999"] = 3000.0
    assert not flag_fields(table)["Flag_Debris"].any()
    table.loc[14, "p999"] = 3000.0
    table.loc[14, "artefact_fraction"] = 0.01
    assert flag_fields(table)["Flag_Debris"].to_numpy().nonzero()[0].tolist() == [4, 14]


def test_a_well_that_is_bright_throughout_is_a_phenotype_and_one_bright_field_of_it_is_debris():
    fields = {"Metadata_Well": [f"A{n:02d}" for n in range(1, 11) for _ in range(3)], "Metadata_Field": [1, 2, 3] * 10}
    table = pd.concat([rows(30, Channel=name, **fields) for name in ("DNA", "ER", "GFP")], ignore_index=True)
    table["SourceField"], table["artefact_fraction"] = table["Metadata_Field"], 0.0
    table.loc[table["Metadata_Well"] == "A04", "p999"] = 3000.0
    assert not flag_fields(table)["Flag_Debris"].any()
    table.loc[(table["Metadata_Well"] == "A07") & (table["Metadata_Field"] == 2), "p999"] = 3000.0
    found = table[flag_fields(table)["Flag_Debris"]]
    assert {*zip(found["Metadata_Well"], found["Metadata_Field"], strict=True)} == {("A07", 2)} and len(found) == 3
    (reason,) = set(flag_fields(table).loc[found.index, "Reason"])
    assert reason.endswith("times the median of its well (a bright phenotype can look like this)")


def test_the_fields_of_a_stitched_image_are_flagged_one_by_one():
    table = rows(8, Metadata_Well=["A01"] * 4 + ["A02"] * 4, SourceField=[1, 2, 3, 4] * 2)
    table.loc[[0, 4, 5, 6], "saturated_fraction"] = 0.5
    assert (flag_fields(table)["Reason"] != "").to_numpy().nonzero()[0].tolist() == [0, 4, 5, 6]


def test_a_single_field_is_judged_by_the_absolute_limits():
    assert flag_fields(rows(1))["Reason"].tolist() == [""]
    found = flag_fields(rows(1, saturated_fraction=0.5, contrast=2.0))
    assert found["Reason"].tolist() == ["saturated: 50.00% of pixels; empty: contrast 2.0 of the noise"]


def test_a_dark_marker_is_no_defect_and_a_field_is_empty_where_all_is_dark():
    dna, gfp = rows(4), rows(4, Channel="GFP", contrast=4.0)
    dna.loc[2:, "contrast"] = 5.0
    gfp.loc[3, "contrast"] = np.nan  # a plane that is missing
    found = flag_fields(pd.concat([dna, gfp], ignore_index=True))
    assert found["Dark"].tolist() == [False, False, True, True] + [True, True, True, False]
    assert found["Flag_Empty"].tolist() == [False, False, True, True] + [False, False, True, False]
    assert (found["Reason"] != "").tolist() == found["Flag_Empty"].tolist()


def test_a_channel_that_is_dark_where_the_rest_of_its_well_shows_it_is_unlit():
    wells = [f"A{k:02d}" for k in range(1, 6)]
    table = rows(20, Metadata_Well=np.repeat(wells, 4), Metadata_Field=[1, 2, 3, 4] * 5, SourceField=[1, 2, 3, 4] * 5)
    gfp = table.assign(Channel="GFP")
    table.loc[5, "contrast"] = 4.0
    found = flag_fields(pd.concat([table, gfp], ignore_index=True))
    assert np.flatnonzero(found["Flag_Unlit"]).tolist() == [5] == np.flatnonzero(found["Reason"]).tolist()
    assert found.loc[5, "Reason"].startswith("unlit: contrast 4.0 of the noise")
    for dark in ([4, 5, 6], [1, 5, 9]):  # most of a well; too many fields of the plate
        marker = table.assign(contrast=80.0)
        marker.loc[dark, "contrast"] = 4.0
        assert not flag_fields(pd.concat([marker, gfp], ignore_index=True))["Flag_Unlit"].any()


def test_missing_planes_are_not_flagged_and_do_not_move_the_others():
    table = rows(9)
    table.loc[3, "focus_laplacian"], table.loc[3, "focus_slope"] = 0.0001, -6.0
    missing = table.copy()
    missing.loc[[1, 5], list(METRICS)] = np.nan
    found = flag_fields(missing)
    assert found.index[found[list(FLAGS)].any(axis=1)].tolist() == [3]
    assert found.loc[[1, 5], "Reason"].tolist() == ["", ""]


def test_a_plate_of_missing_planes_and_a_table_without_rows_give_no_flag():
    nothing = rows(4)
    nothing[list(METRICS)] = np.nan
    assert not flag_fields(nothing)[list(FLAGS)].any(axis=None)
    none = flag_fields(rows(2)[:0])
    assert len(none) == 0
    assert {*FLAGS, "Reason"} <= set(none.columns)


@pytest.mark.parametrize("value", [0, 100, 65535])
def test_a_constant_plane_is_empty_and_has_no_focus(value):
    found = measure_plane(np.full((40, 50), value, np.uint16))
    assert np.isnan(found["focus_slope"])
    assert np.isnan(found["focus_laplacian"])
    assert found["noise"] == found["contrast"] == found["std"] == 0
    assert found["mean"] == found["p01"] == found["p999"] == found["background"] == value
    assert found["artefact_fraction"] == (value == 65535)
    assert found["saturated_fraction"] == (value == 65535)
    table = flag_fields(
        pd.DataFrame([dict(zip(KEYS, ("P", "A01", k, "DNA"), strict=True)) | found for k in range(3)]).assign(
            SourceField=1
        )
    )
    assert table["Flag_Empty"].all()
    assert not table["Flag_Blurred"].any()


@pytest.mark.parametrize("shape", [(1, 1), (2, 5), (31, 200), (100, 37)])
def test_planes_of_any_size_are_measured(shape):
    found = measure_plane(np.random.default_rng(0).integers(100, 140, shape, dtype=np.uint16))
    assert list(found) == list(METRICS)
    assert all(isinstance(one, float) for one in found.values())
    assert np.isnan(found["focus_slope"]) == np.isnan(found["artefact_fraction"]) == (min(shape) < 32)


def test_the_noise_is_that_of_the_pixels_and_not_of_the_shading():
    rng = np.random.default_rng(1)
    plane = 500 + np.linspace(0, 300, 256)[:, None] + rng.normal(0, 7, (256, 256))
    assert measure_plane(plane)["noise"] == pytest.approx(7, rel=0.03)


def test_the_slope_is_the_exponent_of_the_power_law():
    rng = np.random.default_rng(2)
    radius = np.hypot(np.fft.fftfreq(512)[:, None], np.fft.rfftfreq(512)[None, :])
    radius[0, 0] = 1
    for exponent in (0.0, -2.0, -4.0):
        plane = np.fft.irfft2(np.fft.rfft2(rng.normal(size=(512, 512))) * radius ** (exponent / 2))
        assert measure_plane(plane)["focus_slope"] == pytest.approx(exponent, abs=0.15)


def test_percentiles_mean_and_spread_agree_with_numpy():
    plane = np.random.default_rng(3).integers(0, 4000, (64, 80), dtype=np.uint16)
    found = measure_plane(plane)
    expected = np.percentile(plane, [1, 5, 50, 99, 99.9])
    np.testing.assert_allclose([found[k] for k in ("p01", "background", "p50", "p99", "p999")], expected, rtol=1e-5)
    assert found["mean"] == pytest.approx(plane.mean())
    assert found["std"] == pytest.approx(plane.std())


@pytest.mark.parametrize(("dtype", "level"), [("uint8", 255), ("uint16", 4095), ("uint16", 65535), ("uint16", 16383)])
def test_the_full_scale_of_the_camera_is_recognized(dtype, level):
    plane = np.full((40, 40), 90, dtype)
    plane[:4] = level
    assert measure_plane(plane)["saturated_fraction"] == pytest.approx(0.1)


def test_a_plane_of_few_levels_is_not_saturated_unless_the_level_is_given():
    plane = np.full((40, 40), 90, np.uint16)
    plane[:4] = 3000
    assert measure_plane(plane)["saturated_fraction"] == 0
    assert measure_plane(plane, saturation_level=3000)["saturated_fraction"] == pytest.approx(0.1)
    assert measure_plane(plane.astype(np.float32))["saturated_fraction"] == 0


def field_of_cells(seed=0):
    """Cells of several brightnesses on noise, 400 x 400."""
    rng = np.random.default_rng(seed)
    plane = 100 + rng.normal(0, 3, (400, 400))
    y, x = np.mgrid[:400, :400]
    for cy, cx in rng.uniform(10, 390, (60, 2)):
        plane += rng.uniform(300, 500) * np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / 2 / 6**2)
    return plane


@pytest.mark.parametrize("level", [200, 237, 251])
@pytest.mark.parametrize(("dtype", "factor"), [("uint8", 1), ("uint16", 1), ("uint16", 16), ("float32", 1 / 4095)])
def test_pixels_that_pile_up_at_the_brightest_level_are_saturated(level, dtype, factor):
    plane = field_of_cells()
    clipped = np.minimum(plane, level).astype(np.uint16)
    share = np.mean(clipped == level)
    assert share > 0.02
    assert measure_plane((clipped * factor).astype(dtype))["saturated_fraction"] == pytest.approx(share)
    for depth in (1, 4, 16):  # coarse steps pile up nothing
        assert measure_plane((plane / depth).astype(dtype))["saturated_fraction"] < 0.001


def survivors(count, seed=0):
    """Nuclei, 16 px across, on 1080 x 1080 px of noise with hot pixels."""
    rng = np.random.default_rng(seed)
    plane = rng.normal(100, 5, (1080, 1080))
    plane[tuple(rng.integers(0, 1080, (2, 50)))] = 4000
    y, x = np.mgrid[:1080, :1080]
    for cy, cx in rng.uniform(60, 1020, (count, 2)):
        plane += 1500 * (np.hypot(y - cy, x - cx) < 8)
    return plane.astype(np.uint16)


@pytest.mark.parametrize("count", [0, 1, 5])
def test_a_field_with_a_few_cells_is_not_empty_and_hot_pixels_are_none(count):
    found = measure_plane(survivors(count))
    assert found["contrast"] > 200 if count else found["contrast"] < 5
    assert found["focus_detail"] > 100 if count else found["focus_detail"] < 7


def test_only_a_field_that_has_the_light_of_cells_and_no_detail_is_blurred():
    fields = {"focus_slope": -0.2, "focus_laplacian": 0.0004, "focus_detail": 5.0}
    table = pd.concat([rows(12, Channel=name) for name in ("DNA", "ER", "GFP")], ignore_index=True)

    def blurred(channels=3, **columns):
        changed = table.copy()
        for channel in range(channels):
            for name, value in (fields | columns).items():
                changed.loc[12 * channel + 4, name] = value
        found = flag_fields(changed)
        assert not found.drop(index=[4, 16, 28])["Reason"].any()
        return bool(found["Flag_Blurred"].any()), bool(found["Flag_Empty"].any())

    assert blurred() == blurred(contrast=5.0) == (True, False)
    assert blurred(mean=110.0) == (False, False)  # shading is no light of cells
    assert blurred(mean=110.0, contrast=5.0) == (False, True)
    assert blurred(channels=2) == (False, False)  # nuclei are sharp: two markers are gone
    assert blurred(focus_laplacian=0.012, contrast=5.0) == (False, True)  # noise
    assert blurred(focus_detail=40.0) == (False, False)
    assert blurred(focus_detail=19.0, contrast=30.0) == (False, False)  # dim but sharp
    assert blurred(focus_detail=19.0) == (True, False)


def test_a_background_is_flagged_where_neither_its_plate_nor_its_well_has_it():
    fields = {
        "Metadata_Well": [f"A{n:02d}" for n in range(1, 11) for _ in range(4)],
        "Metadata_Field": [1, 2, 3, 4] * 10,
    }
    table = pd.concat([rows(40, Channel=name, **fields) for name in ("DNA", "GFP")], ignore_index=True)
    table["SourceField"] = table["Metadata_Field"]
    table.loc[44:47, "background"] = 900.0  # a compound that shines
    table.loc[[9, 60], "background"] = 500.0, 140.0
    table.loc[[9, 44, 45, 46, 47], "p999"] += 800.0
    found = flag_fields(table)
    assert np.flatnonzero(found["Flag_Background"]).tolist() == [9] == np.flatnonzero(found["Reason"]).tolist()
    assert found.loc[9, "Reason"] == "background: 5.0 times the plate's median and 5.0 times that of its well"
    table.loc[9, "background"] = 250.0  # as cells do that cover the field
    table["p999"] = 1000.0
    assert not flag_fields(table)["Flag_Background"].any()
    few = table[table["Metadata_Field"] <= 2].assign(background=100.0)
    few.loc[9, "background"] = 500.0
    assert not flag_fields(few)["Flag_Background"].any()


def test_the_area_of_an_artefact_is_measured_and_cells_are_none():
    plane = field_of_cells()
    assert measure_plane(plane.astype(np.uint16))["artefact_fraction"] == 0
    plane[100:140, 200:230] += 3000
    found = measure_plane(plane.astype(np.uint16))["artefact_fraction"]
    assert found == pytest.approx(40 * 30 / 400**2, rel=0.15)
    plane[50, 60] = 9000  # too small
    assert measure_plane(plane.astype(np.uint16))["artefact_fraction"] == found
    dull = np.minimum(field_of_cells(), 255)
    assert measure_plane(dull.astype(np.uint8))["artefact_fraction"] > 0.03, "saturated cells"


def test_artefacts_are_where_the_debris_is():
    table = flagged(DESIGN)
    mean = table.groupby("truth")["artefact_fraction"].mean()
    assert mean["debris"] > 10 * max(mean["good"], mean["blurred"], mean["empty"])
    assert table.loc[table["truth"] == "good", "artefact_fraction"].quantile(0.95) < 0.002
    reason = table.loc[table["Flag_Debris"], "Reason"]
    assert reason.str.contains(r"debris: \d.* brightness, and \d+\.\d% of the field").all()


@pytest.mark.parametrize("shape", [(0, 4), (3,), (2, 3, 4)])
def test_what_is_no_plane_is_refused(shape):
    with pytest.raises(ValueError, match="Expected a plane"):
        measure_plane(np.zeros(shape))


def test_unknown_thresholds_are_refused():
    with pytest.raises(ValidationError):
        Params(max_blur=1)


def counted(wells=96, fields=6, seed=0, mean=40):
    """A plate's numbers of cells: wells differ, and fields of a well by more than chance."""
    rng = np.random.default_rng(seed)
    expected = rng.lognormal(np.log(mean), 0.4, wells)[:, None] * rng.lognormal(0, 0.2, (wells, fields))
    table = pd.DataFrame({"Metadata_Well": np.repeat(np.arange(wells), fields)})
    return table.assign(Metadata_Field=np.tile(np.arange(1, fields + 1), wells), Count=rng.poisson(expected).ravel())


def test_a_field_without_the_cells_of_its_well_is_found_and_one_with_many_more():
    counts = counted(mean=80)
    counts.loc[[50, 300, 400], "Count"] = 1, 0, 900
    found = find_unlike_counts(counts)
    assert list(found.index) == [50, 300, 400]
    others = counts.loc[[300 + i for i in range(1, 6)], "Count"]
    assert found.loc[300, "Usual"] == others.median()


def test_fields_that_differ_by_chance_are_not_unlike():
    alarms = [len(find_unlike_counts(counted(seed=seed, mean=5 + seed))) > 0 for seed in range(60)]
    assert np.mean(alarms) <= 0.05


def test_wells_of_few_fields_or_few_cells_say_nothing_of_their_counts():
    few = counted(fields=3)
    few.loc[4, "Count"] = 0
    assert not len(find_unlike_counts(few)) and not len(find_unlike_counts(few[:0]))
    sparse = counted(mean=3)
    sparse["Count"] = np.where(np.arange(len(sparse)) % 6 == 2, 0, 4)
    assert not len(find_unlike_counts(sparse))


def test_fields_unlike_the_others_are_told_but_for_those_that_are_flagged_anyway():
    from plateloom.stages.fields import unlike_fields
    from plateloom.stages.report import _unlike_notice

    objects = counted(wells=4, mean=80).rename(columns={"Count": "Count_Nuclei"}).assign(Status="done")
    objects.loc[[1, 9], "Count_Nuclei"] = 0
    quality = pd.DataFrame({"Metadata_Well": [1], "Metadata_Field": [4], "Reason": ["blurred"]})
    (notice,) = _unlike_notice(unlike_fields(objects, quality), False)
    assert notice.kind == "fields" and "0 field 2 (0; others " in notice.text and "1 field 4" not in notice.text
    (notice,) = _unlike_notice(unlike_fields(objects, quality), True)
    assert "which are left out of values per well: " in notice.text and notice.section == "exclusions"
    assert not len(unlike_fields(objects.drop(index=1), quality)) and not len(unlike_fields(objects[:0], quality))
    assert _unlike_notice(unlike_fields(objects[:0], quality), True) == []


def test_a_level_of_saturation_measures_anew_and_other_thresholds_only_flag_anew(tmp_path):
    folder = simulate(tmp_path / "screen", rows=1, columns=2, size_px=128)
    path = folder / "results/plates/P1/qc.parquet"
    found = []
    for parameters in ({}, {"max_saturated": 0.02}, {"saturation_level": 200}):
        settings = yaml.safe_load((folder / "config.yaml").read_text()) | {"quality": {"parameters": parameters}}
        (folder / "config.yaml").write_text(yaml.safe_dump(settings))
        run_stages(folder, ("conversion", "assembly", "quality", "flagging"))
        screen = Screen(read_config(folder).model_dump(mode="json"), folder)
        found.append((screen.settings("quality"), pd.read_parquet(path)))
    assert [given for given, _ in found] == [{}, {}, {"saturation_level": 200.0}]
    pd.testing.assert_frame_equal(found[0][1], found[1][1])
    assert (found[2][1]["saturated_fraction"] > found[0][1]["saturated_fraction"] + 0.1).any()
