"""Fingerprints, layout and tables."""

import fcntl
import os
import time

import numpy as np
import pandas as pd
import pytest

from plateloom import wells
from plateloom.errors import ModelMismatchError
from plateloom.store import layout, provenance, tables


def test_a_recipe_does_not_depend_on_the_order_of_its_parameters():
    one = provenance.recipe("s", parameters={"a": 1, "b": 2}, code="c", inputs={})
    two = provenance.recipe("s", parameters={"b": 2, "a": 1}, code="c", inputs={})
    three = provenance.recipe("s", parameters={"b": 2, "a": 1}, code="d", inputs={})
    assert one["fingerprint"] == two["fingerprint"] != three["fingerprint"]


def code_of(tmp_path, text):
    path = tmp_path / "stage.py"
    path.write_text(text)
    provenance._read_module.cache_clear()
    return provenance.code_digest(str(path))


def test_comments_docstrings_and_layout_are_no_change_of_code(tmp_path):
    plain = code_of(tmp_path, "def f(x):\n    return x + 1\n")
    dressed = code_of(tmp_path, '"""Doc."""\n\n# why\ndef f(x):\n    """More."""\n    return (x\n            + 1)\n')
    other = code_of(tmp_path, "def f(x):\n    return x + 2\n")
    assert plain == dressed != other


def test_what_is_known_of_modules_is_kept_for_the_next_process_and_a_cache_that_fails_costs_nothing(
    tmp_path, monkeypatch
):
    def digest_again(base):
        monkeypatch.setenv("XDG_CACHE_HOME", str(base))
        for function in (provenance._cache_file, provenance._known_modules, provenance._read_module):
            function.cache_clear()
        return provenance.code_digest("plateloom.store.tables")

    first = digest_again(tmp_path)
    (kept,) = tmp_path.glob("plateloom/modules-*.json")
    monkeypatch.setattr(provenance, "_digest_module", lambda data: pytest.fail("it was known"))
    assert digest_again(tmp_path) == first
    monkeypatch.undo()
    kept.write_text("[]")
    assert digest_again(tmp_path) == first
    (tmp_path / "file").touch()
    assert digest_again(tmp_path / "file") == first
    for function in (provenance._cache_file, provenance._known_modules, provenance._read_module):
        function.cache_clear()


def test_code_is_followed_through_imports_also_inside_functions():
    direct = provenance.code_digest("plateloom.store.layout")
    through = provenance.code_digest("plateloom.stages.conversion")
    assert direct != through
    name, imported = provenance._read_module("plateloom.stages.conversion")
    assert "plateloom.store.layout" in imported and "plateloom.readers" in imported


def test_json_is_there_whole_or_not_at_all(tmp_path):
    provenance.write_json(tmp_path / "a.json", {"x": 1})
    with pytest.raises(TypeError):
        provenance.write_json(tmp_path / "a.json", {"x": object()})
    assert provenance.read_json(tmp_path / "a.json") == {"x": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    (tmp_path / "cut.json").write_text('{"x": ')
    assert provenance.read_json(tmp_path / "cut.json") is None


def test_a_writer_removes_what_a_killed_one_has_left_and_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    names = {"killed": ".a.json.abcdefgh", "young": ".a.json.ijklmnop", "other": ".b.json.abcdefgh", "own": ".a.json"}
    for what, name in names.items():
        (tmp_path / name).write_bytes(b"half")
        age = 1800 if what == "young" else 4000
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    with provenance.replacing(path) as file:
        (held,) = {found.name for found in tmp_path.iterdir()} - set(names.values())
        os.utime(tmp_path / held, (1, 1))
        provenance.write_json(path, {"x": 1})  # another process at the same time
        file.write(b"{}")
    assert provenance.read_json(path) == {}
    left = {found.name for found in tmp_path.iterdir()} - {"a.json"}
    assert left == set(names.values()) - {names["killed"]}


def test_what_is_left_goes_also_where_only_files_open_for_writing_can_be_locked(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", fcntl.lockf)  # as NFS does it
    left = tmp_path / ".a.json.abcdefgh"
    left.write_bytes(b"half")
    os.utime(left, (1, 1))
    provenance.write_json(tmp_path / "a.json", {})
    assert not left.exists()


def test_a_model_of_the_user_that_is_replaced_meanwhile_is_found_out(tmp_path):
    path = tmp_path / "own.safetensors"
    path.write_bytes(b"one")
    weights = {str(path): provenance.digest_large(path)}
    provenance.check_weights({})
    provenance.check_weights(weights)
    kept = path.stat()
    provenance.write_bytes(path, b"two")
    os.utime(path, ns=(kept.st_atime_ns, kept.st_mtime_ns))
    with pytest.raises(ModelMismatchError, match="own.safetensors' was altered"):
        provenance.check_weights(weights)
    path.unlink()
    with pytest.raises(ModelMismatchError, match="or is gone"):
        provenance.check_weights(weights)


@pytest.mark.parametrize("text", ["A1", "a01", "A-01", "A_1", " A01 "])
def test_a_well_has_one_spelling(text):
    assert wells.well_name(*wells.parse_well(text)) == "A01"


@pytest.mark.parametrize("text", ["A0", "1A", "A49", "AG01", "", "A001x"])
def test_what_is_no_well_is_refused(text):
    with pytest.raises(ValueError, match=r"well|1536"):
        wells.parse_well(text)


def test_every_well_of_a_1536_well_plate_reads_back():
    for row in range(32):
        for column in range(48):
            assert wells.parse_well(wells.well_name(row, column)) == (row, column)


def test_parts_are_even_for_rows_for_columns_and_for_whole_plates():
    names = [wells.well_name(row, column) for row in range(16) for column in range(24)]
    for chosen in (names, names[:24], names[::24]):
        sizes = np.bincount([layout.part_of(well, 8) for well in chosen], minlength=8)
        assert sizes.max() - sizes.min() <= 1


def test_the_same_table_and_record_give_the_same_bytes(tmp_path):
    table = pd.DataFrame({"Metadata_Well": ["A01", "A01"], "x": [1.0, np.nan]})
    for name in ("one", "two"):
        tables.write_table(tmp_path / f"{name}.parquet", table, {"fingerprint": "f"})
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "two.parquet").read_bytes()
    assert tables.read_record(tmp_path / "one.parquet") == {"fingerprint": "f"}
    pd.testing.assert_frame_equal(tables.read_table(tmp_path / "one.parquet"), table)


def test_a_cut_table_has_no_record(tmp_path):
    tables.write_table(tmp_path / "a.parquet", pd.DataFrame({"x": [1]}), {"fingerprint": "f"})
    data = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(data[:-20])
    assert tables.read_record(tmp_path / "a.parquet") is None
    assert tables.read_record(tmp_path / "none.parquet") is None
