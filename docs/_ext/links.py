"""Links to Markdown files outside docs/: to the page that includes the file, or to a copy of the file.

The pages are also read on GitHub, so they link to files as they lie in the repository.
"""

from __future__ import annotations

import os
from pathlib import Path

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx

ROOT = Path(__file__).parents[2]
INCLUDED = {
    "CHANGELOG.md": "changelog",
    "CONTRIBUTING.md": "contributing",
    "benchmarks/pretrained.md": "pretrained",
    "examples/cluster.md": "cluster",
}
"""File of the repository → the page that includes it."""


def _point_to_pages(app: Sphinx, doctree: nodes.document) -> None:
    for node in list(doctree.findall(addnodes.pending_xref)):
        if node.get("reftype") != "myst":
            continue
        file = _file(node["reftarget"], app.srcdir)
        if file is None:
            continue
        page = INCLUDED.get(file.relative_to(ROOT).as_posix())
        if page is not None:
            node["refdomain"], node["reftarget"], node["reftargetid"] = "doc", page, node.get("reftargetid")
        elif not file.is_relative_to(app.srcdir):
            folder = Path(app.env.doc2path(app.env.docname)).parent
            copy = addnodes.download_reference(
                "", "", *node.children, reftarget=os.path.relpath(file, folder), refdoc=app.env.docname
            )
            node.replace_self(copy)


def _file(target: str, docs: str | os.PathLike[str]) -> Path | None:
    """The file of the repository that a link names: as a path without suffix, or as written in an included file."""
    name = target if target.endswith(".md") else target + ".md"
    for base in (Path(docs), ROOT, *((ROOT / included).parent for included in INCLUDED)):
        file = (base / name.partition("#")[0]).resolve()
        if file.exists() and file.is_relative_to(ROOT):
            return file
    return None


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("doctree-read", _point_to_pages, priority=100)  # before the copies are collected
    return {"parallel_read_safe": True, "parallel_write_safe": True}
