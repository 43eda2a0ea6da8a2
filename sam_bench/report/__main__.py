"""python -m sam_bench.report FOLDER ...: a page, tables and figures of the finished runs in each folder.

Writes index.html, table.md, table.tex, table.csv and figures/ into the folder. A folder that holds folders of runs,
such as experiments/, gets a page of each and an index.html that links them.
"""

import argparse
import sys
from pathlib import Path

from sam_bench.errors import SettingError
from sam_bench.report import tables
from sam_bench.report.cells import collect, panels, runs_in


def main(arguments: list[str]) -> None:
    """Build the pages and print the tables."""
    parser = argparse.ArgumentParser(
        prog="python -m sam_bench.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "folders", nargs="*", type=Path, default=[Path("runs")], help="of runs, or of experiments (runs)"
    )
    parser.add_argument("--table", action="store_true", help="only print the tables in Markdown, write nothing")
    given = parser.parse_args(arguments)
    try:
        if given.table:
            print(tables.markdown([tables.table(panel) for panel in panels(collect(given.folders))]))
            return
        from sam_bench.report.page import build, build_index  # matplotlib takes a second

        for folder in dict.fromkeys(given.folders):
            inside = [each for each in sorted(folder.glob("*/")) if not runs_in(folder) and runs_in(each)]
            pages = []
            for each in inside or [folder]:
                pages.append(build(collect([each]), each, "../index.html" if inside else None))
                print(f"{each / 'index.html'}: {pages[-1].runs} runs of {pages[-1].cells} settings", flush=True)
            if inside:
                build_index(pages, folder)
                print(folder / "index.html")
    except SettingError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main(sys.argv[1:])
