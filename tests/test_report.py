"""The report: one file that loads nothing, trusts no name, and says what is absent."""

import base64
import hashlib
import io
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from plateloom.report import (
    PLATE_SECTIONS,
    SCREEN_SECTIONS,
    AutoencoderReport,
    ClassifierReport,
    DoseResponse,
    Embedding,
    HeatMap,
    HillCurve,
    PlateReport,
    ScreenHeatMap,
    ScreenReport,
    Tile,
    composite_image,
    outline_image,
    outline_layer,
    pair_image,
    render_plate,
    render_screen,
)
from plateloom.report.charts import (
    category_colors,
    confusion_chart,
    dose_chart,
    embedding_chart,
    nice_ticks,
    plate_chart,
    scale_limits,
    scatter_picture,
)
from plateloom.report.montage import outline_mask
from plateloom.report.page import local_address

VOID = {"meta", "img", "input", "br", "hr", "link"}
HOSTILE = "<script>alert('x')</script>"
HOSTILE_ATTRIBUTE = '"><img src=x onerror=alert(1)>'
FORMULA = '=HYPERLINK("//evil")'
NAN = float("nan")


class Page(HTMLParser):
    """A strict reader: every tag is closed in order, no id occurs twice, no text is lost."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.text, self.ids = [], [], [], []
        self.feed(html)
        self.close()
        assert self.open == [], f"left open: {self.open}"
        assert len(self.ids) == len(set(self.ids))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        assert len(attrs) == len(dict(attrs)), f"an attribute occurs twice in <{tag}>"
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data):
        self.text.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def words(self):
        return "\n".join(self.text)


def small_plate(**changes):
    """A sparse plate of 96: four wells, one of them failed, one without a value."""
    wells = pd.DataFrame(
        {
            "Metadata_Well": ["B02", "B03", "C02", "C03"],
            "Metadata_Treatment": ["DMSO", HOSTILE, FORMULA, HOSTILE_ATTRIBUTE],
            "Metadata_Dose": [NAN, 1.0, 10.0, 0.1],
            "Metadata_Control": ["negative", "", "", "positive"],
            "status": ["done", "done", "failed", "done"],
            "reason": ["", "", "truncated TIFF", ""],
            "fields": [2, 2, 2, 2],
            "failed_fields": [0, 0, 2, 0],
            "cells": [120.0, 80.0, NAN, NAN],
        }
    )
    picture = np.full((4, 4, 3), 60, np.uint8)
    report = PlateReport(
        screen=HOSTILE,
        plate="P <b>1</b>",
        shape=(8, 12),
        wells=wells,
        batch=HOSTILE_ATTRIBUTE,
        source="https://example.org/inbox",
        dose_unit="µM",
        exclusions=pd.DataFrame(
            {"Metadata_Well": ["C02"], "Metadata_Field": [1], "channel": [HOSTILE], "reason": ["truncated TIFF"]}
        ),
        flagged=pd.DataFrame({"Metadata_Well": [], "Metadata_Field": [], "channel": [], "reason": []}),
        heat_maps=(
            HeatMap(title="Focus, DNA", values={"B02": -1.5, "B03": NAN, "C03": -1.2}, unit="slope", group="Quality"),
        ),
        quality=pd.DataFrame(
            {
                "readout": ["cells", HOSTILE],
                "statistic": ["Z'", "SSMD"],
                "value": [-3.0, NAN],
                "low": [-4.0, NAN],
                "high": [-2.0, NAN],
                "negatives": [1, 1],
                "positives": [1, 1],
            }
        ),
        montage=(
            Tile(well="B02", picture=picture, outlines=np.zeros((4, 4, 4), np.uint8), treatment="DMSO", cells=3),
            Tile(well="B03", picture=picture, treatment=HOSTILE, dose=1.0),
        ),
        montage_colors={"DNA": "#3366ff", HOSTILE_ATTRIBUTE: HOSTILE_ATTRIBUTE},
        dose_response=(
            DoseResponse(
                treatment=HOSTILE,
                readout=FORMULA,
                doses=np.array([0, 1, 10, NAN]),
                values=np.array([0.1, 2, NAN, 4]),
                wells=("B02", HOSTILE, "C02", "C03"),
                hill=HillCurve(bottom=0, top=3, ec50=0.5, slope=1),
                controls={"negative": (-1, 0, 1), "positive": (NAN, NAN, NAN)},
            ),
        ),
        versions={"plateloom": "0"},
        parameters={"segmentation": {"compartments": [{"name": HOSTILE, "diameter_um": 12.0}], "halo_px": None}},
        reproduce=("snakemake --cores 2 <x>",),
    )
    return replace(report, **changes)


def small_screen(**changes):
    """Three plates: one complete, one failed, one missing."""
    plates = pd.DataFrame(
        {
            "Metadata_Plate": [HOSTILE, "P2", "P3"],
            "status": ["done", "failed", "missing"],
            "reason": ["", "too many fields failed", "no folder"],
            "cells": [1000.0, NAN, NAN],
            "link": ["../plates/P 1/report.html", "javascript:alert(1)", None],
        }
    )
    rng = np.random.default_rng(0)
    points = rng.normal(size=(50, 2))
    names = np.array([HOSTILE, "DMSO"])[np.arange(50) % 2]
    report = ScreenReport(
        screen="S & " + HOSTILE,
        plates=plates,
        quality=pd.DataFrame(
            {
                "Metadata_Plate": [HOSTILE],
                "readout": ["cells"],
                "statistic": ["Z'"],
                "value": [0.6],
                "low": [0.5],
                "high": [0.7],
            }
        ),
        shapes={HOSTILE: (8, 12), "P4": (16, 24)},
        heat_maps=(ScreenHeatMap(title="cells", plates={HOSTILE: {"A01": 0.0}, "P4": {"P24": 100.0}}),),
        replicability=pd.DataFrame(
            {"Metadata_Treatment": ["a", "b"], "mean_average_precision": [0.2, 0.9], "corrected_p_value": [0.6, 0.01]}
        ),
        well_maps=(Embedding(title="Wells", x=points[:, 0], y=points[:, 1], colorings={"treatment": names}),),
        cell_maps=(
            Embedding(
                title="Cells",
                x=rng.normal(size=3000),
                y=rng.normal(size=3000),
                colorings={"class": np.array(["mitotic", None, HOSTILE], object)[np.arange(3000) % 3]},
            ),
        ),
        hits=pd.DataFrame({"treatment": [HOSTILE, FORMULA], "score": [5.0, 4.0], "q_value": [1e-9, NAN]}),
        dose_response=small_plate().dose_response,
        classifier=ClassifierReport(
            classes=("a", HOSTILE),
            confusion=np.array([[5, 1], [0, 0]]),
            per_class=pd.DataFrame({"class": ["a"], "precision": [1.0], "recall": [0.5], "f1": [0.67], "support": [6]}),
            balanced_accuracy=0.83,
            scheme="5 folds by plate",
            calibration=pd.DataFrame({"confidence": [0.5, 0.9], "accuracy": [0.4, 0.95]}),
        ),
        autoencoder=AutoencoderReport(
            learning=pd.DataFrame({"epoch": [1, 2], "training": [0.5, 0.4], "validation": [0.5, NAN]}),
            held_out_error=0.2,
            mean_crop_error=0.8,
            crops=np.zeros((2, 3, 3, 3), np.uint8),
            reconstructions=np.zeros((2, 3, 3, 3), np.uint8),
        ),
        versions={"plateloom": "0"},
        parameters={"seed": 0},
        reproduce=("plateloom run",),
    )
    return replace(report, **changes)


def pages():
    return {"plate": render_plate(small_plate()), "screen": render_screen(small_screen())}


@pytest.mark.parametrize("kind", ["plate", "screen"])
def test_a_page_is_well_formed(kind):
    page = Page(pages()[kind])
    assert page.all("html") and page.all("main")


@pytest.mark.parametrize("kind", ["plate", "screen"])
def test_a_page_loads_nothing_from_outside_its_file(kind):
    page = Page(pages()[kind])
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form")
        assert not any(name.startswith("on") or name == "style" for name in attributes)
        if tag in ("img", "image"):
            assert (attributes.get("src") or attributes.get("href")).startswith("data:image/")
        elif tag == "a":
            assert not re.match(r"(?i)[a-z]+:|//", attributes["href"])
        else:
            assert not {"src", "href", "srcset", "data"} & set(attributes)
        for name, value in attributes.items():
            if name not in ("aria-label", "alt", "content"):
                assert "://" not in (value or "")
    style = re.search(r"<style>(.*?)</style>", pages()[kind], re.S)[1]
    assert "url(" not in style and "@import" not in style


@pytest.mark.parametrize("kind", ["plate", "screen"])
def test_the_policy_allows_the_pages_own_style_and_script_and_nothing_else(kind):
    html = pages()[kind]
    (policy,) = (meta["content"] for meta in Page(html).all("meta") if "http-equiv" in meta)
    assert policy.startswith("default-src 'none'; img-src data:;") and "unsafe" not in policy
    for tag in ("style", "script"):
        inline = re.findall(f"<{tag}>(.*?)</{tag}>", html, re.S)
        assert len(inline) == 1
        digest = base64.b64encode(hashlib.sha256(inline[0].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


@pytest.mark.parametrize("kind", ["plate", "screen"])
def test_hostile_names_stand_on_the_page_as_text_only(kind):
    html = pages()[kind]
    page = Page(html)
    assert HOSTILE not in html and "<img src=x" not in html
    assert HOSTILE in page.words and FORMULA in page.words
    assert len(page.all("script")) == 1


def test_a_name_that_no_encoding_knows_can_still_be_written():
    html = render_plate(small_plate(plate="P\ud800"))
    assert "P?" in html
    html.encode("utf-8")


@pytest.mark.parametrize("kind", ["plate", "screen"])
def test_the_same_data_give_the_same_bytes_in_another_process(kind):
    code = f"import sys; sys.path.insert(0, {str(__file__).rsplit('/', 1)[0]!r}); import hashlib, test_report as t; "
    code += f"print(hashlib.sha256(t.pages()[{kind!r}].encode()).hexdigest())"
    root = str(__file__).rsplit("/", 2)[0]
    environment = {"PYTHONHASHSEED": "7", "PYTHONPATH": root, "PYTHONDONTWRITEBYTECODE": "1"}
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert other.stdout.strip() == hashlib.sha256(pages()[kind].encode()).hexdigest()


def test_importing_the_report_imports_neither_pandas_nor_matplotlib():
    code = "import sys, plateloom.report as _; print([m for m in ('pandas', 'matplotlib', 'PIL') if m in sys.modules])"
    root = str(__file__).rsplit("/", 2)[0]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("shape", [(8, 12), (16, 24), (32, 48)])
def test_a_map_has_one_rectangle_per_well_of_the_physical_plate(shape):
    page = Page(plate_chart(HeatMap(title="x", values={"A01": 1.0}), shape))
    wells = [rect for rect in page.all("rect") if rect.get("class", "").startswith("well ")]
    assert len(wells) == shape[0] * shape[1]
    assert len({(rect["x"], rect["y"]) for rect in wells}) == len(wells)


def test_a_sparse_plate_keeps_its_wells_where_they_are():
    chart = plate_chart(HeatMap(title="x", values={"B03": 1.0, "H12": 2.0}), (8, 12))
    wells = [rect for rect in Page(chart).all("rect") if rect.get("class", "").startswith("well ")]
    valued = [i for i, rect in enumerate(wells) if rect["class"] == "well value"]
    assert valued == [1 * 12 + 2, 7 * 12 + 11]
    side = 432 / 12
    assert float(wells[valued[0]]["x"]) == 24 + 2 * side + 0.5
    assert float(wells[valued[0]]["y"]) == 16 + 1 * side + 0.5


def test_the_four_states_of_a_well_are_told_apart():
    chart = plate_chart(
        HeatMap(title="x", values={"A01": 1.0, "A02": NAN, "B01": 5.0}),
        (2, 2),
        states={"A01": "done", "A02": "done", "B01": "failed"},
        hover={"B01": "zero bytes"},
    )
    kinds = [rect["class"] for rect in Page(chart).all("rect") if rect.get("class", "").startswith("well ")]
    assert kinds == ["well value", "well novalue", "well failed", "well empty"]
    for says in ("A01: 1", "A02: no value", "B01: failed · zero bytes", "B02: not imaged"):
        assert f"<title>{says}</title>" in chart


def test_the_value_of_a_failed_well_does_not_stretch_the_scale():
    values = {"A01": 1.0, "A02": 2.0, "B01": 1e9}
    chart = plate_chart(HeatMap(title="x", values=values), (2, 2), states={"B01": "failed"})
    assert "1,000,000,000" not in chart


@pytest.mark.parametrize("shape, marks", [((8, 12), ["N", "P"]), ((16, 24), ["N", "P"])])
def test_controls_are_marked_with_letters(shape, marks):
    values = {"A01": 1.0, "A02": 2.0, "A03": 3.0}
    controls = {"A01": "negative", "A02": "positive", "A03": "reference"}
    page = Page(plate_chart(HeatMap(title="x", values=values), shape, controls=controls))
    letters = [text for text in page.text if text in ("N", "P")]
    assert sorted(set(letters)) == marks
    assert letters.count("P") == 2 + (shape[0] > 15)  # the well, the legend, and the name of row P


def test_controls_of_a_1536_well_plate_are_marked_with_a_ring_and_a_dot():
    controls = {"A01": "negative", "AF48": "positive"}
    page = Page(plate_chart(HeatMap(title="x", values={"A01": 1, "AF48": 2}), (32, 48), controls=controls))
    assert [circle["fill"] == "none" for circle in page.all("circle")] == [True, False, True, False]


def test_the_ends_of_a_scale_are_palette_ends_and_beyond_them_is_said():
    chart = plate_chart(HeatMap(title="x", values={"A01": -5, "A02": 0, "B01": 1, "B02": 9}, limits=(0, 1)), (2, 2))
    fills = [rect["fill"] for rect in Page(chart).all("rect") if rect.get("class", "").startswith("well ")]
    assert fills == ["#440154", "#440154", "#fde725", "#fde725"]
    assert "≤ 0" in chart and "≥ 1" in chart


@pytest.mark.parametrize("values", [[], [NAN], [3.0, 3.0], [0.0], [float("inf")]])
def test_a_scale_has_two_ends_whatever_the_values(values):
    low, high = scale_limits(values)
    assert np.isfinite([low, high]).all() and low < high


def test_a_diverging_scale_is_symmetric_around_zero():
    assert scale_limits([-1.0, 4.0], diverging=True) == (-4.0, 4.0)


def test_a_well_outside_the_plate_is_an_error_that_names_it():
    with pytest.raises(ValueError, match="'I01' is no well of a plate of 8 rows and 12 columns"):
        plate_chart(HeatMap(title="x", values={"I01": 1.0}), (8, 12))
    with pytest.raises(ValueError, match="'<x>' is not a well"):
        render_plate(small_plate(wells=pd.DataFrame({"Metadata_Well": ["<x>"]})))


def test_all_plates_of_a_screen_share_one_color_scale():
    html = render_screen(small_screen())
    section = html[html.index('id="heat_maps"') : html.index('id="replicability"')]
    fills = [rect["fill"] for rect in Page(section[section.index("<h2") : section.index("</section")]).all("rect")]
    assert fills.count("#440154") >= 1 and fills.count("#fde725") >= 1
    assert section.count('class="well value"') == 2
    assert "Without a map: P2 (failed), P3 (missing)." in section


def test_very_many_wells_are_drawn_as_pictures_with_one_pixel_each():
    wells = {f"A{c:02d}": float(c) for c in range(1, 49)}
    names = [f"P{i}" for i in range(14)]
    report = ScreenReport(
        screen="S",
        plates=pd.DataFrame({"Metadata_Plate": names, "status": "done"}),
        shapes=dict.fromkeys(names, (32, 48)),
        heat_maps=(ScreenHeatMap(title="cells", plates=dict.fromkeys(names, wells)),),
    )
    images = Page(render_screen(report)).all("image")
    assert len(images) == 14
    picture = Image.open(io.BytesIO(base64.b64decode(images[0]["href"].split(",")[1])))
    assert picture.size == (48, 32)
    assert np.asarray(picture)[1:, :, 3].max() == 0


def test_an_empty_plate_gives_a_whole_page():
    wells = pd.DataFrame(columns=["Metadata_Well", "status", "cells"])
    page = Page(render_plate(PlateReport(screen="S", plate="P", shape=(8, 12), wells=wells)))
    assert "No well of this plate was imaged." in page.words
    bare = Page(render_plate(PlateReport(screen="S", plate="P", shape=(8, 12), wells=pd.DataFrame())))
    assert bare.words.count("No data were given for this section.") == len(PLATE_SECTIONS)


def test_a_plate_without_a_single_cell_says_so():
    wells = pd.DataFrame({"Metadata_Well": ["A01", "A02"], "cells": [0, 0]})
    assert "Not a single cell" in render_plate(PlateReport(screen="S", plate="P", shape=(8, 12), wells=wells))


def test_a_screen_without_plates_gives_a_whole_page():
    page = Page(render_screen(ScreenReport(screen="S", plates=pd.DataFrame())))
    assert "This screen has no plate." in page.words
    assert page.words.count("No data were given for this section.") == len(SCREEN_SECTIONS)


@pytest.mark.parametrize("key", sorted(PLATE_SECTIONS))
def test_an_absent_section_of_a_plate_gives_the_callers_reason(key):
    report = PlateReport(
        screen="S", plate="P", shape=(8, 12), wells=pd.DataFrame(), notes={key: f"No labels were given {HOSTILE}."}
    )
    page = Page(render_plate(report))
    assert f"No labels were given {HOSTILE}." in page.words
    assert page.ids == list(PLATE_SECTIONS)


@pytest.mark.parametrize("key", sorted(SCREEN_SECTIONS))
def test_an_absent_section_of_a_screen_gives_the_callers_reason(key):
    report = ScreenReport(screen="S", plates=pd.DataFrame(), notes={key: "Not asked for."})
    assert "Not asked for." in Page(render_screen(report)).words


def test_a_note_on_an_unknown_section_is_an_error():
    with pytest.raises(ValueError, match=r"\['montages'\].*montage"):
        render_plate(small_plate(notes={"montages": "x"}))


def test_nothing_excluded_differs_from_not_known():
    nothing = render_plate(small_plate(exclusions=small_plate().flagged))
    unknown = render_plate(small_plate(exclusions=None, notes={"exclusions": "No quality control was run."}))
    assert "Nothing was excluded." in nothing
    assert "Nothing was excluded." not in unknown and "No quality control was run." in unknown


def test_the_summary_counts_wells_fields_and_cells():
    words = Page(render_plate(small_plate())).text
    found = {name: words[words.index(name) - 1] for name in ("wells imaged", "wells failed", "fields", "fields failed")}
    assert found == {"wells imaged": "4", "wells failed": "1", "fields": "8", "fields failed": "2"}
    assert words[words.index("cells") - 1] == "200"
    assert "1 of 4 wells failed: C02." in words


def test_missing_and_failed_plates_stand_above_everything_else():
    html = render_screen(small_screen())
    for words in ("1 plate failed: P2 (too many fields failed).", "1 plate is missing: P3 (no folder)."):
        assert 0 < html.index(words) < html.index("<section")


def test_values_of_pandas_na_are_no_values():
    wells = pd.DataFrame({"Metadata_Well": ["A01", "A02"], "Metadata_Dose": [pd.NA, pd.NA]})
    wells["cells"] = pd.array([5, pd.NA], dtype="Int64")
    html = render_plate(PlateReport(screen="S", plate="P", shape=(8, 12), wells=wells, flagged=wells))
    assert "A02: no value" in html and "&lt;NA&gt;" not in html


def test_a_long_table_says_how_much_of_it_is_shown():
    hits = pd.DataFrame({"treatment": [f"T{i}" for i in range(600)]})
    html = render_screen(ScreenReport(screen="S", plates=pd.DataFrame(), hits=hits))
    assert "The first 500 of 600 rows are shown." in html and "T499" in html and "T500" not in html


@pytest.mark.parametrize(
    "address, link",
    [
        ("../plates/P 1/report.html", "../plates/P%201/report.html"),
        ("javascript:alert(1)", ""),
        ("//evil", ""),
        ("\\\\evil", ""),
        ("http://evil", ""),
        (None, ""),
        ("a?b", "a%3Fb"),
    ],
)
def test_only_relative_addresses_become_links(address, link):
    assert local_address(address) == link


def test_parameters_are_shown_to_the_last_digit():
    words = Page(render_plate(small_plate(parameters={"a": {"b": 0.123456789, "c": [1, 2], "d": True}}))).text
    assert "0.123456789" in words and "1, 2" in words and "true" in words


def test_an_outline_is_drawn_on_the_boundary_and_nowhere_else():
    labels = np.zeros((5, 5), int)
    labels[1:4, 1:4] = 7
    expected = labels > 0
    expected[2, 2] = False
    assert outline_mask(labels).tolist() == expected.tolist()


def test_touching_cells_share_one_line_of_one_pixel():
    labels = [[1, 1, 2, 2], [1, 1, 2, 2]]
    assert outline_mask(labels).tolist() == [[False, False, True, False]] * 2


def test_the_edge_of_the_image_is_no_outline():
    assert not outline_mask(np.ones((2, 2), np.uint32)).any()


def test_outline_image_blends_channels_and_draws_nuclei_over_cells():
    image = np.array([[[0.0, 0.5]], [[1.0, 0.0]]])
    labels = {"Cells": [[0, 1]], "Nuclei": [[0, 0]]}
    plain = outline_image(image, {}, ["#0000ff", "#ff0000"], [(0, 0.5), (0, 2)], width_px=(1, 9))
    assert plain.tolist() == [[[128, 0, 0], [0, 0, 255]]]
    drawn = outline_image(image, labels, ["#0000ff", "#ff0000"], [(0, 0.5), (0, 2)], width_px=(1, 9))
    assert drawn.tolist() == [[[128, 0, 0], [255, 212, 59]]]
    labels["Nuclei"] = [[0, 3]]
    drawn = outline_image(image, labels, ["#0000ff", "#ff0000"], [(0, 0.5), (0, 2)], width_px=(1, 9))
    assert drawn.tolist() == [[[128, 0, 0], [255, 255, 255]]] and drawn.dtype == np.uint8


def test_outlines_stay_one_pixel_thin_when_a_small_image_is_enlarged():
    labels = np.zeros((4, 4), int)
    labels[1:3, 1:3] = 1
    layer = outline_layer({"Nuclei": labels}, width_px=(40, 80))
    assert layer.shape == (40, 40, 4)
    assert (layer[..., 3] > 0).sum() == 4 * 20 - 4
    picture = outline_image(np.zeros((1, 4, 4)), {"Nuclei": labels}, ["#ffffff"], [(0, 1)], width_px=(40, 80))
    assert (picture.any(axis=2) == (layer[..., 3] > 0)).all()


@pytest.mark.parametrize("width", [100, 333, 1080, 2160])
def test_a_picture_is_at_least_300_px_wide_and_layers_match(width):
    picture = composite_image(np.zeros((1, 50, width)), ["#ffffff"], [(0, 1)])
    layer = outline_layer({"Cells": np.zeros((50, width), int)})
    assert picture.shape[:2] == layer.shape[:2]
    assert 300 <= picture.shape[1] <= 640


def test_an_image_without_contrast_or_with_nan_is_black():
    assert composite_image([[[NAN, 0.5]]], ["#ffffff"], [(0.5, 0.5)], width_px=(1, 9)).max() == 0


def test_channels_without_color_are_an_error():
    with pytest.raises(ValueError, match="1 colors and 2 windows"):
        composite_image(np.zeros((2, 3, 3)), ["#ffffff"], [(0, 1), (0, 1)])


def test_labels_of_another_size_are_an_error():
    with pytest.raises(ValueError, match="differ in size"):
        outline_image(np.zeros((1, 4, 4)), {"Cells": np.zeros((3, 4), int)}, ["#ffffff"], [(0, 1)])


def test_pairs_stand_one_above_the_other():
    picture = pair_image(np.zeros((2, 1, 1, 3), np.uint8), np.full((2, 1, 1, 3), 9, np.uint8), gap_px=1)
    assert picture[..., 0].tolist() == [[0, 255, 0], [255, 255, 255], [9, 255, 9]]


def test_the_outlines_of_the_montage_can_be_switched_off_without_a_script():
    page = Page(render_plate(small_plate()))
    assert [box["type"] for box in page.all("input")] == ["checkbox"]
    layer = [image for image in page.all("img") if image.get("class") == "outlines"]
    assert len(layer) == 1 and layer[0]["src"].startswith("data:image/png")


def test_a_dose_response_has_one_point_per_value_and_one_bar_per_dose():
    curve = DoseResponse(
        treatment="t", readout="r", doses=np.array([0, 1, 1, 10, NAN]), values=np.array([0, 1, 3, NAN, 5])
    )
    chart = dose_chart(curve)
    assert chart.count('class="point"') == 3
    assert chart.count('stroke-width="2.4"') == 2


def test_dose_zero_stands_left_of_the_logarithmic_axis():
    curve = DoseResponse(treatment="t", readout="r", doses=np.array([0, 0.1, 1]), values=np.array([1.0, 2.0, 3.0]))
    points = [float(circle["cx"]) for circle in Page(dose_chart(curve)).all("circle")]
    assert points == sorted(points) and points[1] - points[0] > 20


@pytest.mark.parametrize("doses, values", [([], []), ([0.0], [1.0]), ([1.0], [NAN]), ([1.0], [1.0])])
def test_a_dose_response_with_hardly_any_data_is_drawn(doses, values):
    Page(dose_chart(DoseResponse(treatment="t", readout="r", doses=np.array(doses), values=np.array(values))))


def test_a_hill_curve_is_half_way_at_its_ec50():
    hill = HillCurve(bottom=1, top=5, ec50=2, slope=3)
    assert hill(2.0) == 3.0
    assert hill(1e-9) == pytest.approx(1) and hill(1e9) == pytest.approx(5)


def test_few_points_are_circles_and_many_are_one_picture():
    few = Embedding(title="e", x=np.arange(9.0), y=np.arange(9.0), colorings={"c": np.arange(9)}, labels=["w"] * 9)
    page = Page(embedding_chart(few, "c"))
    assert len([circle for circle in page.all("circle") if circle.get("class") == "point"]) == 9
    many = Embedding(title="e", x=np.arange(3000.0), y=np.arange(3000.0), colorings={"c": ["a"] * 3000})
    page = Page(embedding_chart(many, "c"))
    assert len(page.all("image")) == 1 and len(page.all("circle")) == 1  # the legend's


@pytest.mark.parametrize("x", [[], [NAN], [1.0], [2.0, 2.0]])
def test_a_map_of_hardly_any_points_is_drawn(x):
    for values in (["a"] * len(x), np.arange(len(x), dtype=float)):
        Page(embedding_chart(Embedding(title="e", x=np.array(x), y=np.array(x), colorings={"c": values}), "c"))


def test_later_points_lie_on_top_and_empty_ground_is_transparent():
    picture = scatter_picture(np.array([0.5]), np.array([0.5]), np.array([1]), ["#000000", "#ff0000"], 21)
    rgba = np.asarray(picture.convert("RGBA"))
    assert rgba[10, 10].tolist() == [255, 0, 0, 255]
    assert rgba[0, 0, 3] == 0


def test_the_ten_most_frequent_categories_get_different_colors():
    names = [f"t{i:02d}" for i in range(30) for _ in range(30 - i)] + [""] * 100
    colors = category_colors(names)
    assert list(colors) == [f"t{i:02d}" for i in range(10)]
    assert len(set(colors.values())) == 10
    assert category_colors(names[::-1]) == colors


def test_a_confusion_matrix_shows_every_count_and_the_fraction_of_the_true_class():
    chart = confusion_chart(["a", "b"], np.array([[3, 1], [0, 0]]))
    assert "true a, predicted a: 3 (75%)" in chart
    assert chart.count('class="confusion"') == 4


def test_ticks_are_round_and_inside():
    assert nice_ticks(-0.3, 1.1, 4) == [0.0, 0.5, 1.0]
    assert nice_ticks(2, 2) == [2.0]
