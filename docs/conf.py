"""How the site is made: `sphinx-build -W docs docs/_build`. It needs no network."""

import dataclasses
import itertools
import re
from collections.abc import Iterable
from importlib import metadata
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.domains.python import PyObject, PythonDomain
from sphinx.util.nodes import make_refnode

import resilience
from resilience import aio, testing
from resilience.providers import deepgram

project = "resilience"
author = "The resilience-failover developers"
release = metadata.version("resilience-failover")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
default_role = "code"
myst_heading_anchors = 3

autoclass_content = "both"  # the class, and the arguments of its constructor
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_default_options = {
    "members": True,
    # Members that are inherited from these classes are left out.
    "inherited-members": (
        "object, BaseException, Exception, OSError, chain, Enum, Generic, Protocol"
    ),
    "special-members": "__call__",
}
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_attr_annotations = False  # the signatures have them

python_maximum_signature_line_length = 72

html_theme = "furo"
html_title = f"resilience {release}"
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
html_static_path = ["_static"]
html_css_files = ["site.css"]

# ---- signatures as a user would write them

# Where a public object is defined -> where it is imported from.
PUBLIC_PATHS = {
    f"{value.__module__}.{name}": f"{module.__name__}.{name}"
    for module in (resilience, testing)
    for name in module.__all__
    if hasattr(value := getattr(module, name), "__qualname__")
}
# Their constructors are not for users, who get them from a call.
RETURNED = {
    *(resilience.Stream, resilience.SpeechStream, resilience.Session, resilience.STTSession),
    *(aio.Stream, aio.Session, testing.FakeStream, deepgram.DeepgramSession),
}
PATTERNS = {
    r"\*args: ~typing\.~P": "*args: P.args",
    r"\*\*kwargs: ~typing\.~P": "**kwargs: P.kwargs",
    r"~P\b": "P",
    r"~?resilience\.[\w.]*\.(P|[A-Z](?:_co)?)\b": r"\1",  # variables of types
    r": ~?resilience\.[\w.]*\._\w+": "",  # the protocol of a vendor's client
    r"<class '(\w+)'>": r"\1",
    r"= _[A-Z_]+": "= ...",  # described in the docstring
    r"\[\[((?:~?typing\.)?Concatenate\[[^\]]*\]|P)\]": r"[\1",
}


def simplify(signature: str) -> str:
    """Replace the private names in a signature by public ones."""
    for private, public in PUBLIC_PATHS.items():
        signature = re.sub(rf"{re.escape(private)}\b", public, signature)
    for pattern, replacement in PATTERNS.items():
        signature = re.sub(pattern, replacement, signature)
    return signature


def show_defaults(signature: str, value: Any) -> str:  # noqa: ANN401
    """Write the defaults of a value's fields as they are in the source."""
    for field in dataclasses.fields(value):
        if callable(field.default_factory):
            factory = getattr(field.default_factory, "__name__", "")
            signature = signature.replace("<factory>", f"{factory}()", 1)
        elif callable(field.default) and not isinstance(field.default, type):
            function = f"{field.default.__module__}.{field.default.__qualname__}"
            signature = signature.replace(repr(field.default), function)
    return signature


def process_signature(*event: Any) -> tuple[str, None] | None:  # noqa: ANN401
    """Leave out the signatures of constructors that users do not call, and show defaults."""
    value, signature = event[3], event[5]
    if isinstance(value, type) and value in RETURNED:
        return "", None
    if signature and dataclasses.is_dataclass(value):
        return show_defaults(signature, value), None
    return None


def process_docstring(*event: Any) -> None:  # noqa: ANN401
    """Leave out the docstrings of constructors that users do not call."""
    value, lines = event[3], event[5]
    if isinstance(value, type) and value in RETURNED:
        own = (value.__doc__ or "").splitlines()
        if lines[:1] != own[:1]:
            lines.clear()


class Simplified(PyObject):
    """A directive with a simplified signature; there is no event for those of overloads."""

    def handle_signature(self, sig: str, signode: addnodes.desc_signature) -> tuple[str, str]:
        """Simplify the signature."""
        return super().handle_signature(simplify(sig), signode)


# ---- every name a link


def link_names(app: Sphinx, page: nodes.document, page_name: str) -> None:
    """Make each public name in a text a link to its place in the reference."""
    objects = app.env.domains["py"].data["objects"]
    module = {"asyncio": "aio"}.get(page_name, page_name.removeprefix("reference/"))
    names = places(objects, f"resilience.{module.replace('-', '.')}")
    for literal in list(page.findall(nodes.literal)):
        text = re.sub(r"^(await )?(resilience\.)?|\(.*\)$", "", literal.astext())
        is_linked = isinstance(literal.parent, (nodes.reference, nodes.title))
        # Other names in small letters are names of settings, methods and packages, too.
        is_meant = "." in text or text[:1].isupper() or is_first_cell(literal.parent.parent)
        if text in names and is_meant and not is_linked:
            place = objects[names[text]]
            if place.objtype == "module" and "." not in text:
                continue
            target = place.docname, place.node_id
            link = make_refnode(app.builder, page_name, *target, literal.deepcopy())
            literal.parent.replace(literal, link)


def is_first_cell(node: nodes.Node) -> bool:
    """Return whether this is the first cell of a row."""
    return isinstance(node, nodes.entry) and node.parent.index(node) == 0


def places(objects: Iterable[str], module: str) -> dict[str, str]:
    """Return the full name for each way to write a name on a page about a module.

    A name without its module is that of this module, or else of the root, or else of any other.
    Without its class a name is not the name of a method.
    """
    found: dict[str, str] = {}
    ranks = {"resilience": 1, module: 2}
    for name in sorted(objects, key=lambda name: ranks.get(name.rpartition(".")[0], 0)):
        owner, _, short = name.rpartition(".")
        if owner == module or short[0].isupper():
            found[short] = name
        found[name.removeprefix("resilience.")] = name
    return found


# ---- pictures and tables


def show_diagrams(app: Sphinx, page: nodes.document, _: str) -> None:
    """Put the diagrams into the page itself, so that they follow its theme."""
    for image in list(page.findall(nodes.image)):
        if image["uri"].endswith(".svg"):
            drawing = (app.srcdir / image["uri"]).read_text(encoding="utf-8")
            image.parent.replace(image, nodes.raw("", drawing, format="html"))


def name_columns(*event: Any) -> None:  # noqa: ANN401
    """Repeat the heads of a table in its cells, for screens on which each row is a block."""
    context = event[3]
    context["body"] = re.sub(
        r"<table.*?</table>", name_cells, context.get("body", ""), flags=re.DOTALL
    )


def name_cells(table: re.Match[str]) -> str:
    """Return a table of three or more columns with the head of each cell in an attribute."""
    heads = [
        re.sub("<[^>]*>", "", head).strip().replace('"', "&quot;")
        for head in re.findall(r"<th\b[^>]*>(.*?)</th>", table[0], re.DOTALL)
    ]
    columns = itertools.cycle(heads)

    def name_cell(cell: re.Match[str]) -> str:
        head = next(columns)
        return f'<td data-head="{head}"' if head and head != heads[0] else cell[0]

    return re.sub(r"<td\b", name_cell, table[0]) if len(heads) > 2 else table[0]  # noqa: PLR2004


def setup(app: Sphinx) -> None:
    """Register the functions above."""
    for name, directive in PythonDomain.directives.items():
        if issubclass(directive, PyObject):
            simplified = type(directive.__name__, (Simplified, directive), {})
            app.add_directive_to_domain("py", name, simplified, override=True)
    app.connect("autodoc-process-signature", process_signature)
    app.connect("autodoc-process-docstring", process_docstring)
    app.connect("doctree-resolved", link_names)
    app.connect("doctree-resolved", show_diagrams)
    app.connect("html-page-context", name_columns)
