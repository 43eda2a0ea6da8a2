"""The site: `make docs` builds it into docs/_build/html. Warnings are errors."""

import inspect
import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from sphinx.util.inspect import stringify_signature

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

project = "sam_bench"
author = "The sam_bench authors"
project_copyright = f"2026, {author}"
try:
    release = metadata.version("sam_bench")
except metadata.PackageNotFoundError:  # it is run from the checkout
    release = "development version"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
highlight_language = "text"
suppress_warnings = ["config.cache", "misc.highlighting_failure"]

autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "mixed"
add_module_names = False
default_role = "code"
napoleon_google_docstring = True
napoleon_use_rtype = False

html_theme = "furo"
html_title = "sam_bench"
html_static_path = ["_static"]
html_css_files = ["site.css"]


def formulas(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Show the indented formulas and tables of a module's docstring as they are written."""
    lines[:] = [line if line.startswith("    ") else line.replace("|", "\\|") for line in lines]
    for i in range(len(lines) - 1, 0, -1):
        starts = lines[i].startswith("    ") and not lines[i - 1].strip()
        if what == "module" and starts and not _is_indented(lines, i - 1):
            lines[i:i] = ["::", ""]


def _is_indented(lines: list[str], i: int) -> bool:
    """Whether the last line with text up to i is indented."""
    above = [line for line in lines[: i + 1] if line.strip()]
    return bool(above) and above[-1].startswith("    ")


def copy_pages(app: Any, error: Exception | None) -> None:
    """Put the pages of the experiments beside those of the site."""
    if error is None and app.builder.name == "html":
        pages = ROOT / "experiments"
        for file in [*pages.glob("index.html"), *pages.glob("*/index.html"), *pages.glob("*/table.*")]:
            copy = Path(app.outdir, "experiments", file.relative_to(pages))
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, copy)
        for figures in pages.glob("*/figures"):
            to = Path(app.outdir, "experiments", figures.relative_to(pages))
            shutil.copytree(figures, to, dirs_exist_ok=True)


def list_methods(app: Any) -> None:
    """Write api/methods.md: the methods of `sam_bench.optim`, and at the end the class that they share."""
    from sam_bench import optim

    classes = [each for each in vars(optim).values() if isinstance(each, type) and issubclass(each, optim.Descent)]
    classes.sort(key=lambda each: (each is optim.Descent, each.__name__.lower()))
    parts = ["# Methods"]
    for each in classes:
        members = "members" if each is optim.Descent else "no-members"
        lines = [f".. automodule:: {each.__module__}", "   :no-members:", ""]
        lines += [f".. autoclass:: sam_bench.optim.{each.__name__}", f"   :{members}:"]
        parts.append("\n".join([f"## {each.__name__}", "", "```{eval-rst}", *lines, "```"]))
    (ROOT / "docs" / "api" / "methods.md").write_text("\n\n".join(parts) + "\n")


def constructor(
    app: Any, what: str, name: str, obj: Any, options: Any, signature: str, returns: str
) -> tuple[str, str] | None:
    """Show the signature of `__init__`, not that of `__new__`, which only refuses calls of other packages."""
    from sam_bench.optim import Descent

    if what != "class" or not issubclass(obj, Descent):
        return None
    found = inspect.signature(obj.__init__)
    found = found.replace(parameters=list(found.parameters.values())[1:], return_annotation=inspect.Signature.empty)
    return stringify_signature(found, unqualified_typehints=True), ""


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("builder-inited", list_methods)
    app.connect("autodoc-process-docstring", formulas)
    app.connect("autodoc-process-signature", constructor)
    app.connect("build-finished", copy_pages)
