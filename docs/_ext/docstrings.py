"""Docstrings for the reference: written for a reader of the code, in light Markdown; turned into reStructuredText here.

What is between single backticks becomes code. An indented block that is not a section of Google's style (Args, Raises, …) is a
drawing, a table or a session: it becomes a literal block. Lines "name: what it is", continued with an indent, become a list.
Characters that mean something else in reStructuredText are escaped.

The build ends with a check: every public name of every documented module has an entry.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
import textwrap
from pathlib import Path
from types import ModuleType
from typing import Any, get_origin

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

logger = logging.getLogger(__name__)
_converted: dict[str, list[str]] = {}
PAGES = Path(__file__).parents[1] / "api"

_LONGEST_VALUE = 160  # characters
_SECTION = re.compile(r"^(Args|Arguments|Attributes|Raises|Returns|Yields|Note|Warning|Keyword Args):$")
_ITEM = re.compile(r"^(- |\d+\. )")
_NAME = re.compile(r"^\w[\w, -]*: \S")
_COLUMNS = re.compile(r"\S {2,}\S")
_CODE = re.compile(r"(``[^`]+``|`[^`\n]+`)")


def to_restructured_text(lines: list[str]) -> list[str]:
    """The lines of a docstring, dedented, as reStructuredText."""
    out: list[str] = []
    position = 0
    while position < len(lines):
        block = _block(lines, position)
        position += max(len(block), 1)
        if not block:
            out.append("")
        elif block[0].startswith(" ") and not _continues_item(out):
            out += ["", "::", "", *("    " + line for line in textwrap.dedent("\n".join(block)).splitlines()), ""]
        elif all(_COLUMNS.search(line) for line in block):  # a table of names and words
            out += ["", "::", "", *("    " + line for line in block), ""]
        elif _SECTION.match(block[0]):
            out += ["", *block[:1], *_inline(block[1:])]
        elif _explains_names(block):
            out += ["", *_inline(_as_items(block)), ""]
        else:
            if _ITEM.match(block[0]) and out and out[-1] and not _ITEM.match(out[-1]) and not out[-1].startswith(" "):
                out.append("")
            out += _inline(block)
    return out


def _block(lines: list[str], start: int) -> list[str]:
    """The lines from `start` that belong together: a section with its body, an indented block, an item, or a paragraph."""
    if not lines[start].strip():
        return []
    first, end = lines[start], start + 1
    indented = first.startswith(" ")
    section, continues = _SECTION.match(first), _ITEM.match(first) or _NAME.match(first)
    while end < len(lines):
        line = lines[end]
        if not line.strip():
            following = lines[end + 1] if end + 1 < len(lines) else ""
            if not ((indented or section) and following.startswith(" ")):
                break
        elif indented or section:
            if not line.startswith(" "):
                break
        elif _ITEM.match(line) or _SECTION.match(line) or (line.startswith(" ") and not continues):
            break
        end += 1
    return lines[start:end]


def _explains_names(block: list[str]) -> bool:
    """Whether a block consists of lines "name: what it is", of which some are continued with an indent."""
    return all(_NAME.match(line) or line.startswith(" ") for line in block) and any(line.startswith(" ") for line in block)


def _as_items(lines: list[str]) -> list[str]:
    """Lines with a hanging indent, as a list: each line that is not indented begins an item."""
    return ["  " + line.strip() if line.startswith(" ") else "- " + line for line in lines]


def _continues_item(out: list[str]) -> bool:
    return bool(out) and bool(_ITEM.match(out[-1]))


def _inline(lines: list[str]) -> list[str]:
    """Code spans may go on in the next line, so the lines are taken together."""
    joined = re.sub(r"`([^`\n]+)\n\s*([^`\n]+)`(?=[\s.,;:)]|$)", _joined_span, "\n".join(lines))
    return "".join(_code(part) if part.startswith("`") else _escape(part) for part in _CODE.split(joined)).split("\n")


def _joined_span(match: re.Match[str]) -> str:
    return match[0] if match[1].count("`") or match.string[: match.start()].count("`") % 2 else f"`{match[1]} {match[2]}`"


def _code(span: str) -> str:
    text = span.strip("`").strip()
    return rf"\ ``{text}``\ " if text else ""


def _escape(text: str) -> str:
    text = re.sub(r"([*|\\])", r"\\\1", text)
    return re.sub(r"(?<=\w)_(?!\w)", r"\\_", text)


def _process(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    classes = (type(obj), get_origin(obj))
    if what in ("attribute", "data") and "\n".join(lines).strip() in {inspect.getdoc(one) for one in classes if one}:
        lines.clear()  # the docstring of the value's class, or of the class that an alias stands for, not of the name
    if what == "data" and not any(lines):
        lines[:] = _docstring_of_constant(name)
    lines[:] = to_restructured_text(textwrap.dedent("\n".join(lines)).splitlines())
    if what in ("attribute", "data"):
        _converted[name] = list(lines)


def _plain_aliases(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str | None, returned: str | None
) -> tuple[str, str] | None:
    """Names of `autodoc_type_aliases` as they are; in a union autodoc writes them as its own object."""
    if "TypeAliasForwardRef" not in f"{signature}{returned}":
        return None
    plain = [re.sub(r"TypeAliasForwardRef\('(\w+)'\)", r"\1", text or "") for text in (signature, returned)]
    return plain[0], plain[1]


def _undo_napoleon(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Napoleon takes what stands before a colon in the docstring of a constant or attribute for its type."""
    if name in _converted:
        lines[:] = _converted.pop(name)


def public_names(module: ModuleType) -> list[str]:
    """`__all__`, or what a module without one defines: functions, classes and documented constants without a leading `_`."""
    if hasattr(module, "__all__"):
        return [name for name in module.__all__ if not isinstance(getattr(module, name), ModuleType)]
    constants = [name for scope, name in ModuleAnalyzer.for_module(module.__name__).find_attr_docs() if not scope]
    members = inspect.getmembers(module, lambda member: inspect.isfunction(member) or inspect.isclass(member))
    defined = [name for name, member in members if member.__module__ == module.__name__]
    return [name for name in (*constants, *defined) if not name.startswith("_")]


def documented_modules() -> list[str]:
    """The modules that the pages of the reference name, in their order."""
    return [name for page in sorted(PAGES.glob("*.md")) for name in re.findall(r"public-module:: (\S+)", page.read_text())]


def owner(module: str, value: Any) -> str:
    """The documented module under which a name has its entry: the closest one to where it is defined."""
    defined_in = getattr(value, "__module__", None) if inspect.isclass(value) or inspect.isfunction(value) else None
    if not defined_in:
        return module
    rooms = [name for name in documented_modules() if name != "m3dt_agent"]  # the package's own face only hands on
    above = [name for name in rooms if defined_in == name or defined_in.startswith(name + ".")]
    return max(above, key=len, default=module)


class PublicModule(SphinxDirective):
    """`public-module MODULE`: its docstring, an entry for each public name, a link where the entry is on another page."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        name = self.arguments[0]
        module = importlib.import_module(name)
        self.env.note_dependency(str(inspect.getsourcefile(module)))
        lines = [f".. automodule:: {name}", "   :no-members:", ""]
        elsewhere = []
        for public in public_names(module):
            value = getattr(module, public)
            home = owner(name, value)
            if home == name:
                lines += [f".. {_directive(value)}:: {name}.{public}", *_with_hidden_bases(value, module), ""]
            else:
                elsewhere.append(f":py:obj:`{public} <{home}.{public}>`")
        if elsewhere:
            lines += ["Handed on from other modules: " + ", ".join(elsewhere) + ".", ""]
        return self.parse_text_to_nodes("\n".join(lines))


def _with_hidden_bases(value: Any, module: ModuleType) -> list[str]:
    """The option that adds the members of bases which have no entry of their own, such as the acting half of an agent."""
    if not inspect.isclass(value):
        return []
    ours = [base for base in value.__mro__[1:] if base.__module__.startswith("m3dt_agent.")]
    hidden = [base for base in ours if not hasattr(module, base.__name__)]
    others = {base.__name__ for base in value.__mro__[1:] if base not in hidden}
    return [f"   :inherited-members: {', '.join(sorted(others))}"] if hidden else []


def _directive(value: Any) -> str:
    if inspect.isclass(value):
        return "autoexception" if issubclass(value, BaseException) else "autoclass"
    return "autofunction" if inspect.isfunction(value) else "autodata"


def _docstring_of_constant(name: str) -> list[str]:
    """The string under a constant, found in the module that assigns it."""
    module, _, constant = name.rpartition(".")
    value = getattr(importlib.import_module(module), constant, None)
    for other in [name for name in sys.modules if name == module or name.startswith(module + ".")]:
        if getattr(sys.modules[other], constant, None) is value and value is not None:
            found = ModuleAnalyzer.for_module(other).find_attr_docs().get(("", constant))
            if found:
                return list(found)
    return []


def _resolve(app: Sphinx, env: Any, node: nodes.Element, contnode: nodes.TextElement) -> nodes.Node | None:
    """A type is written with the module that defines it; its entry stands under the module that hands it on."""
    target = node["reftarget"]
    if node.get("refdomain") != "py" or not target.startswith("m3dt_agent."):
        return None
    name = target.rpartition(".")[2]
    domain = env.get_domain("py")
    entries = [entry for entry in domain.objects if entry.rpartition(".")[2] == name]
    if len(entries) != 1:
        return None
    return domain.resolve_xref(env, node.get("refdoc", ""), app.builder, "obj", entries[0], node, contnode)


def _check_complete(app: Sphinx, env: Any) -> None:
    """Warns of every public name that has no entry; with `-W` the build fails."""
    objects = env.get_domain("py").objects
    for name in documented_modules():
        module = importlib.import_module(name)
        for public in public_names(module):
            if f"{owner(name, getattr(module, public))}.{public}" not in objects:
                logger.warning("the reference has no entry for %s.%s", name, public)


def _shorten_values(_: Sphinx, document: nodes.document) -> None:
    """Cuts the value of a constant that would fill the page, as that of the table of all tasks would."""
    for signature in document.findall(addnodes.desc_signature):
        for value in list(signature.findall(addnodes.desc_annotation)):
            if value.astext().lstrip().startswith("=") and len(value.astext()) > _LONGEST_VALUE:
                value.parent.remove(value)


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("public-module", PublicModule)
    app.connect("autodoc-process-docstring", _process, priority=100)  # before napoleon
    app.connect("autodoc-process-docstring", _undo_napoleon, priority=900)
    app.connect("autodoc-process-signature", _plain_aliases)
    app.connect("doctree-read", _shorten_values)
    app.connect("missing-reference", _resolve)
    app.connect("env-check-consistency", _check_complete)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
