"""The one loop that all stages share: skipping, bounded flight, faults, locks."""

import fcntl
import json
import multiprocessing
import os
import subprocess
import sys

import pandas as pd
import pytest
from conftest import ROOT

from plateloom.engine import locks, parts
from plateloom.engine.cluster import open_cluster
from plateloom.errors import LockedError, UnreadableImageError
from plateloom.store.provenance import recipe
from plateloom.store.tables import read_record


@pytest.fixture(autouse=True)
def in_threads(monkeypatch, tmp_path):
    """Jobs of these tests run on threads, in a folder of their own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        parts, "EXECUTION", parts.Execution(threads=2, cluster={"kind": "threads", "tasks_per_worker": 2})
    )


def double(value):
    return 2 * value


def fail_on(value, bad, error):
    if value == bad:
        raise error
    return value


def unit(tmp_path, name, parameters=None, task=(double, 21)):
    made = recipe("toy", parameters=parameters or {}, code="c", inputs={})

    def work():
        (found,) = yield [task]
        return parts.Outcome(pd.DataFrame({"value": [found]}))

    return parts.Unit(name, tmp_path / f"{name}.parquet", made, work)


def run(tmp_path, units, **options):
    return parts.run_job("toy", record=tmp_path / "record.json", plan=lambda _: units, code="c", **options)


def test_a_second_run_makes_nothing(tmp_path):
    first = run(tmp_path, [unit(tmp_path, name) for name in ("A01", "A02")])
    second = run(tmp_path, [unit(tmp_path, name) for name in ("A01", "A02")])
    assert (first["computed"], first["kept"]) == (["A01", "A02"], [])
    assert (second["computed"], second["kept"]) == ([], ["A01", "A02"])
    assert first["artefacts"] == second["artefacts"]


def test_another_parameter_makes_another_artefact(tmp_path):
    run(tmp_path, [unit(tmp_path, "A01"), unit(tmp_path, "A02")])
    again = run(tmp_path, [unit(tmp_path, "A01", {"sigma": 2}), unit(tmp_path, "A02")])
    assert again["computed"] == ["A01"]
    assert read_record(tmp_path / "A01.parquet")["parameters"] == {"sigma": 2}


def test_failures_and_facts_survive_in_what_is_kept(tmp_path):
    made = recipe("toy", parameters={}, code="c", inputs={})
    failure = {"well": "A01", "reason": "A01_s1.tif: truncated"}

    def work():
        yield []
        return parts.Outcome(pd.DataFrame({"value": [0]}), [failure], facts={"device": "cpu"})

    for _ in range(2):
        record = run(tmp_path, [parts.Unit("A01", tmp_path / "A01.parquet", made, work)])
        assert record["failures"] == [failure] and record["facts"] == {"device": "cpu"}
    assert record["kept"] == ["A01"]


def test_a_data_fault_in_a_task_fails_the_part_without_an_exception(tmp_path):
    bad = (fail_on, 1, 1, UnreadableImageError("the shard is missing"))
    record = run(tmp_path, [unit(tmp_path, "A01"), unit(tmp_path, "B01", task=bad)])
    assert record["status"] == "failed" and record["reason"] == "the shard is missing"


def test_an_artefact_that_is_being_remade_vouches_for_nothing(tmp_path):
    run(tmp_path, [unit(tmp_path, "A01")])
    broken = (fail_on, 1, 1, OSError("stale file handle"))
    with pytest.raises(OSError, match="stale"):
        run(tmp_path, [unit(tmp_path, "A01", {"sigma": 2}, task=broken)])
    assert not (tmp_path / "A01.parquet").exists()


def test_the_next_attempt_removes_what_a_killed_one_was_writing(tmp_path):
    units = [unit(tmp_path, "A01"), unit(tmp_path, "A02")]
    broken = (fail_on, 1, 1, OSError("stale file handle"))
    with pytest.raises(OSError, match="stale"):
        run(tmp_path, [units[0], unit(tmp_path, "A02", task=broken)])
    left = [tmp_path / f".{name}.r9w__9gi" for name in ("record.json", "A01.parquet", "A02.parquet")]
    other = tmp_path / ".B01.parquet.r9w__9gi"  # of another part
    held = tmp_path / ".A01.parquet.aaaabbbb"
    for path in (*left, other, held):
        path.write_bytes(b"half")
    with open(held, "r+b") as writer:
        fcntl.flock(writer, fcntl.LOCK_EX)
        record = run(tmp_path, units)
    assert record["status"] == "done" and record["attempts"] == 2
    assert not [path for path in left if path.exists()]
    assert other.exists() and held.exists(), "somebody may be writing them"


def test_an_infrastructure_fault_fails_the_job_and_keeps_what_was_made(tmp_path):
    broken = (fail_on, 1, 1, OSError("stale file handle"))
    units = [unit(tmp_path, "A01"), unit(tmp_path, "A02"), unit(tmp_path, "B01", task=broken)]
    with pytest.raises(OSError, match="stale file handle"):
        run(tmp_path, units)
    assert not (tmp_path / "record.json").exists()
    mended = run(tmp_path, [unit(tmp_path, name) for name in ("A01", "A02", "B01")])
    assert "B01" in mended["computed"] and mended["attempts"] == 2
    assert set(mended["computed"]) | set(mended["kept"]) == {"A01", "A02", "B01"}


def test_a_fault_upstream_travels_down_as_skipped(tmp_path):
    above = tmp_path / "above.json"
    above.write_text(json.dumps({"stage": "conversion", "status": "failed", "reason": "9 of 10 fields failed"}))
    record = run(tmp_path, [], upstream={"converted": above})
    assert record["status"] == "skipped"
    assert record["reason"] == "conversion failed: 9 of 10 fields failed"
    record = parts.run_job(
        "next", record=tmp_path / "next.json", plan=list, code="c", upstream={"above": tmp_path / "record.json"}
    )
    assert record["reason"] == "conversion failed: 9 of 10 fields failed"


def test_tasks_in_flight_are_bounded_over_all_units_and_phases():
    seen = {}

    def work(name):
        first = yield ((double, i) for i in range(10))
        second = yield [(double, value) for value in first]
        return second

    with open_cluster(threads=2, kind="threads", tasks_per_worker=3) as cluster:
        cluster.run(((name, work(name)) for name in "abc"), finished=lambda name, value: seen.update({name: value}))
        assert cluster.peak_in_flight == 6
    assert seen == {name: [4 * i for i in range(10)] for name in "abc"}
    assert cluster.tasks == 60


def test_no_cluster_is_started_where_there_is_no_task():
    def work():
        yield []
        return 1

    with open_cluster(threads=2) as cluster:
        cluster.run([("a", work())], finished=lambda name, value: None)
        cluster.observe()
        assert "client" not in cluster.__dict__


def hold_until(path, started, stop, lock):
    fcntl.flock = getattr(fcntl, lock)
    with locks.hold(path, wait=True):
        started.set()
        stop.wait(20)


@pytest.mark.parametrize("lock", ["flock", "lockf"])
def test_a_lock_names_its_holder_and_dies_with_it(lock, tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", getattr(fcntl, lock))  # NFS has lockf under the name of flock
    context = multiprocessing.get_context("spawn")
    started, stop = context.Event(), context.Event()
    holder = context.Process(target=hold_until, args=(tmp_path / "lock", started, stop, lock))
    holder.start()
    assert started.wait(20)
    assert locks.is_held(tmp_path / "lock")
    with pytest.raises(LockedError, match=f"process {holder.pid}"), locks.hold(tmp_path / "lock", wait=False):
        pass
    holder.kill()
    holder.join()
    assert not locks.is_held(tmp_path / "lock")
    with locks.hold(tmp_path / "lock", wait=False) as held:
        assert held.previous["process"] == holder.pid


def test_no_column_of_a_table_is_asked_for_its_size():
    """Dask would, of thousands of them, before it sends the table: a third of the time of measuring a field."""
    from dask.sizeof import sizeof

    class Table(pd.DataFrame):
        pass

    asked, found = [], {}
    sizeof.register(Table, lambda table: asked.append(table) or 1)
    table = Table({"a": [1.0, 2.0]})

    def work():
        return (yield [(lambda: table,)])

    with open_cluster(threads=1, kind="threads") as cluster:
        assert sizeof(table) == 1 and asked.pop() is table
        cluster.run([("a", work())], finished=lambda name, value: found.update({name: value}))
    assert len(found["a"]) == 1 and found["a"][0].equals(table)
    assert not asked


def test_the_record_names_workers_tasks_and_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "EXECUTION", parts.Execution(threads=2))
    record = run(tmp_path, [unit(tmp_path, name) for name in ("A01", "A02", "A03")])
    assert len(record["cluster"]["workers"]) == 2
    assert record["cluster"]["tasks"] == 3 and 1 <= record["cluster"]["peak_in_flight"] <= 4
    assert record["cluster"]["worker_peak_mb"] > 10 and record["memory_mb"] > 10
    assert record["host"] and record["versions"]["zarr"] and record["seconds"] >= 0


def test_wells_that_vanish_lose_their_artefacts(tmp_path):
    names = ["A01", "A02"]
    remove = parts.remover(tmp_path, part=0, parts=1)
    run(tmp_path, [unit(tmp_path, name) for name in names], remove=remove)
    record = run(tmp_path, [unit(tmp_path, "A01")], remove=remove)
    assert record["removed"] == ["A02"] and not (tmp_path / "A02.parquet").exists()


def test_execution_never_enters_a_fingerprint(tmp_path, monkeypatch):
    one = run(tmp_path, [unit(tmp_path, "A01")])
    monkeypatch.setattr(parts, "EXECUTION", parts.Execution(threads=1, cluster={"kind": "threads"}, tile_px=64))
    two = run(tmp_path, [unit(tmp_path, "A01")])
    assert two["kept"] == ["A01"] and one["artefacts"] == two["artefacts"]


@pytest.mark.parametrize("given, found", [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_of_a_job_that_wait_leave_the_cores_to_others_unless_told_otherwise(given, found):
    program = """import os, types
from plateloom.engine import parts
parts.start_job(types.SimpleNamespace(log=["log"], threads=1, resources={}, config={}))
print(os.environ["OMP_WAIT_POLICY"])"""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment |= {"OMP_WAIT_POLICY": given} if given else {}
    environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == found
