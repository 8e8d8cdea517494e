"""Where the benchmarks' sections go: docs/benchmarks.md, each between its own two marks."""

from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
LAST = "## Not measured yet"


def write_section(script, text):
    """Put `text` between the marks of the benchmark `script` (its path); a new section goes before `LAST`."""
    begin, end = (f"<!-- {word}: printed by benchmarks/{Path(script).name} -->\n" for word in ("Begin", "End"))
    page, block = PAGE.read_text(), f"{begin}{text.rstrip()}\n{end}"
    before, found, after = page.partition(begin)
    if found:
        after = after.split(end)[1]
    else:
        before, *after = page.partition(LAST)
        after = "\n" + "".join(after)
    PAGE.write_text(before + block + after)
