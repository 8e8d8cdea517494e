"""Make a screen of BBBC013: `prepare.py SOURCE SCREEN`; the images stay where they are."""

import shutil
import sys
from pathlib import Path

HERE = Path(__file__).parent


def main(source, screen):
    """Copy config and plate map, and write plates.tsv that points to the images."""
    screen.mkdir(parents=True, exist_ok=True)
    for name in ("config.yaml", "plate_map.tsv"):
        shutil.copyfile(HERE / name, screen / name)
    lines = ["plate\tsource\treader\tplate_map\tbatch", f"BBBC013\t{source.resolve()}\tpattern\tplate_map.tsv\tbatch1"]
    (screen / "plates.tsv").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
