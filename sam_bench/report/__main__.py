"""python -m sam_bench.report FOLDER ...: a page, tables and figures of the finished runs in each folder.

Writes index.html, table.md, table.tex, table.csv and figures/ into the folder. Several folders also get a page that
links them, in the folder that holds them.
"""

import argparse
import os
import sys
from pathlib import Path

from sam_bench.errors import SettingError
from sam_bench.report import tables
from sam_bench.report.cells import collect, panels


def main(arguments: list[str]) -> None:
    """Build the pages and print the tables."""
    parser = argparse.ArgumentParser(
        prog="python -m sam_bench.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "folders", nargs="*", type=Path, default=[Path("runs")], help="of runs or of an experiment (runs)"
    )
    parser.add_argument("--table", action="store_true", help="only print the tables in Markdown, write nothing")
    given = parser.parse_args(arguments)
    try:
        if given.table:
            print(tables.markdown([tables.table(panel) for panel in panels(collect(given.folders))]))
            return
        from sam_bench.report.page import build, build_index  # matplotlib takes a second

        folders = list(dict.fromkeys(given.folders))
        parent = Path(os.path.commonpath([folder.resolve().parent for folder in folders]))
        pages = []
        for folder in folders:
            if len(folders) > 1 and not any(folder.rglob("result.json")):
                print(f"{folder}: no finished run, no page", file=sys.stderr)
                continue
            index = os.path.relpath(parent / "index.html", folder.resolve()) if len(folders) > 1 else None
            pages.append(build(collect([folder]), folder, index))
            print(f"{folder / 'index.html'}: {pages[-1].runs} runs of {pages[-1].cells} settings")
        if len(folders) > 1:
            build_index(pages, parent)
            print(parent / "index.html")
    except SettingError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main(sys.argv[1:])
