"""The report: one file that loads nothing, trusts no name, and says what is absent."""

import base64
import hashlib
import io
import json
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from plateloom.report import (
    NOTICES,
    PLATE_SECTIONS,
    QUARANTINE_SECTIONS,
    SCREEN_SECTIONS,
    AutoencoderReport,
    ClassifierReport,
    DoseResponse,
    Embedding,
    HeatMap,
    HillCurve,
    Notice,
    PlateReport,
    QuarantineReport,
    ScreenHeatMap,
    ScreenReport,
    Tile,
    choose_tiles,
    composite_image,
    doubt_pixel_size,
    doubt_segmentation,
    explain_hits,
    find_losses,
    list_exclusions,
    outline_layer,
    pair_image,
    render_plate,
    render_quarantined,
    render_screen,
    share_of_failed_fields,
)
from plateloom.report.charts import (
    CATEGORIES,
    CONTROLS,
    EMPTY,
    LINES,
    NEGATIVE,
    PALETTES,
    POSITIVE,
    category_colors,
    confusion_chart,
    dose_chart,
    embedding_chart,
    interval_chart,
    line_chart,
    nice_ticks,
    plate_chart,
    plates_chart,
    scale_limits,
    scatter_picture,
    short_number,
    significant,
    wrap_text,
)
from plateloom.report.exclusions import count_exclusions
from plateloom.report.montage import outline_mask, scale_bar
from plateloom.report.page import FOLD, color_legend, local_address
from plateloom.store.tables import write_table

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
        notices=(Notice(kind="controls", text=f"1 of 2 controls has no value: {HOSTILE}.", section="heat_maps"),),
        origin={"config": HOSTILE},
        stages=pd.DataFrame({"stage": ["conversion"], "code": ["c0de"], "settings": ["5e77"], "result": [HOSTILE]}),
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
            calibration=pd.DataFrame({"confidence": [0.5, 0.9], "accuracy": [0.4, 0.95], "share": [0.25, 0.75]}),
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
        notices=(
            Notice(
                kind="normalization",
                text=f"Not normalized: {HOSTILE}.",
                section="parameters",
                plate=HOSTILE,
                link="a.html",
            ),
            Notice(kind="flagged", text="1 field.", section="flagged", plate="P4", link="javascript:alert(1)"),
        ),
    )
    return replace(report, **changes)


def small_quarantine(**changes):
    """A plate of which two fields failed, and with it the plate."""
    report = QuarantineReport(
        screen=HOSTILE,
        plate="P2",
        reason=f"assembly failed: {HOSTILE}",
        states=pd.DataFrame(
            {
                "stage": ["conversion", "assembly"],
                "status": ["done", "failed"],
                "reason": ["", HOSTILE],
                "log": ["a", "b"],
            }
        ),
        exclusions=list_exclusions(
            some_fields(("A01", 1, "DNA", "failed", f"{FORMULA}: 0 bytes"), ("A01", 2, "DNA", "done", ""))
        ),
        shape=(8, 12),
        failed={"A01": 0.5, "B02": 0.0},
        versions={"plateloom": "0"},
        parameters={"seed": HOSTILE_ATTRIBUTE},
        reproduce=("plateloom run .",),
    )
    return replace(report, **changes)


def some_fields(*rows):
    """Rows of the table of fields: well, field, channel, status, reason, and what differs from the usual."""
    usual = {"File": "", "Height": 512, "Width": 512, "DataType": "uint16"}
    keys = ("Metadata_Well", "Metadata_Field", "Channel", "Status", "Reason")
    return pd.DataFrame(
        [{**usual, **dict(zip(keys, row, strict=False)), **(row[5] if len(row) > 5 else {})} for row in rows]
    )


def pages():
    return {
        "plate": render_plate(small_plate()),
        "screen": render_screen(small_screen()),
        "quarantined": render_quarantined(small_quarantine()),
    }


@pytest.mark.parametrize("kind", ["plate", "screen", "quarantined"])
def test_a_page_is_well_formed(kind):
    page = Page(pages()[kind])
    assert page.all("html") and page.all("main")


@pytest.mark.parametrize("kind", ["plate", "screen", "quarantined"])
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


@pytest.mark.parametrize("kind", ["plate", "screen", "quarantined"])
def test_the_policy_allows_the_pages_own_style_and_script_and_nothing_else(kind):
    html = pages()[kind]
    (policy,) = (meta["content"] for meta in Page(html).all("meta") if "http-equiv" in meta)
    assert policy.startswith("default-src 'none'; img-src data:;") and "unsafe" not in policy
    for tag in ("style", "script"):
        inline = re.findall(f"<{tag}>(.*?)</{tag}>", html, re.S)
        assert len(inline) == 1
        digest = base64.b64encode(hashlib.sha256(inline[0].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


@pytest.mark.parametrize("kind", ["plate", "screen", "quarantined"])
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


@pytest.mark.parametrize("kind", ["plate", "screen", "quarantined"])
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
    assert [circle["fill"] for circle in page.all("circle")] == ["#ffffff", POSITIVE] * 2
    assert [circle["stroke"] for circle in page.all("circle")] == [NEGATIVE, "#ffffff"] * 2


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
    assert scale_limits([0.0, 0.0], diverging=True) == (-1.0, 1.0)


def test_wells_that_are_all_zero_are_the_low_end_of_their_scale():
    assert scale_limits([0.0, 0.0]) == (0.0, 1.0)
    chart = plate_chart(HeatMap(title="x", values={"A01": 0.0, "A02": 0.0}), (1, 2))
    assert chart.count('fill="#440154" class="well value"') == 2 and "-1" not in chart


def test_shares_of_badly_reconstructed_cells_are_on_a_scale_from_zero(monkeypatch):
    from plateloom.stages import report_plate_maps as stage

    errors = {"A01": [0.1, 0.2, 9.0, 0.1], "A02": [0.1, 0.1, 0.1, 0.1]}
    monkeypatch.setattr(stage, "read_errors", lambda _, well: pd.DataFrame({stage.ERROR: errors[well]}))
    records = [{"status": "done", "plate": "P1", "artefacts": dict.fromkeys(errors)}]
    settings = {"config": {"latent": {"autoencoder": {"error_limit": 1.0}}}}
    monkeypatch.setattr(stage, "limit_of_error", lambda given: given)
    assert stage.badly_restored_maps(["A01", "A02"], records, settings)[0].limits == (0, 0.25)
    assert stage.badly_restored_maps(["A02"], records, settings)[0].limits == (0, 1)


def test_no_legend_reaches_beyond_its_chart():
    states = {"A01": "failed"}
    values = {name: 1.0 for name in ("A02", "A03", "A04")} | {"A05": NAN}
    controls = {"A02": "negative", "A03": "positive", "A04": "empty"}
    for shape in ((8, 12), (16, 24), (32, 48)):
        chart = plate_chart(HeatMap(title="x", values=values), shape, states=states, controls=controls)
        texts = ["not imaged", "failed", "no value", *(f"{control} control" for control in CONTROLS)]
        assert_texts_fit(chart, texts)
    names = [f"class {i}" for i in range(len(CATEGORIES) + 2)] + ["a name that is longer than the chart " * 3]
    chart = line_chart([0, 1], dict.fromkeys(names, [0, 1]), x_label="x", y_label="y", width=320)
    assert_texts_fit(chart, names[:-1])
    assert chart.count("<path") == len(names) and chart.count(names[-1]) == 1, "its title has the whole name"
    dashed = 2 * (len(names) - len(LINES))
    assert chart.count('stroke-dasharray="5 3"') == dashed, "path and legend of the lines whose colors are used twice"


def test_an_interval_is_shaded_behind_its_line_and_is_no_line():
    chart = line_chart([1, 2, 3], {"y": [1, 2, 3]}, x_label="x", y_label="y", band=([0, NAN, 2], [2, 3, 9]))
    (corners,) = re.findall(r'<polygon points="([^"]+)"', chart)
    points = np.array([corner.split(",") for corner in corners.split()], float)
    assert len(points) == 4 and points[0, 0] == points[3, 0] < points[1, 0] == points[2, 0]
    assert points[0, 1] > points[3, 1] and points[1, 1] > points[2, 1], "low below high"
    assert chart.count("<path") == 1 and chart.index("<polygon") < chart.index("<path")


def assert_texts_fit(chart, texts):
    """Each of these texts stands inside the drawing, by a wide font, and none upon another."""
    width, height = (float(size) for size in re.search(r'viewBox="0 0 (\S+) (\S+)"', chart).groups())
    ends = {}
    for text in texts:
        x, y = (float(at) for at in re.search(rf'<text x="(\S+)" y="(\S+)" class="tick">{text}<', chart).groups())
        assert x + 5.8 * len(text) <= width and y < height
        assert x >= ends.get(y, 0)
        ends[y] = x + 5.8 * len(text)


def test_a_well_outside_the_plate_is_an_error_that_names_it():
    with pytest.raises(ValueError, match="'I01' is no well of a plate of 8 rows and 12 columns"):
        plate_chart(HeatMap(title="x", values={"I01": 1.0}), (8, 12))
    with pytest.raises(ValueError, match="'<x>' is not a well"):
        render_plate(small_plate(wells=pd.DataFrame({"Metadata_Well": ["<x>"]})))


def test_the_calibration_says_how_many_cells_each_point_is():
    assert (
        "From left to right the points of the first line are 25, 75 % of the cells."
        in Page(render_screen(small_screen())).words
    )


def test_a_network_that_pca_beats_is_told_with_what_helps():
    def said(error):
        trained = replace(small_screen().autoencoder, held_out_error=0.2, pca_error=error)
        return Page(render_screen(small_screen(autoencoder=trained))).words

    assert "gives 0.18: the network is worse; train longer (latent.autoencoder.parameters.epochs) or on" in said(0.18)
    assert "gives 0.25: the network is better." in said(0.25)


def test_all_plates_of_a_screen_share_one_color_scale():
    html = render_screen(small_screen())
    section = html[html.index('id="heat_maps"') : html.index('id="well_maps"')]
    fills = [rect["fill"] for rect in Page(section[section.index("<h2") : section.index("</section")]).all("rect")]
    assert fills.count("#440154") >= 1 and fills.count("#fde725") >= 1
    assert section.count('class="well value"') == 2
    assert "Without a map: P2 (failed), P3 (missing)." in section
    assert "has no value" not in section
    maps = (ScreenHeatMap(title="x", plates={"P1": {"A01": 1.0, "A02": NAN}}),)
    lacking = ScreenReport(
        screen="S", plates=pd.DataFrame({"Metadata_Plate": ["P1"], "status": "done"}), heat_maps=maps
    )
    assert "A well in gray has no value." in render_screen(replace(lacking, shapes={"P1": (8, 12)}))


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


def test_pictures_blend_channels_and_outlines_of_nuclei_lie_over_those_of_cells():
    image = np.array([[[0.0, 0.5]], [[1.0, 0.0]]])
    picture = composite_image(image, ["#0000ff", "#ff0000"], [(0, 0.5), (0, 2)], width_px=(1, 9))
    assert picture.tolist() == [[[128, 0, 0], [0, 0, 255]]] and picture.dtype == np.uint8
    labels = {"Cells": [[0, 1]], "Nuclei": [[0, 0]]}
    assert outline_layer(labels, width_px=(1, 9)).tolist() == [[[0, 0, 0, 0], [255, 212, 59, 255]]]
    labels["Nuclei"] = [[0, 3]]
    assert outline_layer(labels, width_px=(1, 9))[0, 1].tolist() == [255, 255, 255, 255]


def test_outlines_stay_one_pixel_thin_when_a_small_image_is_enlarged():
    labels = np.zeros((4, 4), int)
    labels[1:3, 1:3] = 1
    layer = outline_layer({"Nuclei": labels}, width_px=(40, 80))
    assert layer.shape == (40, 40, 4)
    assert (layer[..., 3] > 0).sum() == 4 * 20 - 4


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


def section_of(html, key):
    """Text of one section of a page, tags included."""
    start = html.index(f'<section id="{key}">')
    return html[start : html.index("</section>", start)]


def banners(html):
    """Tone and text of each banner."""
    return [
        (tone, re.sub(r"<[^>]+>", "", text))
        for tone, text in re.findall(r'<div class="verdict (\w+)">(.*?)</div>', html, re.S)
    ]


# A quarantined plate


def test_the_page_of_a_quarantined_plate_says_so_and_lists_file_and_reason_of_every_failed_field():
    html = render_quarantined(small_quarantine())
    assert banners(html)[0][0] == "bad" and "This plate is quarantined. assembly failed" in banners(html)[0][1]
    page = Page(html)
    assert page.ids == list(QUARANTINE_SECTIONS)
    words = Page(section_of(html, "exclusions") + "</section>").words
    assert "A01" in words and f"{FORMULA}: 0 bytes" in words and "1 field: 1 failed." in words
    assert "A01: 0.5 share of fields" in section_of(html, "heat_maps")
    assert "failed" in section_of(html, "states")


def test_a_plate_that_is_put_off_is_not_called_quarantined():
    html = render_quarantined(small_quarantine(deferred=True))
    assert "put off" in banners(html)[0][1] and "is quarantined" not in html and "Plate report: put off" in html


def test_nothing_is_drawn_and_nothing_invented_where_no_field_was_read():
    html = render_quarantined(
        QuarantineReport(screen="S", plate="P", reason="no folder", notes={"exclusions": "No file."})
    )
    assert "No file." in html and "<svg" not in html and "No field failed" not in html


def write_quarantined(folder, *, status="failed"):
    """Records and tables of a plate whose assembly failed; returns what `report_plate` is called with."""
    from plateloom.store.provenance import write_json

    plate = folder / "results/plates/P1"
    record = {
        "stage": "x",
        "plate": "P1",
        "log": "logs/x",
        "artefacts": {},
        "facts": {},
        "versions": {"python": "3.11"},
    }
    reasons = {"conversion": "", "assembly": "2 of 3 fields failed"}
    for stage, state in (
        ("conversion", "done"),
        ("assembly", "failed"),
        ("flagging", "skipped"),
        ("profiling", "skipped"),
    ):
        values = {
            "stage": stage,
            "status": state,
            "reason": reasons.get(stage, "assembly failed: 2 of 3 fields failed"),
        }
        write_json(plate / f"records/{stage}/part-0.json", record | values)
    write_json(folder / "results/screen/records/profiles.json", record | {"status": "done", "reason": ""})
    table = some_fields(
        ("B02", 1, "DNA", "failed", "b02_1.tif: 0 bytes", {"File": "b02_1.tif"}),
        ("B02", 1, "GFP", "failed", "", {"File": "b02_2.tif"}),
    )
    write_table(plate / "fields/B02.parquet", table, {"fingerprint": "f"})
    (plate / "report.html").write_text("an old page")
    return {
        "plate": "P1",
        "batch": "b",
        "source": "raw",
        "settings": {"config": {"seed": 0, "segmentation": {"method": "watershed"}}, "report": {}, "channels": {}},
        "code": "c",
        "profiled": str(plate / "records/profiling/part-0.json"),
        "flagged": str(plate / "records/flagging/part-0.json"),
        "screened": str(folder / "results/screen/records/profiles.json"),
        "mapped": [],
        "classified": [],
        "encoded": [],
        "record": str(plate / "records/report/part-0.json"),
    }


def test_a_quarantined_plate_gets_a_page_and_a_record_that_is_not_done(tmp_path, monkeypatch):
    from plateloom.stages.report import report_plate

    monkeypatch.chdir(tmp_path)
    report_plate(**write_quarantined(tmp_path))
    record = json.loads(Path("results/plates/P1/records/report/part-0.json").read_text())
    assert record["status"] == "failed" and "2 of 3 fields failed" in record["reason"]
    html = Path("results/plates/P1/report.html").read_text()
    Page(html)
    for words in ("This plate is quarantined", "b02_1.tif: 0 bytes", "B02", "not reached", "assembly failed"):
        assert words in html
    assert html.count("2 of 3 fields failed") == 2, "once as the reason, once in the table of stages"


def test_the_screen_links_to_the_page_of_a_quarantined_plate(tmp_path, monkeypatch):
    from plateloom.stages.screen_report import _plate_row

    monkeypatch.chdir(tmp_path)
    write_quarantined(tmp_path)
    row = _plate_row({"plate": "P1", "batch": ""}, None, {"P1": "too many fields failed"})
    assert row["status"] == "quarantined"
    html = render_screen(ScreenReport(screen="S", plates=pd.DataFrame([row])))
    assert html.count('<a href="../plates/P1/report.html">P1</a>') == 2, "in the banner and in the table"
    assert "1 plate is quarantined: P1 (too many fields failed)." in banners(html)[0][1]


# What was left out


def test_a_failed_field_is_listed_once_with_the_channel_and_file_that_caused_it():
    fields = some_fields(
        ("A01", 1, "DNA", "failed", "", {"File": "a_w1.tif"}),
        ("A01", 1, "GFP", "failed", "a_w2.tif: truncated", {"File": "a_w2.tif"}),
        ("A02", 1, "DNA", "done", ""),
    )
    (row,) = list_exclusions(fields).to_dict("records")
    assert row == {
        "Metadata_Well": "A01",
        "Metadata_Field": 1,
        "what": "failed",
        "channel": "GFP",
        "file": "a_w2.tif",
        "reason": "a_w2.tif: truncated",
    }


def test_a_field_of_another_size_is_told_from_one_that_failed():
    fields = some_fields(
        ("A01", 1, "DNA", "done", ""),
        ("A02", 1, "DNA", "done", ""),
        ("A03", 1, "DNA", "done", "", {"Height": 256, "File": "x"}),
    )
    (row,) = list_exclusions(fields).to_dict("records")
    assert (row["Metadata_Well"], row["what"], row["file"]) == ("A03", "unlike the plate", "x")
    assert row["reason"] == "uint16, 256 × 512 px; the rest of the plate has uint16, 512 × 512 px"
    assert len(list_exclusions(fields, accepted=(256, 512, "uint16"))) == 2


def test_holes_of_stitched_wells_missing_channels_and_planes_are_named():
    fields = some_fields(
        ("A01", 1, "DNA", "hole", "left out: no position", {"SourceField": 7}),
        ("A01", 1, "DNA", "done", "", {"SourceField": 8}),
        ("A02", 1, "DNA", "done", "2 of 3 planes are there", {"SourceField": 1}),
        ("A02", 1, "GFP", "missing", "no file for this channel", {"SourceField": 1}),
    )
    found = list_exclusions(fields)
    assert found["what"].tolist() == ["hole", "channel missing", "planes missing"]
    assert found["Metadata_Field"].tolist() == [7, 1, 1] and found["channel"].tolist() == ["DNA", "GFP", "DNA"]
    assert share_of_failed_fields(fields) == {"A01": 0.5, "A02": 0.0}


def test_flagged_fields_are_excluded_and_counted_by_field_and_not_by_channel():
    fields = some_fields(*(("A01", 1, channel, "done", "") for channel in ("DNA", "ER", "GFP")))
    quality = fields[["Metadata_Well", "Metadata_Field", "Channel"]].assign(
        Reason="empty: contrast 3.3 of the noise", SourceField=1
    )
    exclusions = list_exclusions(fields, flagged=quality)
    assert exclusions["what"].tolist() == ["flagged"] and count_exclusions(exclusions) == (1, "1 field: 1 flagged")
    flagged = quality.rename(columns={"Channel": "channel", "Reason": "reason"})
    html = render_plate(small_plate(exclusions=exclusions, flagged=flagged, flagged_note="They are left out."))
    assert "Nothing was excluded." not in html and "1 field: 1 flagged." in html
    assert "1 field (3 channels): 3 × empty." in html and "They are left out." in html
    assert len(list_exclusions(fields)) == 0, "where the config keeps flagged fields"


def test_a_field_that_was_not_segmented_is_excluded():
    segmented = pd.DataFrame({"Metadata_Well": ["A01"], "Metadata_Field": [3], "Reason": ["lacks ER"]})
    (row,) = list_exclusions(some_fields(("A01", 3, "DNA", "done", "")), segmented=segmented).to_dict("records")
    assert (row["what"], row["reason"]) == ("not segmented", "lacks ER")


# Wells that shall be empty


def test_a_well_declared_empty_is_marked_and_neither_lost_nor_warned_of():
    wells = some_wells(Metadata_Control=["negative", "", "empty", ""], failed_fields=[0, 0, 0, 0], cells=[5, 6, 0, 7])
    quality = pd.DataFrame(
        {
            "Metadata_Well": ["A03"],
            "SourceField": [1],
            "Channel": ["DNA"],
            "Reason": ["blurred: 0.1"],
        }
    )
    kinds = [notice.kind for notice in find_losses(wells, list_exclusions(some_fields(), flagged=quality))]
    assert kinds == ["flagged"], "a flagged field of it is told, but not as a well without a value"
    html = render_plate(small_plate(wells=wells.assign(status="done"), notices=(), heat_maps=(), montage=()))
    assert banners(html) == [
        ("good", "All 4 wells were processed."),
        ("plain", "1 empty control well: A03. No cell was counted there, as it should be."),
    ]
    section = section_of(html, "heat_maps")
    assert "A03: 0 cells · empty control" in section and ">E</text>" in section and EMPTY in section
    inhabited = render_plate(small_plate(wells=wells.assign(cells=[5, 6, 3, 7]), notices=(), heat_maps=(), montage=()))
    assert "Cells were found in 1 of them: A03 (3)." in inhabited


def test_a_well_declared_empty_stretches_no_scale_and_is_no_picture_by_chance():
    values = {"A01": 32.0, "A02": 68.0, "B01": 0.0}
    chart = plate_chart(HeatMap(title="x", values=values), (2, 2), controls={"B01": "empty"})
    fills = [rect["fill"] for rect in Page(chart).all("rect") if rect.get("class", "").startswith("well ")]
    assert fills[:2] == ["#440154", "#fde725"] and "≤ 32" in chart
    wells = a_plate_of_wells()
    wells.loc[7, "Metadata_Control"] = "empty"
    assert "B02" not in [well for well, *_ in choose_tiles(wells, 100, order=["B02"])]


def a_plate_with_an_empty_well(tmp_path, monkeypatch):
    """What `_describe_plate` reads of a plate of three wells, the last of them empty; returns its arguments."""
    from plateloom.stages import report as stage

    wells = pd.DataFrame(
        {
            "Metadata_Plate": "P1",
            "Metadata_Well": ["A01", "A02", "A03"],
            "Metadata_Treatment": ["DMSO", "x", None],
            "Metadata_Dose": [0.0, 1.0, 0.0],
            "Metadata_Unit": ["", "uM", ""],
            "Metadata_Control": ["negative", "", "empty"],
            "Metadata_CellCount": [5, 6, 0],
            "Metadata_FieldCount": 1,
            "Metadata_CellsPerField": [5.0, 6.0, 0.0],
        }
    )
    quality = pd.DataFrame(
        {
            "Metadata_Well": ["A01", "A02", "A03"],
            "Metadata_Field": 1,
            "SourceField": 1,
            "Channel": "DNA",
            "focus_slope": [-3.0, -2.5, 0.1],
            "focus_laplacian": [0.004, 0.005, 0.0001],
            "background": [140.0, 141.0, 139.0],
            "Reason": ["", "", "empty: contrast 3.3 of the noise"],
            "Dark": [False, False, True],
            "Flag_Empty": [False, False, True],
        }
    )
    fields = some_fields(*((well, 1, "DNA", "done", "") for well in wells["Metadata_Well"]))
    tables = {"aggregates.parquet": wells, "qc.parquet": quality}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stage, "read_table", lambda path, *_: tables[path.name])
    monkeypatch.setattr(stage, "read_tables", lambda paths, *_: fields if "fields" in str(paths[0]) else pd.DataFrame())
    monkeypatch.setattr(
        stage.store, "read_group", lambda _: {"plateloom": {"facts": {"accepted": (512, 512, "uint16")}}}
    )
    monkeypatch.setattr(stage, "usable_fields", lambda *_: [])
    monkeypatch.setattr(stage, "picture_flagged", lambda *_: [])
    config = {"profiling": {"exclude_flagged": True, "parameters": {}}, "segmentation": {"method": "watershed"}}
    profiled = {
        "facts": {"normalization": {"status": "normalized", "method": "m", "n_reference": 3, "reference": "all"}}
    }
    inputs = {"profiled": profiled, "mapped": [], "classified": [], "encoded": []}
    settings = {
        "config": config,
        "channels": {"DNA": {"color": "0000ff"}},
        "report": {"composite": [], "montage_wells": 3, "flagged_pictures": 3},
    }
    return "P1", "b", "raw", settings, inputs


def test_the_page_of_a_plate_does_not_report_an_empty_well_as_a_failure(tmp_path, monkeypatch):
    from plateloom.stages.report import _describe_plate

    described, notices = _describe_plate(*a_plate_with_an_empty_well(tmp_path, monkeypatch))
    assert notices == [] and not len(described.exclusions) and not len(described.flagged)
    assert list(described.wells["Metadata_Control"]) == ["negative", "", "empty"]
    assert described.dose_unit == "µM" and described.summary == {"fields flagged": 0}
    focus = next(heat_map for heat_map in described.heat_maps if heat_map.title == "Focus, DNA")
    assert np.isnan(focus.values["A03"]) and focus.limits == (-3.0, -2.5)
    html = render_plate(described)
    assert [tone for tone, _ in banners(html)] == ["good", "plain"] and "A01: 5 cells · DMSO · negative" in html


def test_flagged_fields_are_shown_whole_and_blurred_ones_as_sharp_as_they_are(tmp_path, monkeypatch):
    from plateloom.stages import report_montage as stage
    from plateloom.store import plate as store
    from plateloom.store.layout import plate_store

    monkeypatch.chdir(tmp_path)
    wells, size = [f"A{i:02d}" for i in range(1, 8)], 700
    corner = np.zeros((2, size, size), np.uint16) + 100
    corner[1, :60, :60] = 4000  # which no middle shows
    channels = [{"label": name, "color": "FFFFFF", "window": (0, 4000)} for name in ("DNA", "ER")]
    for well in wells:
        path = store.field_path(plate_store("P1"), well, 1)
        store.write_image(path, corner, channels=channels, pixel_size_um=0.5, levels=2, record={"fingerprint": "f"})
    monkeypatch.setattr(stage, "usable_tiles", lambda *_: {(well, 1): 1 for well in wells if well != "A06"})
    rows = [(well, 1, channel) for well in wells for channel in ("DNA", "ER")]
    quality = pd.DataFrame(rows, columns=["Metadata_Well", "SourceField", "Channel"]).assign(Reason="")
    for well, reason in zip(
        wells[:6],
        ["debris: 3", "debris: 2", "debris: 4", "blurred: 0.1", "blurred: 1; saturated: 2", "debris: 1"],
        strict=True,
    ):
        quality.loc[(quality["Metadata_Well"] == well) & (quality["Channel"] == "ER"), "Reason"] = reason
    known = pd.DataFrame({"Metadata_Well": wells, "Metadata_Treatment": "x", "Metadata_Dose": NAN, "Metadata_Unit": ""})
    known["Metadata_Control"] = ""
    flagged = quality[quality["Reason"] != ""]

    def shown(count):
        return stage.picture_flagged("P1", known, {"report": {"flagged_pictures": count}}, flagged, quality, "µm")

    assert [tile.well for tile in shown(9)] == wells[:5], "what cannot be read has no picture"
    assert [tile.well for tile in shown(2)] == ["A01", "A04"] and shown(0) == [], "each kind of flag is shown"
    assert stage.picture_flagged("P1", known, {"report": {"flagged_pictures": 9}}, flagged[:0], quality, "µm") == []
    whole, *_, blurred, both = shown(9)
    assert whole.picture[:20, :20].min() > 200 and whole.picture[-20:, -20:].max() < 50 and whole.width_um == 350
    assert blurred.picture.max() < 50 and blurred.width_um == 160 and both.width_um == 350
    assert whole.caption == "field 1, ER, all of it" and whole.why == "debris: 3"
    html = render_plate(
        small_plate(
            flagged=flagged.rename(columns={"SourceField": "Metadata_Field", "Reason": "reason"}),
            flagged_pictures=tuple(shown(2)),
        )
    )
    assert "2 of the 6 flagged fields as they were imaged" in html


def test_cells_of_wells_whose_fields_are_left_out_are_no_value_and_not_zero(tmp_path, monkeypatch):
    from plateloom.stages import report as stage

    arguments, given = a_plate_with_an_empty_well(tmp_path, monkeypatch), []
    tables = {name: stage.read_table(Path(name)) for name in ("aggregates.parquet", "qc.parquet")}
    lost = ["Metadata_CellCount", "Metadata_FieldCount", "Metadata_CellsPerField"]
    tables["aggregates.parquet"].loc[1, lost] = [0, 0, NAN]
    tables["qc.parquet"].loc[1, "Reason"] = "debris: 2 times"
    monkeypatch.setattr(stage, "describe_montage", lambda _, wells, *__: given.append(wells) or ([], {}))
    described, _ = stage._describe_plate(*arguments)
    np.testing.assert_array_equal(described.wells["cells"], [5, NAN, 0])
    np.testing.assert_array_equal(given[0]["Metadata_CellCount"], [5, NAN, 0])
    html = render_plate(described)
    assert "A02: no value · x · 1 µM · all fields left out: debris" in html and "A02: 0 cells" not in html
    tables["qc.parquet"].loc[1, "Reason"] = "empty: contrast 1.2 of the noise"  # dead cells have gone: a result
    tables["aggregates.parquet"].loc[1, lost] = [0, 1, 0.0]
    described, _ = stage._describe_plate(*arguments)
    np.testing.assert_array_equal(described.wells["cells"], [5, 0, 0])
    assert "A02: 0 cells · x · 1 µM · all fields left out: empty" in render_plate(described)
    arguments[3]["config"]["profiling"]["exclude_flagged"] = False
    assert stage._describe_plate(*arguments)[0].wells["cells"].tolist() == [5, 0, 0]


def test_a_stitched_well_that_was_not_segmented_has_no_number_of_cells():
    from plateloom.stages.report import _count_fields

    wells = pd.DataFrame({"Metadata_Well": ["A01", "A02"], "Metadata_CellCount": [0, 7], "Metadata_FieldCount": [0, 2]})
    fields = pd.DataFrame({"Metadata_Well": ["A01"] * 2 + ["A02"] * 2, "Metadata_Field": 1, "SourceField": [1, 2] * 2})
    lost = [("A01", 1, "not segmented", "too large"), ("A02", 1, "channel missing", "no file")]
    exclusions = pd.DataFrame(lost, columns=["Metadata_Well", "Metadata_Field", "what", "reason"])
    shown = _count_fields(wells, fields, exclusions)
    np.testing.assert_array_equal(shown["cells"], [NAN, 7])
    assert list(shown["reason"]) == ["all fields left out: not segmented", ""]


@pytest.mark.parametrize("doubted, unit", [(True, "px"), (False, "µm")])
def test_pictures_are_measured_in_pixels_where_the_pixel_size_is_doubted(doubted, unit, tmp_path, monkeypatch):
    from plateloom.stages import report as stage

    arguments, given = a_plate_with_an_empty_well(tmp_path, monkeypatch), []
    notices = [Notice(kind="pixel_size", text="1 is no size.")] if doubted else []
    monkeypatch.setattr(stage, "_doubts", lambda *_: notices)
    monkeypatch.setattr(stage, "describe_montage", lambda *found: given.append(found[-1]) or ([], {}))
    stage._describe_plate(*arguments)
    assert given == [unit]


# Banners


def some_wells(**changes):
    wells = {
        "Metadata_Well": ["A01", "A02", "A03", "A04"],
        "Metadata_Control": ["negative", "negative", "positive", ""],
        "fields": [1, 1, 1, 2],
        "failed_fields": [0, 1, 0, 1],
        "cells": [5, 0, 0, 7],
    }
    return pd.DataFrame(wells | changes)


def test_lost_wells_fields_and_controls_are_told():
    fields = some_fields(("A02", 1, "DNA", "failed", "x"), ("A04", 2, "DNA", "failed", "y"))
    quality = pd.DataFrame(
        {
            "Metadata_Well": ["A03"],
            "SourceField": [1],
            "Channel": ["DNA"],
            "Reason": ["blurred: 0.1"],
        }
    )
    found = find_losses(some_wells(), list_exclusions(fields, flagged=quality))
    assert [(notice.kind, notice.text) for notice in found] == [
        ("wells", "1 of 4 wells has no usable field: A02."),
        ("fields", "A field failed: A04 field 2."),
        ("wells", "1 of 4 wells has no cell left, because of flagged fields: A03."),
        ("controls", "1 of 2 negative control wells has no value: A02."),
        ("controls", "1 of 1 positive control well has no value: A03."),
        ("flagged", "1 field is flagged by quality control and left out of values per well."),
    ]
    assert {notice.kind for notice in found} <= set(NOTICES)


def test_a_control_with_cells_and_without_a_readout_is_lost():
    wells = some_wells(cells=[5, 5, 5, 5], failed_fields=[0, 0, 0, 0]).assign(value=[1.0, NAN, 2.0, NAN])
    (notice,) = find_losses(wells, list_exclusions(some_fields()))
    assert notice.text == "1 of 2 negative control wells has no value: A02."


def test_a_plate_with_warnings_is_not_green_and_its_banners_lead_to_their_sections():
    wells = small_plate().wells.iloc[[0, 1]]
    html = render_plate(small_plate(wells=wells))
    assert [tone for tone, _ in banners(html)] == ["plain", "warn"]
    assert '<a href="#heat_maps">Plate maps</a></div>' in html
    assert [tone for tone, _ in banners(render_plate(small_plate(wells=wells, notices=())))] == ["good"]


def test_a_complete_screen_with_warnings_is_not_green_and_links_to_the_plates():
    plates = pd.DataFrame({"Metadata_Plate": ["P1"], "status": ["done"]})
    notice = Notice(
        kind="controls", text="1 of 7 controls has no value: C03.", section="heat_maps", plate="P1", link="p/1.html"
    )
    html = render_screen(ScreenReport(screen="S", plates=plates, notices=(notice,)))
    assert banners(html) == [
        ("plain", "The one plate is complete, but read what follows."),
        ("warn", "Control wells are lost. P1: 1 of 7 controls has no value: C03."),
    ]
    assert '<a href="p/1.html#heat_maps">P1</a>' in html
    assert banners(render_screen(ScreenReport(screen="S", plates=plates))) == [("good", "The one plate is complete.")]


def test_warnings_of_many_plates_are_summed_up_by_kind():
    plates = pd.DataFrame({"Metadata_Plate": [f"P{i}" for i in range(9)], "status": "done"})
    notices = tuple(
        Notice(kind="normalization", text="Not normalized.", plate=f"P{i}", link=f"{i}.html") for i in range(9)
    )
    (first, second) = banners(render_screen(ScreenReport(screen="S", plates=plates, notices=notices)))
    assert first[1].startswith("All 9 plates are complete, but") and second[0] == "warn"
    assert second[1].count("Not normalized.") == 4 and second[1].endswith("Also: P4, P5, P6, P7, P8.")
    assert "(9 plates)" in second[1]


def test_controls_of_the_plate_map_that_were_not_imaged_are_told(tmp_path):
    from plateloom.stages.screen_report import _shared_notices

    sheet = tmp_path / "map.tsv"
    sheet.write_text("well\ttreatment\tcontrol\nA01\tDMSO\tnegative\nA02\tDMSO\tnegative\nA03\tx\t\n")
    wells = {"P1": pd.DataFrame({"Metadata_Well": ["A01"]})}
    said = {"kind": "fields", "text": "A field failed.", "section": "exclusions"}
    done = {"plate": "P1", "status": "done", "facts": {"notices": [said]}}
    reported = [done, {"plate": "P2", "status": "failed", "facts": {}}]
    found = _shared_notices([{"plate": "P1", "plate_map": str(sheet)}], wells, {"reported": reported})
    assert [(notice.kind, notice.plate, notice.text) for notice in found] == [
        ("fields", "P1", "A field failed."),
        ("controls", "P1", "1 of 2 negative control wells of the plate map were not imaged: A02."),
    ]
    assert {notice.link for notice in found} == {"../plates/P1/report.html"}


def test_records_of_an_earlier_number_of_parts_are_not_shown(tmp_path, monkeypatch):
    from plateloom.stages.report_records import records_of

    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "results/plates/P1/records/features"
    folder.mkdir(parents=True)
    for part, parts in ((0, 2), (1, 2), (2, 3), (10, 11)):
        (folder / f"part-{part}.json").write_text(json.dumps({"part": part, "parts": parts}))
    found = records_of("P1", ("features", "maps"))
    assert [record["part"] for record in found["features"]] == [0, 1] and found["maps"] == []


def test_maps_of_raw_features_say_so():
    from plateloom.profiling import Params
    from plateloom.stages.screen_report import _rawness

    normalized = "Features are normalized to the negative control wells of each plate (median and MAD); those that vary more count more."
    assert _rawness(["P1", "P2"], [], Params()) == normalized
    assert "to all wells of each plate (mean and SD)" in _rawness(
        ["P1"], [], Params(normalize_to="all", method="standardize")
    )
    assert "raw features, not normalized" in _rawness(["P1"], ["P1"], Params())
    assert _rawness(["P1", "P2"], ["P2"], Params()).endswith("Only normalized plates are shown; without P2.")


@pytest.mark.parametrize(
    "plates, most, says", [(1, 100, "All 3 cells."), (2, 100, "All 6 cells."), (2, 4, "4 cells, drawn")]
)
def test_a_map_of_cells_says_which_cells_it_shows(plates, most, says, tmp_path, monkeypatch):
    from plateloom.stages import report_embeddings as stage
    from plateloom.store.provenance import write_json

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stage, "MAP_CELLS", most)
    wells = {}
    for plate in [f"P{i}" for i in range(1, plates + 1)]:
        wells[plate] = pd.DataFrame(
            {"Metadata_Plate": [plate], "Metadata_Well": "A01", "Metadata_Treatment": "x", "Metadata_Control": ""}
        ).assign(Metadata_Batch="b")
        path = stage.well_table(plate, "maps", "A01")
        path.parent.mkdir(parents=True)
        path.touch()
    monkeypatch.setattr(
        stage,
        "read_table",
        lambda path, _: pd.DataFrame(
            {"Metadata_Plate": path.parts[-3], "Metadata_Well": "A01", "Map_1": np.arange(3.0), "Map_2": 0.0}
        ),
    )
    card = stage.model_folder("map") / "map.json"
    for method, reason, axis in (("umap", "", "UMAP"), ("pca", "", "PCA"), ("umap", "3 rows", "PCA")):
        write_json(card, {"config": {"method": method, "reason": reason, "explained": [0.412, 0.2, 0.1]}})
        ((cells,), _) = stage.list_cell_maps(wells, {"mapped": [{"status": "done", "facts": {}}], "classified": []})
        assert cells.note.startswith(says) and ("where plates lie apart" in cells.note) == (plates > 1)
        shares = (" (41% of the variance)", " (20% of the variance)") if axis == "PCA" else ("", "")
        assert (cells.title, cells.axes) == (f"Cells, {axis}", (f"{axis} 1{shares[0]}", f"{axis} 2{shares[1]}"))
        assert cells.note.endswith("No UMAP: 3 rows.") == bool(reason)


@pytest.mark.parametrize(
    "status, classes, colored", [("done", ["a", "b"], True), ("failed", ["a", "b"], False), ("done", [], False)]
)
def test_a_map_is_colored_by_classes_of_this_classifier_and_not_by_what_an_earlier_one_has_left(
    status, classes, colored, tmp_path, monkeypatch
):
    from plateloom.stages import report_embeddings as stage
    from plateloom.store.provenance import write_json

    monkeypatch.chdir(tmp_path)
    keys = {"Metadata_Plate": ["P1"], "Metadata_Well": "A01"}
    wells = {"P1": pd.DataFrame(keys | {"Metadata_Treatment": "x", "Metadata_Control": "", "Metadata_Batch": "b"})}
    for kind, columns in (("maps", {"Map_1": 1.0, "Map_2": 0.0}), ("classes", {"Class": "a" if classes else ""})):
        made = {"fingerprint": kind}
        cells = pd.DataFrame(keys | {"Metadata_Field": 1, "Metadata_ObjectNumber": 1} | columns)
        write_table(stage.well_table("P1", kind, "A01"), cells, made)
    write_json(stage.model_folder("map") / "map.json", {"config": {"method": "umap", "reason": "", "explained": []}})
    write_json(stage.model_folder("classifier") / "model.json", {"card": {"classes": classes}, "wells": []})
    records = {"mapped": [{"status": "done", "facts": {}}], "classified": [{"status": status, "reason": "no labels"}]}
    ((cells,), _) = stage.list_cell_maps(wells, records)
    assert ("class" in cells.colorings) == colored


def test_a_map_says_which_wells_the_classifier_has_learned_from(tmp_path, monkeypatch):
    from plateloom.stages.report_classes import learned_note
    from plateloom.store.layout import model_folder
    from plateloom.store.provenance import write_json

    monkeypatch.chdir(tmp_path)
    write_json(model_folder("classifier") / "model.json", {"wells": ["P1/A01", "P2/A02"]})
    assert learned_note([("P1", "A02"), ("P3", "A01")]) == ""
    assert learned_note([("P1", "A01"), ("P1", "A02")]).startswith("Cells of A01 were labeled; there")


# Hits


def some_hits(number=2):
    rows = {"Metadata_Treatment": [f"T{i}" for i in range(number)], "Metadata_Dose": 1.0, "Metadata_Unit": "µM"}
    table = pd.DataFrame(rows | {"Metadata_Control": "", "n": 4, "n_plates": 2, "median": 3.2, "robust_z": -5.0})
    return table.assign(n_beyond=4, hit=True, reason="")


def test_controls_are_marked_among_the_hits_and_not_counted():
    controls = [some_hits(1).assign(Metadata_Control=kind) for kind in ("positive", "empty")]
    hits = pd.concat([some_hits(), *controls])
    html = render_screen(small_screen(hits=hits))
    words = Page(html).text
    assert words[words.index("hits") - 1] == "2"
    section = section_of(html, "hits")
    assert (
        "2 hits among 2 treatments and doses: 2 of 2 compounds. Not judged: 1 × empty control, 1 × positive control."
        in section
    )
    assert section.count('<tr class="positive">') == 1
    assert section.count(">yes<") == 2 and ">no<" in section


def test_where_nothing_could_be_judged_hits_are_not_determined():
    why = "its plates cannot be compared with negative controls"
    hits = some_hits().assign(n=0, robust_z=NAN, hit=False, reason=why)
    html = render_screen(small_screen(hits=hits))
    words = Page(html).text
    assert words[words.index("hits") - 1] == "not determined"
    assert f"Hits are not determined, since nothing could be judged: 2 × {why}." in section_of(html, "hits")
    none = Page(render_screen(small_screen(hits=some_hits().assign(hit=False)))).text
    assert none[none.index("hits") - 1] == "0"


def test_hits_are_counted_by_compound_too():
    hits = pd.concat([some_hits(1), some_hits(1).assign(Metadata_Dose=2.0), some_hits(3).assign(hit=False)])
    section = section_of(render_screen(small_screen(hits=hits)), "hits")
    assert "2 hits among 5 treatments and doses: 1 of 3 compounds." in section


def test_measured_values_have_three_digits_and_doses_those_they_were_given_with():
    assert [significant(value) for value in (3.1, 39.0, 0.0984, -0.4, 123.4)] == [
        "3.10",
        "39.0",
        "0.0984",
        "-0.400",
        "123",
    ]
    hits = some_hits().assign(Metadata_Dose=[0.3, 10.0], median=[3.1, 39.0])
    section = section_of(render_screen(small_screen(hits=hits)), "hits")
    for shown in (">0.3<", ">10<", ">3.10<", ">39.0<"):
        assert shown in section, shown


def test_the_table_of_hits_has_units_directions_and_headings_that_can_be_read():
    section = section_of(render_screen(small_screen(hits=some_hits())), "hits")
    heads = re.findall(r"<th [^>]*>([^<]*)</th>", section)
    assert heads == [
        "treatment",
        "dose",
        "unit",
        "wells",
        "plates",
        "median",
        "robust z",
        "direction",
        "wells beyond",
        "hit",
    ]
    assert section.count(">lower<") == 2


def test_what_a_hit_is_and_what_the_columns_mean_is_said_once():
    text = explain_hits(
        "A / B", threshold=3.0, min_replicates=2, false_rate=0.07, skipped={"P9": "2 wells"}, unit="ratio"
    )
    for words in (
        "A / B [ratio]",
        "3 or more, or -3 or less",
        "at least 2 wells",
        "Median:",
        "Robust z:",
        "Wells beyond:",
    ):
        assert text.count(words) == 1, words
    assert "7.0%" in text and "P9 (2 wells)" in text and "Positive controls" in text
    assert explain_hits("A", threshold=3.0, min_replicates=1).count("at least 1 well that") == 1
    assert text in Page(render_screen(small_screen(hits=some_hits(), hits_note=text))).words


def test_a_long_table_is_folded_and_never_scrolls_inside_the_page():
    html = render_screen(small_screen(hits=some_hits(60)))
    section = section_of(html, "hits")
    assert "Show all 60 rows" in section and 'class="long"' in section and "T59" in section
    assert 'type="checkbox"' not in section_of(render_screen(small_screen(hits=some_hits(FOLD))), "hits")
    style = re.search(r"<style>(.*?)</style>", html, re.S)[1]
    assert "max-height: 520px" not in style and f"tbody tr:nth-child(n+{FOLD + 1})" in style


# Dose responses


def test_a_curve_that_is_not_reported_gives_its_reason_and_no_line():
    curve = small_plate().dose_response[0]
    flat = replace(curve, hill=None, reason=f"no dose response (F test, p = 0.75) {HOSTILE}")
    html = section_of(render_plate(small_plate(dose_response=(flat,), dose_note="By this rule.")), "dose_response")
    page = Page(html + "</section>")
    assert flat.reason in page.words and "EC50" not in page.words and "By this rule." in page.words
    assert not [path for path in page.all("path") if path.get("stroke-width") == "1.6"]
    assert [path for path in Page(dose_chart(curve)).all("path") if path.get("stroke-width") == "1.6"]


def test_the_axis_of_a_dose_response_has_the_unit_and_the_heading_the_whole_readout():
    readout = "Nuclei_Intensity_MeanIntensity_GFP / Cytoplasm_Intensity_MeanIntensity_GFP"
    curve = DoseResponse(treatment="t", readout=readout, doses=np.array([1.0]), values=np.array([1.0]))
    assert "readout" in Page(dose_chart(curve)).text
    texts = Page(dose_chart(replace(curve, unit="ratio"))).text
    assert "ratio" in texts and not any("Intensity" in text for text in texts)
    assert f"<h3>{readout}</h3>" in render_plate(small_plate(dose_response=(replace(curve, unit="ratio"),)))
    assert "Cell count" in Page(dose_chart(replace(curve, readout="Cell count"))).text


@pytest.mark.parametrize("text", ["a", "", "Nuclei_Texture_Contrast / x", "x" * 70, "two words of text"])
def test_wrapping_loses_no_letter(text):
    lines = wrap_text(text, 12)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "") and max(map(len, lines)) <= 12


def test_the_report_fits_what_profiling_reports():
    from plateloom.stages.report_readouts import dose_curves, dose_note

    dose = np.tile(np.geomspace(0.01, 10, 8), 2)
    rising = 1 + 4 / (1 + (0.3 / dose) ** 1.5) + np.random.default_rng(0).normal(0, 0.05, 16)
    flat = np.random.default_rng(1).normal(1, 0.05, 16)
    wells = pd.DataFrame(
        {
            "Metadata_Plate": "P1",
            "Metadata_Well": [f"A{i:02d}" for i in range(1, 17)] + [f"B{i:02d}" for i in range(1, 17)],
            "Metadata_Treatment": ["rising"] * 16 + ["flat"] * 16,
            "Metadata_Dose": np.tile(dose, 2),
            "Metadata_Unit": "µM",
            "Metadata_Control": "",
            "Metadata_Readout": np.concatenate([rising, flat]),
        }
    )
    flat_curve, rising_curve = dose_curves(wells, "r", unit="ratio")
    assert flat_curve.unit == "ratio"
    assert flat_curve.hill is None and "no dose response" in flat_curve.reason
    assert rising_curve.hill.ec50 == pytest.approx(0.3, rel=0.1) and rising_curve.reason == ""
    assert "F test" in dose_note() and "10 times" in dose_note()


# Pictures


def test_a_picture_has_a_scale_bar_of_the_right_length_and_says_what_it_shows():
    picture = np.zeros((240, 480, 3), np.uint8)
    tile = Tile(
        well="A01", picture=picture, width_um=312.0, caption="field 1, central 480 × 240 of 1080 × 1080 px", unit="nM"
    )
    section = section_of(render_plate(small_plate(montage=(replace(tile, dose=3.0),), dose_unit="µM")), "montage")
    (bar,) = [rect for rect in Page(section + "</section>").all("rect") if rect.get("stroke") == "#000000"]
    assert float(bar["width"]) == pytest.approx(50 / 312 * 480, abs=0.01) and "50 µm" in section
    assert "central 480 × 240 of 1080 × 1080 px" in section and "A01 · 3 nM" in section


def test_the_scale_bar_is_in_pixels_where_the_pixel_size_is_doubted():
    tile = Tile(well="A01", picture=np.zeros((240, 480, 3), np.uint8), width_um=480.0, length_unit="px")
    section = section_of(render_plate(small_plate(montage=(tile,))), "montage")
    assert "100 px" in section and "µm" not in section


def test_the_dose_of_a_well_without_a_unit_gets_none_from_its_neighbors():
    wells = small_plate().wells.assign(Metadata_Unit=["", "µM", "µM", "µM"], Metadata_Dose=[0.0, 1.0, 10.0, 0.1])
    tile = Tile(well="B02", picture=np.zeros((4, 4, 3), np.uint8), treatment="DMSO", dose=0.0)
    html = render_plate(small_plate(wells=wells, montage=(tile,), dose_unit="µM"))
    assert "<strong>B02 · DMSO</strong>" in html and "0 µM" not in section_of(html, "heat_maps").replace("10 µM", "")


@pytest.mark.parametrize("width", [0.7, 3.0, 40.0, 312.0, 14000.0])
def test_a_scale_bar_is_a_round_number_of_at_most_a_quarter_of_the_width(width):
    bar = scale_bar(width)
    assert width / 10 <= bar <= width / 4 and f"{bar:e}"[0] in "125"


def test_a_field_without_a_picture_gives_its_reason_instead():
    tile = Tile(well="A01", picture=None, why=f"failed: {HOSTILE}")
    section = section_of(render_plate(small_plate(montage=(tile,))), "montage")
    assert "No picture: failed: &lt;script&gt;" in section and "<img" not in section


def test_channels_and_outlines_have_legends_and_no_white_square():
    report = small_plate(montage_colors={"DNA": "#4080ff"}, montage_outlines={"Nuclei": "#ffffff"})
    section = section_of(render_plate(report), "montage")
    assert section.index("Channels:") < section.index("DNA") < section.index("Outlines:") < section.index("Nuclei")
    page = Page(str(color_legend({"Nuclei": "#ffffff"}, outlines=True)))
    assert [rect["fill"] for rect in page.all("rect")] == ["#000000"]
    assert [(one["fill"], one["stroke"]) for one in page.all("ellipse")] == [("none", "#ffffff")]


def a_plate_of_wells():
    names = [f"{row}{column:02d}" for row in "ABCD" for column in range(1, 7)]
    return pd.DataFrame(
        {
            "Metadata_Well": names,
            "Metadata_Treatment": ["DMSO"] * 4 + ["ref"] * 2 + [f"T{i % 3}" for i in range(18)],
            "Metadata_Dose": [NAN] * 4 + [1.0] * 2 + [float(i) for i in range(18)],
            "Metadata_Control": ["negative"] * 4 + ["positive"] * 2 + [""] * 18,
            "Metadata_CellCount": [100] * 6 + [50 + i for i in range(18)],
            "Metadata_Readout": [1.0] * 6 + [2.0 + (i * 7) % 18 for i in range(18)],
        }
    )


def test_controls_flagged_failed_and_extreme_wells_are_shown_first():
    flagged, failed = [("C05", 2, "blurred: 0.1")], [("D02", 1, "0 bytes"), ("A01", 1, "truncated")]
    chosen = choose_tiles(a_plate_of_wells(), 12, flagged=flagged, failed=failed, order=["D06", "B05"])
    why = {well: (field, reason) for well, field, reason in chosen}
    assert len(why) == len(chosen) == 12
    assert [well for well, *_ in chosen][:2] == ["A02", "A05"], "controls that have not failed"
    assert why["C05"] == (2, "flagged: blurred: 0.1") and why["D02"] == (1, "failed: 0 bytes")
    assert why["A01"] == (1, "failed: truncated")
    assert (
        why["B01"][1] == "fewest cells, lowest readout of the samples" and why["D06"][1] == "most cells of the samples"
    )
    assert why["B06"][1] == "highest readout of the samples"


def test_many_failed_fields_leave_room_for_the_others():
    failed = [(well, 1, "0 bytes") for well in a_plate_of_wells()["Metadata_Well"][8:]]
    chosen = choose_tiles(a_plate_of_wells(), 9, failed=failed)
    assert sum(reason.startswith("failed") for *_, reason in chosen) == 3 and len(chosen) == 9
    assert len(choose_tiles(a_plate_of_wells().drop(columns="Metadata_Readout"), 100)) == 24
    assert choose_tiles(a_plate_of_wells().iloc[:0], 5) == []


# Labels, units and colors


def test_the_label_of_an_interval_stands_whole():
    label = "Nuclei_Intensity_MeanIntensity_GFP / Cytoplasm_Intensity_MeanIntensity_GFP"
    texts = Page(interval_chart([label, "short"], [0.5, 0.1], [0.4, NAN], [0.6, NAN], label="Z'")).text
    assert label.replace(" ", "") in "".join(texts).replace(" ", "") and "short" in texts


def test_kinds_of_positive_controls_are_pooled_with_a_word_and_shown_one_by_one():
    from plateloom.stages.report_readouts import quality_note, quality_rows

    random = np.random.default_rng(0)
    wells = pd.DataFrame(
        {
            "Metadata_Treatment": ["DMSO"] * 6 + ["a"] * 4 + ["b"] * 4,
            "Metadata_Dose": [NAN] * 6 + [1.0] * 8,
            "Metadata_Unit": "µM",
            "Metadata_Control": ["negative"] * 6 + ["positive"] * 8,
            "Metadata_Readout": np.repeat([0.0, 10.0, 20.0], [6, 4, 4]) + random.normal(0, 0.1, 14),
        }
    )
    rows = quality_rows(wells, "readout")
    z_prime = rows[rows["statistic"] == "Z'"].set_index("controls")["value"]
    assert list(z_prime.index) == ["2 kinds, pooled", "a 1 µM", "b 1 µM"]
    assert z_prime["2 kinds, pooled"] < 0 < 0.9 < z_prime["a 1 µM"]
    note = quality_note(rows)
    assert "95 %" in note and "1,000 bootstrap" in note and "several kinds" in note
    one = quality_rows(wells[wells["Metadata_Treatment"] != "b"], "readout")
    assert set(one["controls"]) == {"a 1 µM"} and "several kinds" not in quality_note(one)
    html = render_plate(small_plate(quality=rows, quality_note=note))
    assert section_of(html, "quality").count("2 kinds, pooled") >= 2 and note in Page(html).words
    screen = render_screen(small_screen(quality=rows.assign(Metadata_Plate=HOSTILE), quality_note=note))
    assert "Z&#39; · b 1 µM" in screen and note in Page(screen).words


def test_a_statistic_without_value_is_a_line_and_no_chart():
    from plateloom.stages.report_readouts import quality_note, quality_rows

    wells = pd.DataFrame(
        {
            "Metadata_Treatment": ["DMSO"] * 6 + ["a"] * 4 + ["b"] * 2,
            "Metadata_Dose": [NAN] * 6 + [1.0] * 6,
            "Metadata_Unit": "µM",
            "Metadata_Control": ["negative"] * 6 + ["positive"] * 6,
            "Metadata_Readout": [1, 2, 3, 1, 2, 3, 11, 12, 13, 12, 21, 22.0],
        }
    )
    rows = quality_rows(wells, "readout")
    line = "Z', robust Z', SSMD of b 1 µM: not defined (2 positive control wells, 3 needed)."
    plate = section_of(render_plate(small_plate(quality=rows)), "quality")
    screen = section_of(render_screen(small_screen(quality=rows.assign(Metadata_Plate=HOSTILE))), "quality")
    for section in (plate, screen):
        words = Page(section + "</section>").words
        assert line in words and "a 1 µM: not defined" not in words
    assert plate.count("<svg") == 3 and "not defined</text>" not in plate
    assert plate.count("<td>b 1 µM</td>") == screen.count("<td>b 1 µM</td>") == 0 < plate.count("<td>a 1 µM</td>")
    bare = rows[rows["controls"] == "b 1 µM"]
    bare_plate = section_of(render_plate(small_plate(quality=bare)), "quality")
    bare_screen = section_of(render_screen(small_screen(quality=bare.assign(Metadata_Plate=HOSTILE))), "quality")
    for section in (bare_plate, bare_screen):
        assert line in Page(section + "</section>").words and "<table" not in section
    assert "Z&#39; · a 1 µM" in screen and "Z&#39; · b 1 µM" not in screen
    known = rows.set_index(["controls", "statistic"])
    assert np.isfinite(known.loc[("2 kinds, pooled", "SSMD"), ["low", "high"]].astype(float)).all()
    assert np.isnan(known.loc[("a 1 µM", "SSMD"), "high"]), "4 wells carry no interval"
    assert "No interval is determined below 6 control wells" in quality_note(rows)


def test_sections_absent_for_the_same_reason_say_it_once():
    notes = dict.fromkeys(("quality", "hits", "dose_response"), "No readout.") | {"well_maps": "Too few."}
    html = render_screen(ScreenReport(screen="S", plates=pd.DataFrame(), notes=notes))
    assert html.count("No readout.") == 1 and "Too few." in html
    assert "<h2>Assay quality per plate · Hits · Dose-response over plates</h2>" in html


def test_settings_are_shown_whole_behind_one_line():
    parameters = {f"setting_{i}": i for i in range(200)}
    for html in (render_plate(small_plate(parameters=parameters)), render_screen(small_screen(parameters=parameters))):
        section = section_of(html, "parameters")
        assert section.count("<details>") == 1 and "setting_199" in section


def test_two_units_on_a_plate_stay_with_their_wells():
    wells = small_plate().wells.assign(Metadata_Unit=["", "nM", "µM", "nM"])
    html = render_plate(small_plate(wells=wells, dose_unit=""))
    assert "B03: 80 cells · &lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; · 1 nM" in html
    assert "0.1 nM" in html and "10 µM" in html


def test_a_kind_of_control_has_one_color_everywhere_and_nothing_else_has_it():
    assert not {NEGATIVE, POSITIVE} & set(CATEGORIES)
    assert category_colors(["positive", "a", "negative", "b"]) == {
        "negative": NEGATIVE,
        "positive": POSITIVE,
        "a": CATEGORIES[0],
        "b": CATEGORIES[1],
    }
    controls = {"A01": "negative", "A02": "positive"}
    plate = plate_chart(HeatMap(title="x", values={"A01": 1.0, "A02": 2.0}), (8, 12), controls=controls)
    curve = replace(small_plate().dose_response[0], controls={"negative": (0, 1, 2), "positive": (3, 4, 5)})
    names = ["negative", "positive", "other"]
    points = Embedding(title="e", x=np.arange(3.0), y=np.arange(3.0), colorings={"c": names})
    for drawing in (plate, dose_chart(curve), embedding_chart(points, "c")):
        assert NEGATIVE in drawing and POSITIVE in drawing
    assert NEGATIVE not in dose_chart(replace(curve, controls={}))


def test_a_color_means_one_kind_of_category_only():
    first = [color for palette in (CATEGORIES, *PALETTES.values()) for color in palette[:5]]
    assert len(set(first)) == len(first) and not set(first) & set(CONTROLS.values())
    assert all(len(set(palette)) == len(palette) == 10 for palette in PALETTES.values())
    names = ["a", "b"]
    points = Embedding(title="e", x=np.arange(2.0), y=np.arange(2.0), colorings={"plate": names, "treatment": names})
    assert PALETTES["plate"][0] in embedding_chart(points, "plate")
    assert CATEGORIES[0] in embedding_chart(points, "treatment")
    assert CATEGORIES[0] not in embedding_chart(points, "plate")


def test_counts_have_whole_numbers_at_scales_axes_and_wells():
    assert scale_limits(np.arange(31.0, 69.0)) == (31.0, 68.0), "31.37 and 67.63 are no numbers of cells"
    assert scale_limits(np.arange(31.0, 69.0) + 0.5) != (31.0, 69.0)
    counts = plate_chart(HeatMap(title="x", values={"A01": 141.0, "A02": 144.0}), (2, 2))
    assert ">141<" in counts and "141.0" not in counts
    assert short_number(1.1, spread=2.3) == "1.10" and short_number(-3.621, spread=0.4) == "-3.62"
    epochs = line_chart(np.arange(1, 13), {"loss": np.linspace(0, 1, 12)}, x_label="epoch", y_label="loss")
    assert ">2.5<" not in epochs and ">5<" in epochs and ">10<" in epochs


def test_no_point_lies_above_the_last_line():
    page = Page(plates_chart(["P1", "P2"], [2260, 2248], label="cells", from_zero=True))
    lines = [float(line["y1"]) for line in page.all("line") if line.get("class") == "gridline"]
    assert min(float(circle["cy"]) for circle in page.all("circle")) >= min(lines)


@pytest.mark.parametrize(
    "unit, shown", [("uM", "µM"), ("ug/ml", "µg/ml"), ("units", "units"), ("nM", "nM"), ("", ""), (NAN, "")]
)
def test_a_micro_is_written_as_one(unit, shown):
    from plateloom.stages.report_readouts import with_micro

    assert with_micro(pd.DataFrame({"Metadata_Unit": [unit]}))["Metadata_Unit"].tolist() == [shown]


@pytest.mark.parametrize("shape, last", [((8, 12), "H"), ((16, 24), "P"), ((32, 48), "AC")])
def test_small_plate_maps_have_letters_and_numbers(shape, last):
    heat_map = ScreenHeatMap(title="cells", plates={"P1": {"A01": 1.0}})
    plates = pd.DataFrame({"Metadata_Plate": ["P1"], "status": ["done"]})
    html = render_screen(ScreenReport(screen="S", plates=plates, shapes={"P1": shape}, heat_maps=(heat_map,)))
    texts = Page(section_of(html, "heat_maps") + "</section>").text
    assert "A" in texts and last in texts and "1" in texts and str(shape[1]) in texts


def test_the_units_of_readouts_follow_from_their_names():
    from plateloom.profiling import Params
    from plateloom.stages.report_readouts import readout_name, unit_of

    area, mean = "Nuclei_AreaShape_Area", "Nuclei_Intensity_MeanIntensity_GFP"
    assert [
        unit_of(Params(readout=name)) for name in (area, mean, "Metadata_CellsPerField", "Nuclei_Granularity_1_GFP")
    ] == [
        "px²",
        "share of full scale",
        "cells per field",
        "",
    ]
    both = Params(readout=mean, readout_denominator=area, readout_log=True)
    assert unit_of(both) == "log2" and readout_name(both) == f"log2({mean} / {area})"
    assert unit_of(Params(readout=mean, readout_denominator=area)) == "ratio"


# Where numbers come from


def test_code_settings_and_results_of_the_records_stand_on_the_page():
    from plateloom.stages.report_records import provenance_of, versions_of

    record = {
        "status": "done",
        "code": "c0de",
        "settings": "5e77",
        "artefacts": {"A01": "f1"},
        "versions": {"numpy": "2.4"},
    }
    records = {
        "conversion": [record, record | {"artefacts": {"A02": "f2"}, "versions": {"numpy": "2.5", "odd": "1"}}],
        "features": [record],
        "maps": [record | {"status": "failed"}],
        "classes": [],
    }
    table = provenance_of(records)
    assert table["stage"].tolist() == ["conversion", "features"]
    assert set(table["code"]) == {"c0de"} and table["result"].tolist()[1] == "f1" and len(table["result"][0]) == 32
    assert versions_of(records) == {"numpy": "2.4, 2.5", "odd": "1"}
    html = render_plate(small_plate(stages=table, origin={"config": "digest d1635"}))
    section = section_of(html, "reproduce")
    assert "c0de" in section and "5e77" in section and "digest d1635" in section and "<details>" in section


# Segmentation


def test_a_plausible_segmentation_is_not_doubted():
    random = np.random.default_rng(0)
    diameters = random.normal(12, 1.5, 500)
    areas = random.uniform(200, 900, 500)
    options = {"nucleus_um": 12.0, "limits_um": (4.8, 26.4), "reach_um": 30.0}
    assert doubt_segmentation(diameters, areas, [10] * 50, **options) == []
    assert (
        doubt_segmentation([], [], [0, 5], **options) == []
        and doubt_segmentation([90.0] * 5, [1.0] * 5, [5], **options) == []
    )


@pytest.mark.parametrize(
    "diameter, area, counts, says",
    [
        (
            21.0,
            500.0,
            [9],
            "The median nucleus is 21 µm wide, but segmentation.parameters.nucleus_diameter_um is 12 µm",
        ),
        (7.0, 500.0, [9], "The median nucleus is 7 µm wide"),
        (12.0, 500.0, [0, 0, 9], "2 of 3 fields have not a single nucleus."),
        (21.0, 500.0, [9], "set nucleus_diameter_um: 21;"),
        (12.0, np.pi * 35**2, [9], "100% of the cells fill the whole disc that they may (30 µm"),
        (12.0, 120.0, [9], "The median cell has 1.06 times the area of its nucleus: hardly any cytoplasm is found."),
    ],
)
def test_an_implausible_segmentation_is_doubted_with_numbers_and_the_setting(diameter, area, counts, says):
    options = {"nucleus_um": 12.0, "limits_um": (4.8, 26.4), "reach_um": 30.0}
    (text,) = doubt_segmentation([diameter] * 50, [area] * 50, counts, **options)
    assert says in text


def test_nuclei_at_the_limits_of_size_are_doubted():
    diameters = [12.0] * 80 + [25.5] * 12 + [5.0] * 12
    found = doubt_segmentation(diameters, [NAN] * 104, [9], nucleus_um=12.0, limits_um=(4.8, 26.4), reach_um=30.0)
    assert len(found) == 2 and "smallest one allowed (4.8 µm" in found[0] and "largest one allowed (26.4 µm" in found[1]
    assert all(text.startswith("12% of the nuclei") for text in found)


def test_methods_that_say_nothing_of_sizes_are_not_doubted():
    assert doubt_segmentation([90.0] * 50, [9e9] * 50, [9]) == []


def test_a_pixel_of_one_micrometer_in_the_config_is_doubted_and_one_in_the_files_is_not():
    assert "conversion.pixel_size_um is 1" in doubt_pixel_size(1.0, 1.0)
    assert doubt_pixel_size(0.65, 0.65) == "" and doubt_pixel_size(1.0, None) == ""


# Models


def test_the_classifier_and_the_autoencoder_say_what_they_were_trained_and_tested_on(tmp_path, monkeypatch):
    from plateloom.stages.report_classifier import describe_classifier

    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "results/screen/models/classifier"
    folder.mkdir(parents=True)
    row = {"class": "a", "f1": 0.9, "groups": 3, "precision": 0.8, "recall": 1.0, "support": 40}
    metrics = {
        "scheme": "well",
        "folds": [{}, {}],
        "n_cells": 1400,
        "n_groups": 30,
        "classes": ["a"],
        "confusion": [[40]],
        "per_class": [row],
        "balanced_accuracy": 0.9,
        "balanced_accuracy_low": 0.8,
        "balanced_accuracy_high": None,
    }
    (folder / "model.json").write_text(json.dumps({"card": {"metrics": metrics}}))
    found = describe_classifier([{"status": "done"}], {})
    assert list(found.per_class) == ["class", "precision", "recall", "f1", "cells", "wells"]
    assert found.scheme.startswith(
        "Tested by cross-validation in 2 folds on 1,400 cells of 30 wells; all cells of a well"
    )
    trained = replace(
        small_screen().autoencoder, scheme="Trained on 1,216 crops from 77 wells, tested on 288 from 19 other wells"
    )
    html = render_screen(small_screen(classifier=found, autoencoder=trained))
    words = Page(html).words
    assert f"{found.scheme}." in words and f"{trained.scheme}." in words
    assert "Split:" not in words and "Held out:" not in words


def test_the_table_of_shares_has_no_column_on_the_scale_of_the_test():
    from plateloom.classification.enrichment import find_enrichment
    from plateloom.report.screen import enrichment_section

    wells = pd.DataFrame(
        {
            "Metadata_Plate": "P1",
            "Metadata_Treatment": ["DMSO"] * 4 + ["x"] * 2,
            "Metadata_Dose": [0.0] * 4 + [1.0] * 2,
            "Metadata_Unit": ["µM"] * 6,
            "Metadata_Control": ["negative"] * 4 + [""] * 2,
            "cells": 100,
            "novel": [1, 2, 1, 2, 90, 91],
        }
    )
    page = Page(str(enrichment_section(find_enrichment(wells, ["novel"]))))
    shown = [
        text for text in page.text if text in ("change", "share", "control share", "q", "p", "difference", "reason")
    ]
    assert shown == ["change", "share", "control share", "q"] and "enriched" in page.text


def test_no_cells_are_shown_of_wells_whose_fields_are_left_out():
    from plateloom.stages.fields import known_cells

    wells = pd.DataFrame({"Metadata_Well": ["A01", "A02"], "Metadata_CellCount": [5, 0]})
    np.testing.assert_array_equal(known_cells(wells.assign(Metadata_FieldCount=[1, 0])), [5, NAN])
    np.testing.assert_array_equal(known_cells(wells.assign(Metadata_FieldCount=[1, 1])), [5, 0])
