"""How long `plateloom status` takes: `python benchmarks/status.py [PLATES …]`.

Plates of 384 wells as in benchmarks/dag.py, of one file a well or, with --full, 17,280 files, with the records of a screen that is finished, written by hand. Prints a table in Markdown.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

WELLS = [f"{row}{column:02d}" for row in "ABCDEFGHIJKLMNOP" for column in range(1, 25)]
TIMES = 5


def main():
    """Measure and print."""
    from dag import make_screen

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("plates", nargs="*", type=int, default=[1, 100, 400])
    parser.add_argument("--parts", type=int, default=1)
    parser.add_argument("--full", action="store_true", help="9 fields, 5 channels")
    parser.add_argument("--sources", action="store_true", help="list every file, as before the first run")
    options = parser.parse_args()
    print("| plates | parts | records | plateloom status [s] | of it CPU [s] |\n|---|---|---|---|---|")
    for plates in options.plates:
        with tempfile.TemporaryDirectory() as folder:
            make_screen(Path(folder), plates, options.parts, full=options.full)
            records = write_records(Path(folder))
            seconds, busy = zip(*(look(folder, plates, options.sources) for _ in range(TIMES)), strict=True)
        print(f"| {plates} | {options.parts} | {records:,} | {min(seconds):.1f} | {min(busy):.1f} |", flush=True)


def write_records(folder):
    """Records of all stages, done; returns their number."""
    from plateloom.config import read_config
    from plateloom.planning import SOURCES, STAGES, Screen
    from plateloom.store.provenance import digest, write_json

    for source in (folder / "raw").iterdir():
        os.utime(source, (1e9, 1e9))  # nobody has written to it for long
    screen = Screen(read_config(folder).model_dump(mode="json"), folder)
    parts, count = screen.config.parts, 0
    for stage in screen.stages():
        scope = STAGES[stage].scope
        for plate in [None] if scope == "screen" else screen.plates:
            settings = digest(screen.recorded_settings(stage, plate))
            for part, path in enumerate(screen.records(stage, plate)):
                record = {
                    "stage": stage,
                    "status": "done",
                    "reason": "",
                    "attempts": 1,
                    "artefacts": dict.fromkeys(WELLS, digest(stage)) if scope == "part" else {stage: digest(stage)},
                    "failures": [],
                    "facts": {"listing": screen.listing(plate, part)} if stage == "conversion" else {},
                    "parts": parts if scope == "part" else None,
                    "settings": settings,
                    "code": screen.code(stage),
                    "seconds": 60.0,
                    "log": f"logs/{stage}.log",
                }
                write_json(folder / path, record)
                count += 1
    write_json(folder / SOURCES, screen.remember_sources())
    return count


def look(folder, plates, sources):
    """Seconds that the command takes, and of them those of its processor."""
    command = [
        sys.executable,
        "-c",
        "from plateloom.cli import main; main()",
        "status",
        folder,
        *["--sources"] * sources,
    ]
    before, started = os.times(), time.perf_counter()
    found = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout
    seconds, after = time.perf_counter() - started, os.times()
    if f"{plates} of {plates} plates complete" not in found:
        raise SystemExit(found)
    return seconds, sum(after[2:4]) - sum(before[2:4])


if __name__ == "__main__":
    main()
