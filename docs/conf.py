"""How the site is made: `sphinx-build -W docs docs/_build`. It needs no network."""

from importlib import metadata

project = "resilience"
author = "The resilience-failover developers"
release = metadata.version("resilience-failover")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
default_role = "code"
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_default_options = {
    "members": True,
    # All but what comes from these.
    "inherited-members": (
        "object, BaseException, Exception, OSError, chain, Enum, Generic, Protocol"
    ),
    "special-members": "__call__",
}
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

python_maximum_signature_line_length = 88

html_theme = "furo"
html_title = f"resilience {release}"
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
html_theme_options = {"light_css_variables": {"code-font-size": "78%"}}  # 100 columns fit
