"""Put the table of benchmarks/results.json into the README.

topa bench --out benchmarks/results.json
python benchmarks/table.py
"""

from __future__ import annotations

from pathlib import Path

from topa.bench.run import make_table
from topa.runs import read_json, write_text

START, END = "<!-- topa bench -->\n", "<!-- /topa bench -->"


def main() -> None:
    """Replace what stands between the two marks."""
    root = Path(__file__).parents[1]
    readme = root / "README.md"
    before, start, rest = readme.read_text(encoding="utf-8").partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise SystemExit(f"README.md has no {START.strip()} ... {END}")
    table = make_table(read_json(root / "benchmarks" / "results.json"))
    write_text(readme, before + start + table + end + after)


if __name__ == "__main__":
    main()
