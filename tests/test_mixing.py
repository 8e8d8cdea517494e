"""Mixing of batches: against what it must be where it is known, and against scib-like counts done plainly."""

import tracemalloc

import numpy as np
import pytest

from plateloom import mixing
from plateloom.mixing import measure_mixing


def make_screen(*, plates=4, treatments=10, wells=2, shift=0.0, signal=3.0, features=6, seed=0):
    """Profiles, plates and treatments; every plate carries every treatment."""
    random = np.random.default_rng(seed)
    of_treatment, of_plate = (
        random.normal(size=(treatments, features)) * signal,
        random.normal(size=(plates, features)) * shift,
    )
    grid = [(p, t) for p in range(plates) for t in range(treatments) for _ in range(wells)]
    values = np.array([of_treatment[t] + of_plate[p] for p, t in grid]) + random.normal(size=(len(grid), features))
    return values, np.array([f"P{p}" for p, _ in grid]), np.array([f"t{t}" for _, t in grid])


def test_plates_that_differ_in_nothing_mix_as_chance_has_it():
    found = measure_mixing(*make_screen())
    assert found["own_low"] <= found["own"] <= found["own_high"]
    assert found["p"] > 0.05
    assert found["mixing"] == pytest.approx(1, abs=0.06)
    assert found["effective"] == pytest.approx(found["effective_expected"], rel=0.06)


def test_chance_is_right_about_plates_that_differ_in_nothing_nineteen_times_in_twenty():
    inside = 0
    for seed in range(40):
        found = measure_mixing(*make_screen(seed=seed, plates=3, treatments=5), n_permutations=100, seed=seed)
        inside += found["own_low"] <= found["own"] <= found["own_high"]
    assert 34 <= inside <= 40


def test_plates_far_apart_do_not_mix():
    found = measure_mixing(*make_screen(shift=40.0))
    assert found["own"] == found["effective"] == 1.0
    assert found["mixing"] == 0.0 and found["p"] <= 0.01


def test_more_shift_is_less_mixing():
    mixed = [measure_mixing(*make_screen(shift=shift, signal=1.0))["mixing"] for shift in (0, 0.5, 1, 2)]
    assert mixed == sorted(mixed, reverse=True) and mixed[0] > mixed[-1] + 0.5


def test_a_layout_that_differs_between_plates_is_no_effect_of_plates():
    """Half of the treatments are mostly on one plate: by their wells' neighbors plates look apart, and are not."""
    random = np.random.default_rng(0)
    treatments = np.repeat([f"t{i}" for i in range(8)], 12)
    plates = np.concatenate(
        [random.permutation(["P1"] * 10 + ["P2"] * 2 if i % 2 else ["P1"] * 2 + ["P2"] * 10) for i in range(8)]
    )
    centers = random.normal(size=(8, 5)) * 10
    values = np.repeat(centers, 12, axis=0) + random.normal(size=(96, 5))
    found = measure_mixing(values, plates, treatments)
    assert found["own"] > 0.65  # 0.5, if treatments did not matter
    assert found["own_low"] <= found["own"] <= found["own_high"]
    assert found["mixing"] == pytest.approx(1, abs=0.1)


def test_it_counts_as_one_does_by_hand():
    values, plates, treatments = make_screen(shift=1.0, plates=3, treatments=4)
    found = measure_mixing(values, plates, treatments, neighbors=4)
    unit = values / np.linalg.norm(values, axis=1, keepdims=True)
    own, effective = [], []
    for i in range(len(values)):
        others = [j for j in np.argsort(-(unit @ unit[i])) if j != i][:4]
        shares = [np.mean([plates[j] == plate for j in others]) for plate in set(plates[others])]
        own.append(np.mean([plates[j] == plates[i] for j in others]))
        effective.append(1 / sum(share**2 for share in shares))
    assert found["own"] == pytest.approx(np.mean(own))
    assert found["effective"] == pytest.approx(np.mean(effective))


def test_memory_grows_with_the_neighbors_and_not_with_their_square():
    screen = make_screen(plates=8, treatments=20, wells=10)  # 1,600 wells, 400 neighbors of each
    tracemalloc.start()
    try:
        measure_mixing(*screen, neighbors=400, n_permutations=1)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 100e6, "256 MB would hold which two of them are of one plate"


def test_wells_whose_treatment_is_in_one_batch_only_take_no_part():
    values, plates, treatments = make_screen()
    treatments = np.where((treatments == "t0") & (plates == "P0"), "alone", treatments)
    found = measure_mixing(values, plates, treatments)
    assert found["n_wells"] == len(values) - 2


def test_a_screen_that_cannot_tell_batches_from_treatments_is_refused():
    values, plates, treatments = make_screen()
    with pytest.raises(ValueError, match="0 wells hold a treatment that is in two batches or more, 8 needed"):
        measure_mixing(values, plates, np.char.add(treatments, plates))
    with pytest.raises(ValueError, match="two batches"):
        measure_mixing(values, np.full(len(values), "P1"), treatments)


def test_the_same_numbers_come_again():
    screen = make_screen(shift=0.7)
    assert measure_mixing(*screen, seed=3) == measure_mixing(*screen, seed=3)


def test_many_wells_are_thinned_by_whole_treatments(monkeypatch):
    """Eight libraries on four plates each: of a treatment's four wells all are drawn or none, else few could be exchanged."""
    random, rows = np.random.default_rng(0), []
    for library, replicate in np.ndindex(8, 4):
        effect = random.normal(size=6)
        names = [f"c{library}-{k}" for k in range(60)] + ["DMSO"] * 8
        rows += [(effect + random.normal(size=6), f"L{library}R{replicate}", name) for name in names]
    values, plates, treatments = (np.array(column) for column in zip(*rows, strict=True))
    every = measure_mixing(values, plates, treatments, n_permutations=50)
    monkeypatch.setattr(mixing, "MOST_WELLS", 600)
    found = measure_mixing(values, plates, treatments, n_permutations=50)
    assert 500 < found["n_wells"] <= 600 and found["n_batches"] == every["n_batches"] == 32
    assert found["own_expected"] == pytest.approx(every["own_expected"], abs=0.015)
    assert found["mixing"] == pytest.approx(every["mixing"], abs=0.1)
    drawn = mixing._draw_treatments(np.arange(len(plates)), plates, treatments, np.random.default_rng(0))
    names, count = np.unique(treatments[drawn], return_counts=True)
    assert set(count[names != "DMSO"]) == {4}


def test_of_a_frequent_treatment_some_wells_of_every_batch_are_drawn(monkeypatch):
    monkeypatch.setattr(mixing, "MOST_WELLS", 60)
    treatments = np.array(["DMSO"] * 300 + ["a"] * 4)
    plates = np.array([*["P1"] * 280, *["P2"] * 20, "P1", "P1", "P2", "P2"])
    drawn = mixing._draw_treatments(np.arange(304), plates, treatments, np.random.default_rng(0))
    of_control = plates[drawn[treatments[drawn] == "DMSO"]]
    assert (of_control == "P2").sum() == 20 and (of_control == "P1").sum() == 30
