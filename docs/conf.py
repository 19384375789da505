"""Settings of the documentation site: ``make docs``."""


from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

import givens

project = "givens"
author = "The givens developers"
copyright = f"2025, {author}"
version = release = givens.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "numpydoc",
    "sphinx_copybutton",
]
templates_path = ["_templates"]
exclude_patterns = ["_build"]

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
copybutton_prompt_text = "$ "
copybutton_only_copy_prompt_lines = True

# The docstrings give the types of parameters; annotations would only make signatures long.
autodoc_typehints = "none"
autodoc_preserve_defaults = True
autosummary_generate = True
numpydoc_show_class_members = False

# Every reference must resolve; those to other projects have no inventory here, so that building needs no
# network.
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(torch|geoopt|numpy|sklearn)\..*")]

html_theme = "pydata_sphinx_theme"
html_title = "givens"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_show_sourcelink = False
html_theme_options = {
    "navigation_with_keys": False,
    "show_toc_level": 2,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
}


# Formulas as MathML, which browsers draw by themselves: no script is loaded, and the site reads offline.
def inline_formula(translator: HTML5Translator, node: nodes.math) -> None:
    translator.body.append(tex2mathml(node.astext(), as_block=False))
    raise nodes.SkipNode


def displayed_formula(translator: HTML5Translator, node: nodes.math_block) -> None:
    translator.body.append(f'<div class="math">{tex2mathml(node.astext(), as_block=True)}</div>\n')
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    app.add_html_math_renderer("mathml", (inline_formula, None), (displayed_formula, None))
