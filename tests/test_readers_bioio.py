"""Files that only bioio reads become planes, by the plugins that are here: OME-TIFF's, and in environments of their own CZI, ND2 and LIF."""

import importlib.util
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from layouts import bioio as layout
from layouts.ome_tiff import WAVELENGTHS

from plateloom.errors import PlateLayoutError, UnreadableImageError
from plateloom.readers import SourceImage, bioio, pattern
from plateloom.readers.bioio import SCENES, Params
from plateloom.readers.planes import decoded
from plateloom.readers.scenes import Scene

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("bioio_ome_tiff") is None,
        reason="needs bioio and its plugin: pip install bioio bioio-ome-tiff",
    ),
    # The plugin calls its own dependency in a way that is going out of use.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:bioio_ome_tiff", "ignore::DeprecationWarning:ome_types"),
]

TIFF = Params(suffixes=[".ome.tif"])
SCENE = Params(suffixes=[".ome.tif"], names="scene", pattern="Image:" + SCENES["ZEN"])
PLACES = {1: (0.0, 0.0), 2: (0.0, 100.5), 3: (80.25, -20.0)}


def planes_of(wells=("A01", "B03"), fields=(1, 2, 3), depth=2, times=2, shape=(6, 9)):
    random = np.random.default_rng(0)
    return {
        (well, field, channel, z, t): random.integers(1, 65535, shape, dtype=np.uint16)
        for well in wells
        for field in fields
        for channel in (1, 2)
        for z in range(1, depth + 1)
        for t in range(1, times + 1)
    }


def check(folder, planes, params=TIFF, *, positions=PLACES, pixel_size_um=0.65, notes=()):
    found = bioio.scan(folder, params)
    assert len(found.images) == len(planes)
    for image in found.images:
        channel = ("DNA", "GFP").index(image.channel) + 1
        pixels, _ = bioio.load(folder, image)
        np.testing.assert_array_equal(pixels, planes[image.well, image.field, channel, image.z + 1, image.t + 1])
        assert image.pixel_size_um == pytest.approx(pixel_size_um) and image.wavelength_nm == WAVELENGTHS[channel - 1]
        assert (image.y_um, image.x_um) == (pytest.approx(positions[image.field]) if positions else (None, None))
        assert image.seconds > 1.7e9 and image.size > 0
    assert found.channels == {"DNA": {"color": "FF0000"}, "GFP": {"color": "00FF00"}}
    assert all(text in note for text, note in zip(notes, found.notes, strict=True))
    return found


def test_a_file_for_each_well_reads_back(tmp_path):
    planes = planes_of()
    layout.write(tmp_path, planes, positions=PLACES)
    images = check(tmp_path, planes).images
    assert sorted({image.z_um for image in images}) == [0.0, 1.5]
    assert {image.file for image in images} == {"A01.ome.tif", "B03.ome.tif"}


def test_a_scene_for_each_field_of_all_wells_reads_back(tmp_path):
    planes = planes_of(wells=("A01", "B03", "H12"))
    layout.write(tmp_path, planes, positions=PLACES, scenes=True)
    check(tmp_path, planes, SCENE)


def test_without_a_field_in_its_name_a_scene_is_counted_within_its_well(tmp_path):
    planes = planes_of()
    layout.write(tmp_path, planes, positions=PLACES, scenes=True)
    params = SCENE.model_copy(update={"pattern": r"Image:P\d-(?P<well>[A-H]\d\d)"})
    check(tmp_path, planes, params)


@pytest.mark.parametrize("unit", ["µm", "nm", "mm"])
def test_sizes_and_positions_have_their_units(tmp_path, unit):
    planes = planes_of(wells=("A01",))
    layout.write(tmp_path, planes, positions=PLACES, unit=unit, position_unit=unit)
    check(tmp_path, planes)


def test_axes_of_a_stage_may_point_the_other_way(tmp_path):
    planes = planes_of(wells=("A01",))
    layout.write(tmp_path, planes, positions=PLACES)
    check(
        tmp_path,
        planes,
        TIFF.model_copy(update={"mirror": "y"}),
        positions={f: (-y, x) for f, (y, x) in PLACES.items()},
    )


def test_positions_that_are_all_the_same_are_none(tmp_path):
    planes = planes_of(wells=("A01",))
    layout.write(tmp_path, planes, positions=dict.fromkeys(PLACES, (5.0, 6.0)))
    check(tmp_path, planes, positions=None, notes=["one position for all fields"])


def test_files_and_scenes_that_do_not_match_are_a_note(tmp_path):
    planes = planes_of()
    layout.write(tmp_path, planes, positions=PLACES)
    (tmp_path / "A01.ome.tif").rename(tmp_path / "overview.ome.tif")
    kept = {key: plane for key, plane in planes.items() if key[0] == "B03"}
    check(tmp_path, kept, notes=["1 files do not match the pattern and are left out, e.g. 'overview.ome.tif'"])
    found = bioio.scan(tmp_path, TIFF.model_copy(update={"names": "scene"}))
    assert found.images == [] and "6 scenes do not match" in found.notes[0]


def test_a_file_that_cannot_be_opened_stands_for_the_planes_of_its_name(tmp_path):
    planes = planes_of()
    layout.write(tmp_path, planes, positions=PLACES)
    (tmp_path / "C05.ome.tif").write_bytes(b"no TIFF")
    found = bioio.scan(tmp_path, TIFF)
    assert "1 files cannot be opened; 'C05.ome.tif'" in found.notes[0]
    broken = [image for image in found.images if image.well == "C05"]
    assert len(broken) == 24
    with pytest.raises(UnreadableImageError, match="C05.ome.tif"):
        bioio.load(tmp_path, broken[0])
    for name in ("A01", "B03"):
        (tmp_path / f"{name}.ome.tif").write_bytes(b"")
    with pytest.raises(PlateLayoutError, match="no file of .* can be opened; 'A01.ome.tif'"):
        bioio.scan(tmp_path, TIFF)


def test_a_truncated_file_is_unreadable_and_nothing_worse(tmp_path):
    layout.write(tmp_path, planes_of(wells=("A01", "A02"), fields=(1,), depth=1, times=1), positions=PLACES)
    path = tmp_path / "A01.ome.tif"
    good, random = path.read_bytes(), np.random.default_rng(2)
    for _ in range(30):
        data = bytearray(good)
        del data[random.integers(len(data)) :]
        for _ in range(random.integers(0, 3)):
            if data:
                data[random.integers(len(data))] = random.integers(256)
        path.write_bytes(data)
        try:
            for image in bioio.scan(tmp_path, TIFF).images:
                bioio.load(tmp_path, image)
        except (PlateLayoutError, UnreadableImageError) as error:
            assert "A01.ome.tif" in str(error)


def test_what_is_no_plane_of_counts_is_refused_not_cast(tmp_path):
    planes = {key: plane.astype(np.float32) for key, plane in planes_of(wells=("A01",), fields=(1,)).items()}

    def change(ome):
        for pixels in ome.iter("Pixels"):
            pixels.set("Type", "float")

    layout.write(tmp_path, planes, change=change)
    images = bioio.scan(tmp_path, TIFF).images
    with pytest.raises(UnreadableImageError, match="float32"):
        bioio.load(tmp_path, images[0])


def test_a_changed_file_is_not_read_from_memory(tmp_path):
    first, second = planes_of(wells=("A01",)), {key: plane + 1 for key, plane in planes_of(wells=("A01",)).items()}
    layout.write(tmp_path, first, positions=PLACES)
    check(tmp_path, first)
    layout.write(tmp_path, second, positions=PLACES)
    os.utime(tmp_path / "A01.ome.tif", ns=(1, 1))
    check(tmp_path, second)


def test_a_listing_opens_no_file(tmp_path):
    for name in ("A01.czi", "B02.czi", "notes.txt", "overview.czi"):
        (tmp_path / name).write_bytes(b"x")
    listed = sorted(bioio.listing(tmp_path, Params()))
    assert [well for well, _ in listed] == ["A01", "B02"] and listed[0][1].startswith("A01.czi/1/")
    assert {well for well, _ in bioio.listing(tmp_path, Params(names="scene"))} == {""}


def test_a_folder_without_such_files_says_so(tmp_path):
    with pytest.raises(PlateLayoutError, match="ends in .czi"):
        bioio.scan(tmp_path, Params())


@pytest.mark.parametrize(
    ("name", "plugin"),
    [("A01.czi", "bioio-czi"), ("A01.dv", "bioio-dv"), ("A01.vsi", "bioio-bioformats")],
)
def test_a_missing_plugin_is_named(tmp_path, name, plugin):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(PlateLayoutError, match=f"reads '{name}': pip install bioio {plugin}"):
        bioio.scan(tmp_path, Params())
    assert bioio.recognize(tmp_path, [name])["reader"] == "bioio"


@pytest.mark.parametrize(("name", "package"), [("A01.ND2", "nd2"), ("A01.lif", "liffile")])
def test_a_missing_package_is_named(tmp_path, name, package, monkeypatch):
    (tmp_path / name).write_bytes(b"x")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(PlateLayoutError, match=f"reading '{name}' needs a package .* pip install {package}$"):
        bioio.scan(tmp_path, Params())
    assert bioio.recognize(tmp_path, [name])["reader"] == "bioio"


def test_a_missing_bioio_is_named(tmp_path, monkeypatch):
    (tmp_path / "A01.czi").write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "bioio", None)
    with pytest.raises(
        PlateLayoutError, match="'A01.czi' needs a package that is not installed: pip install bioio bioio-czi"
    ):
        bioio.scan(tmp_path, Params())
    assert bioio.recognize(tmp_path, ["A01.czi"])["layout"] == ".czi by bioio"


def test_bioio_is_imported_only_when_it_is_used():
    code = (
        "import sys; from plateloom.readers import bioio; bioio.Params(); bioio.recognize('x', ['A01.tif', 'A01.czi']);"
        "print(sorted({'bioio', 'numpy', 'dask'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["A01.czi", "A02.czi"], "file"),
        (["scan/WellA01_ChannelDAPI_Seq0000.nd2", "scan/WellA02_ChannelDAPI_Seq0001.nd2"], "file"),
        (["plate.lif"], "scene"),
        (["A01.czi", "B01.tif", "B02.tif"], None),
        (["A01.tif"], None),
        ([], None),
    ],
)
def test_files_are_recognized_by_their_suffix(names, expected):
    found = bioio.recognize("nowhere", names)
    assert (found and found["params"].get("names", "file")) == expected
    if found:
        assert found["share"] > 0.5 and Params(**found["params"])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("A01.czi", ("A01", None)),
        ("exp-7_B3_f02.lif", ("B3", "02")),
        ("20201115_184113_906__WellA2_ChannelDAPI_Seq0003.nd2", ("A2", None)),
        ("P2-D4", ("P2", None)),
    ],
)
def test_usual_names_hold_a_well(name, expected):
    match = pattern.matcher(pattern.Params(pattern=bioio.FIRST_WELL))(name)
    assert (match["well"], match["field"]) == expected


def test_scenes_of_zen_and_of_las_x_are_told_from_wells():
    match = pattern.matcher(pattern.Params(pattern=SCENES["ZEN"]))("P2-D4")
    assert (match["well"], match["field"]) == ("D4", "2")
    match = pattern.matcher(pattern.Params(pattern=SCENES["LAS X Navigator"], folders=True))
    assert pattern.well_text(match("TileScan 1/B/3/R12")) == "B3" and match("TileScan 1/B/3/R12")["field"] == "12"
    assert not match("TileScan 1/B/3/R12_Merged"), "the same pixels again"


def test_params_tell_what_is_wrong():
    for wrong in ({"pattern": ""}, {"pattern": "("}, {"suffixes": ["czi"]}, {"suffixes": []}):
        with pytest.raises(ValueError):
            Params(**wrong)


def scan_scenes(folder, files, monkeypatch):
    """Fields of each file, as the reader finds them in files that have so many tiles per scene; None: it is broken."""
    for name in files:
        (folder / name).touch()

    def describe(path, size, modified):
        if files[path.name] is None:
            raise UnreadableImageError(f"{path.name!r}: damaged")
        return [
            Scene(f"S{i}", (tiles, 1, 1, 1), ["DNA"], [None], [None], True, 0.65, None, [(1.0, 2.0 * t) for t in range(tiles)], {})
            for i, tiles in enumerate(files[path.name])
        ]  # fmt: skip

    monkeypatch.setattr(bioio, "describe", describe)
    text = r"(?P<well>[A-P]\d\d)(_f(?P<field>\d))?(_(?P<channel>[a-z]+))?\.lif"
    found = {name: [] for name in files}
    for image in bioio.scan(folder, Params(suffixes=[".lif"], pattern=text)).images:
        found[image.file].append(image.field)
    return found


def test_tiles_are_counted_over_the_files_of_their_well_and_leave_other_wells_alone(tmp_path, monkeypatch):
    files = {
        "A01_f1.lif": [2],
        "A01_f2.lif": [2],
        "B02_f3.lif": [1],
        "B02_f4.lif": [1],
        "C03_x.lif": [3],
        "C03_y.lif": [1, 2],
    }
    found = scan_scenes(tmp_path, files, monkeypatch)
    assert found == {
        "A01_f1.lif": [1, 2],
        "A01_f2.lif": [3, 4],
        "B02_f3.lif": [3],
        "B02_f4.lif": [4],
        "C03_x.lif": [1, 2, 3],  # channels of the same three
        "C03_y.lif": [1, 2, 3],
    }


def test_a_broken_file_of_tiles_takes_no_other_ones_fields(tmp_path, monkeypatch):
    files = {"A01_f1.lif": [2], "A01_f2.lif": None, "B02_f1.lif": None, "B02_f2.lif": None}
    found = scan_scenes(tmp_path, files, monkeypatch)
    assert list(found.values()) == [[1, 2], [3, 4], [1, 2], [3, 4]]


def test_want_of_memory_says_nothing_of_a_file(tmp_path, monkeypatch):
    (tmp_path / "A01.nd2").write_bytes(b"x")

    def fail(*arguments):
        raise MemoryError("no room")

    monkeypatch.setattr(bioio.nikon, "PACKAGE", "json")
    for name in ("open_file", "describe_scenes"):
        with monkeypatch.context() as patch:
            patch.setattr(bioio.nikon, "open_file", lambda path: None)
            patch.setattr(bioio.nikon, name, fail)
            with pytest.raises(MemoryError):
                bioio.scan(tmp_path, Params(suffixes=[".nd2"]))
        bioio._open.cache_clear()
    with pytest.raises(MemoryError):
        decoded(SourceImage("A01", 1, "DNA", 0, 0, "A01.nd2", 1, 1), fail)


def test_czi_files_read_back(tmp_path):
    # CZI's plugin is under the GPL, so nothing of ours depends on it.
    python = ROOT / "build/czi/bin/python"
    if not python.exists():
        pytest.skip("bioio-czi is not installed; `make czi` does it")
    command = [python, ROOT / "tests/czi.py", tmp_path]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.stdout.endswith("12 equal, 0 not found\n"), found.stderr[-2000:]


@pytest.mark.parametrize("kind", ["nd2", "lif"])
def test_constructed_files_of_nikon_and_leica_become_a_plate(kind, tmp_path):
    python = ROOT / f"build/{kind}/bin/python"
    if not python.exists():
        pytest.skip(f"the package for {kind.upper()} files is not installed; `make {kind}` does it")
    command = [python, ROOT / "tests/microscope_files.py", kind, tmp_path]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr[-3000:]
    said = json.loads(found.stdout.splitlines()[-1])
    assert said["planes"] == 36 and said["followed"] == 72 and said["faults"] == 40
    if kind == "nd2":
        assert said["stopped"] == 6
        assert said["reads"] == [36, 36, 18], (
            "each frame once, though it is asked for by channel, as far as memory goes"
        )
