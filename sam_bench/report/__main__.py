"""python -m sam_bench.report FOLDER ...: a page, tables and figures of the finished runs in each folder.

Writes index.html, table.md, table.tex, table.csv and figures/ into the folder. A folder that holds folders of runs,
such as experiments/, gets a page of each and an index.html that links them.
"""

import argparse
import sys
from pathlib import Path

from sam_bench import files
from sam_bench.errors import SettingError
from sam_bench.report import tables
from sam_bench.report.cells import collect, panels, runs_in


def experiments_in(folder: Path) -> list[Path]:
    """The folders of runs in a folder of experiments; none if it has runs itself."""
    return [] if runs_in(folder) else [each for each in sorted(folder.glob("*/")) if runs_in(each)]


def main(arguments: list[str]) -> None:
    """Build the pages and print the tables."""
    parser = argparse.ArgumentParser(
        prog="python -m sam_bench.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "folders", nargs="*", type=Path, default=[Path("runs")], help="folders of runs or experiments (default: runs)"
    )
    parser.add_argument("--table", action="store_true", help="only print the tables in Markdown, write nothing")
    given = parser.parse_args(arguments)
    folders, failed = list(dict.fromkeys(given.folders)), False
    try:
        if given.table:
            every = [inside for folder in folders for inside in experiments_in(folder) or [folder]]
            print(tables.markdown([tables.table(panel) for panel in panels(collect(every))]))
            return
        from sam_bench.report.page import build, index  # matplotlib takes a second

        print("drawing figures, about ten seconds per table", flush=True)
        for folder in folders:
            inside, pages = experiments_in(folder), []
            for each in inside or [folder]:
                try:
                    pages.append(build(collect([each]), each, "../index.html" if inside else None))
                except SettingError as error:  # the other folders get their pages
                    print(f"error: {error}", file=sys.stderr)
                    failed = True
                    continue
                print(f"{each / 'index.html'}: {pages[-1].runs} runs of {pages[-1].cells} cells", flush=True)
            if inside and pages:
                files.replace(folder / "index.html", index(pages))
                print(folder / "index.html")
    except SettingError as error:
        print(f"error: {error}", file=sys.stderr)
        failed = True
    if failed:
        sys.exit(2)


if __name__ == "__main__":
    main(sys.argv[1:])
