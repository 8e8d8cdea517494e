"""`plateloom preview`: fields segmented straight from the raw files, on a page, without a run."""

import copy
import html
import os
import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import TRUNCATED, WITHOUT_GFP

from plateloom.cli.preview import _change, command
from plateloom.errors import ConfigError, PlateLayoutError
from plateloom.stages.preview import choose_places


def preview(*options):
    done = CliRunner().invoke(command, [".", *options])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.output


def text_of(path="preview.html"):
    page = re.sub(r"<style.*?</style>|<script.*?</script>", "", Path(path).read_text(encoding="utf-8"), flags=re.S)
    return re.sub(r"\s+", " ", html.unescape(re.sub("<[^>]+>", " ", page)))


def files():
    return sorted(os.path.join(folder, name) for folder, _, names in os.walk(".") for name in names)


def test_nothing_is_written_but_a_page_with_the_wells_asked_for(screen):
    before = files()
    said = preview("--wells", "A02,b1/1")
    assert files() == sorted([*before, "./preview.html"]) and "2 fields of P1" in said
    shown = text_of()
    assert shown.index("A02") < shown.index("B01") and "A03" not in shown
    counts = [int(count) for count in re.findall(r"field 1, (\d+) nuclei in all of it", shown)]
    assert len(counts) == 2 and all(5 <= count <= 20 for count in counts), "12 cells a field were simulated"


def test_the_labels_are_those_of_the_method_on_the_corrected_field(screen, monkeypatch):
    from plateloom import segmentation

    seen = []
    real = segmentation.segment_image

    def spy(image, channels, **options):
        labels = real(image, channels, **options)
        seen.append((image.copy(), list(channels), options, labels))
        return labels

    monkeypatch.setattr(segmentation, "segment_image", spy)
    preview("--wells", "A02", "--set", "prominence=0.2", "--set", "engine.device=cpu")
    ((image, channels, options, labels),) = seen
    assert options["device"] == "cpu"
    assert options["params"]["prominence"] == 0.2 and options["pixel_size_um"] == pytest.approx(0.65)
    assert image.min() > 0 and image.max() < 1 and channels == ["DNA", "ER", "GFP"]
    assert f"field 1, {labels['Nuclei'].max()} nuclei" in text_of()


def test_channels_that_no_picture_shows_are_named(screen):
    preview("--wells", "A02")
    assert "Not shown" not in text_of(), "three channels fit into a picture"
    preview("--wells", "A02", "--set", "report.composite=[GFP]")
    assert "Not shown: DNA, ER." in text_of()


def test_a_plate_without_its_folder_is_a_mistake(screen):
    names, first, *others = Path("plates.tsv").read_text().splitlines()
    cells = first.split("\t")
    cells[names.split("\t").index("source")] = "gone"
    Path("plates.tsv").write_text("\n".join([names, "\t".join(cells), *others]))
    with pytest.raises(ConfigError, match="P1: no folder 'gone'"):
        preview()


def test_values_are_compared_side_by_side(screen):
    preview("--wells", "A02,A03", "--vary", "nucleus_diameter_um=6,12", "--out", "compared.html")
    shown = text_of("compared.html")
    assert "settings compared" in shown and not os.path.exists("preview.html")
    heads = re.findall(r"nucleus_diameter_um = (\d+) .*?field 1, (\d+) nuclei", shown[shown.index("Show outlines") :])
    assert [value for value, _ in heads] == ["6", "12", "6", "12"], "the pictures of one field lie side by side"
    assert "nucleus_diameter_um = 6: " in shown, "sizes that cannot be true are told with the setting they belong to"


def test_another_method_takes_over_what_was_set_and_means_the_same_and_nothing_else():
    chosen = {"nuclei_channel": "Hoechst", "cells_channel": None, "nucleus_diameter_um": 9.0, "prominence": 0.2}
    settings = {"segmentation": {"method": "watershed", "parameters": chosen}, "conversion": {"z": "max"}}
    for value in ("unet", " unet", '"unet"'):
        changed = copy.deepcopy(settings)
        _change(changed, "segmentation.method", value)
        assert changed["segmentation"] == {
            "method": "unet",
            "parameters": {"nuclei_channel": "Hoechst", "nucleus_diameter_um": 9.0},
        }
    defaults = {"nuclei_channel": "DNA", "nucleus_diameter_um": 7.0}
    _change(changed := {"segmentation": {"method": "watershed", "parameters": defaults}}, "segmentation.method", "nope")
    assert changed["segmentation"] == {"method": "nope", "parameters": {}}


def test_a_width_that_the_nuclei_do_not_have_is_told_with_the_one_that_they_have(screen):
    said = preview("--wells", "A02,B01", "--set", "nucleus_diameter_um=40")
    (width,) = map(float, re.findall(r"nuclei in DNA look about ([\d.]+) µm wide", said))
    assert 8 < width < 18 and f"nucleus_diameter_um is 40: try nucleus_diameter_um={width:.3g}." in said
    right = preview("--wells", "A02,B01", "--set", f"nucleus_diameter_um={width}")
    assert (
        "look about" in right and "try nucleus" not in right and "by an estimate from the image alone" in right.lower()
    )


def test_what_a_person_must_know_of_a_method_is_told(screen, monkeypatch):
    from plateloom.segmentation import watershed

    monkeypatch.setattr(watershed, "notices", lambda params: [f"Mind {params.nuclei_channel}."], raising=False)
    assert "Mind DNA." in preview("--wells", "A02") and "Mind DNA." in text_of() and "Now look at" in text_of()


def test_a_flagged_field_is_told(screen):
    preview("--wells", "A02,A03", "--set", "quality.parameters={min_contrast: 1000000}")
    assert "A02, field 1 is flagged beside the fields of this page" in text_of()


def test_a_field_that_cannot_be_read_is_told_and_the_others_are_shown(screen):
    said = preview("--wells", f"{TRUNCATED},{WITHOUT_GFP}")
    assert "1 field of P1" in said
    shown = text_of()
    assert f"{TRUNCATED}, field 1 cannot be read" in shown and WITHOUT_GFP in shown
    with pytest.raises(PlateLayoutError, match="cannot be read"):
        preview("--wells", TRUNCATED)


def test_settings_that_cannot_work_on_these_pixels_are_told_beside_those_that_can(screen):
    method = ("--set", "segmentation.method=patches", "--set", "profiling.parameters={}")
    preview("--wells", "A02", *method, "--vary", "size_um=2,40")
    shown = text_of()
    assert "cannot work here: size_um is 2, which is 3.1 px here; expected 5.2 or more" in shown
    assert "field 1, not segmented" in shown and re.search(r"field 1, \d+ nuclei", shown)
    assert "no field is segmented: cannot work here" in preview("--wells", "A02", *method, "--set", "size_um=2")


def test_wrong_input_is_refused_with_what_to_type(screen):
    for options, said in {
        ("--wells", "A99x"): "neither a well",
        ("--plate", "P2"): "no plate 'P2'; there are P1",
        ("--set", "prominenz=1"): "Did you mean 'prominence'",
        ("--set", "prominence"): "expected NAME=VALUE",
        ("--set", "z=keep"): "z: no parameter of the segmentation; write conversion.z",
        ("--set", "method=unet"): "segmentation.method",
        ("--set", "segmentaton.method=watershed"): "Did you mean 'segmentation'",
        ("--vary", "illumination.fields=3,4"): "works on segmentation",
    }.items():
        with pytest.raises(ConfigError) as refused:
            preview(*options)
        assert said in "\n".join(refused.value.problems), options
    for wells, said in {"H12": "no well H12", "A02/9": "has no field 9"}.items():
        with pytest.raises(ConfigError, match=said):
            preview("--wells", wells)
    assert not os.path.exists("preview.html")


def test_after_a_run_the_plates_own_flatfields_are_taken(screen):
    from in_process import run_stages

    preview("--wells", "A02")
    assert "Flat-fields: from" in text_of()
    run_stages(screen, ("conversion", "assembly", "illumination"))
    preview("--wells", "A02")
    assert "those of the plate's last run" in text_of()
    for asked in ("illumination.method=none", "illumination.parameters.degree=2"):
        preview("--wells", "A02", "--set", asked)
        assert "those of the plate's last run" not in text_of(), asked


def test_controls_come_first_and_then_wells_by_a_hash():
    places = [(f"A{i:02d}", field) for i in range(1, 13) for field in (3, 2)]
    chosen = choose_places(places, 5, ["A07", "A99", "A01"])
    assert chosen[:2] == [("A07", 2), ("A01", 2)] and len({well for well, _ in chosen}) == 5
    assert chosen == choose_places(places[::-1], 5, ["A07", "A99", "A01"])
    assert len(np.unique([well for well, _ in choose_places(places, 99)])) == 12
