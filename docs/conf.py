"""Settings of the documentation site: ``make docs``."""

import re

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

import givens

project = "givens"
author = "The givens developers"
copyright = author
version = release = givens.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "numpydoc",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
]
templates_path = ["_templates"]
exclude_patterns = ["_build", "gallery"]

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
copybutton_prompt_text = "$ "
copybutton_only_copy_prompt_lines = True

# The docstrings give the types of parameters; annotations would only make signatures long.
autodoc_typehints = "none"
autodoc_preserve_defaults = True
autosummary_generate = True
numpydoc_show_class_members = False

# The scripts of gallery/ are run, and become pages in gallery_built/. Nothing that varies from build to
# build is written: no times, no memory.
sphinx_gallery_conf = {
    "examples_dirs": "gallery",
    "gallery_dirs": "gallery_built",
    "capture_repr": (),
    "download_all_examples": False,
    "min_reported_time": float("inf"),
    "write_computation_times": False,
    "show_signature": False,
    "image_srcset": ["2x"],
}

# Every reference must resolve; those to other projects have no inventory here, so that building needs no
# network.
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(torch|geoopt|numpy|sklearn)\..*"),
    # In the docstrings that schedules inherit from torch.
    ("py:.*", r"last_epoch|_get_closed_form_lr"),
]

html_theme = "pydata_sphinx_theme"
html_title = "givens"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_show_sourcelink = False
html_sidebars = {"**": ["contents.html"]}
html_theme_options = {
    "navbar_center": [],
    "navigation_with_keys": False,
    "show_toc_level": 2,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
}


# Formulas as MathML, which browsers draw by themselves: no script is loaded, and the site reads offline.
def mathml(formula: str, *, display: bool) -> str:
    # Braces and bars keep their size beside a superscript, as parentheses do.
    drawn = tex2mathml(formula, as_block=display)
    return re.sub(r"<mo( class=\"\w+\")?>([{}⟨⟩‖|])</mo>", r'<mo\1 stretchy="false">\2</mo>', drawn)


def inline_formula(translator: HTML5Translator, node: nodes.math) -> None:
    translator.body.append(mathml(node.astext(), display=False))
    raise nodes.SkipNode


def displayed_formula(translator: HTML5Translator, node: nodes.math_block) -> None:
    translator.body.append(f'<div class="formula">{mathml(node.astext(), display=True)}</div>\n')
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    app.add_html_math_renderer("mathml", (inline_formula, None), (displayed_formula, None))
