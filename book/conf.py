"""Sphinx's settings for the book; make.py writes the pages and calls it."""

import os
import re

from docutils import nodes
from latex2mathml.converter import convert

project = "Which speech is worth transcribing?"
author = "The alspeech contributors"
html_title = project
extensions = ["myst_nb", "sphinx.ext.autodoc"]
exclude_patterns = ["files/**", "_figures/**"]

nb_execution_mode = "off"  # make all has executed them
nb_render_markdown_format = "myst"
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist"]
myst_heading_anchors = 4
myst_links_external_new_tab = False

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
add_module_names = False
toc_object_entries = False

html_theme = "sphinx_book_theme"
html_static_path = ["_static"]
html_css_files = ["book.css"]
html_js_files = ["book.js"]
html_copy_source = False
html_show_sourcelink = False
html_show_search_summary = False  # it asks a server for pages, and there may be none
html_context = {"default_mode": "auto"}  # without it the theme complains in the console
html_theme_options = {
    "use_download_button": False,  # buttons that lead to the notebooks stand on their pages
    "use_fullscreen_button": False,
    "use_issues_button": False,
    "home_page_in_toc": True,
    "navbar_persistent": [],  # the search field stands beside the contents
    "show_toc_level": 2,
    "repository_url": os.environ.get("BOOK_REPOSITORY", ""),
    "use_repository_button": bool(os.environ.get("BOOK_REPOSITORY")),
}

# ---------------------------------------------------------------- formulas

html_math_renderer = "mathml"  # browsers draw it themselves: no script, no fonts, no network


def _inline_math(translator, node):
    translator.body.append(convert(node.astext()))
    raise nodes.SkipNode


def _block_math(translator, node):
    latex = re.sub(r"\\begin\{(equation|align|gather)\*?\}|\\end\{(equation|align|gather)\*?\}", "",
                   node.astext())  # fmt: skip
    math = convert(latex, display="block")
    translator.body.append(f'<div class="math" tabindex="0">{math}</div>\n')
    raise nodes.SkipNode


# ---------------------------------------------------------------- docstrings

LITERAL = re.compile(
    r"(``.*?``|:[a-z]+:`.*?`|(?<![\w*])\*\w(?:[^*\n]*[^*\s])?\*(?![\w*]))", re.DOTALL
)  # code, references, *emphasis*
SPECIAL = re.compile(r"([*|`\\]|(?<=\w)_(?!\w)|__)")


def _as_rst(app, what, name, obj, options, lines):
    """Docstrings are plain text with ``literals`` and :func:`references`: formulas, |norms| and
    tables stand in them as they are, and must come out so."""
    made, prose, block = [], [], False

    def end_of_prose():
        parts = LITERAL.split("\n".join(prose))
        parts[::2] = [SPECIAL.sub(r"\\\1", part) for part in parts[::2]]
        made.extend("".join(parts).split("\n") if prose else [])
        prose.clear()

    for n, line in enumerate(lines):
        indent, example = len(line) - len(line.lstrip()), line.lstrip().startswith(">>>")
        if not block and indent >= 4 and not lines[n - 1].strip() and not example:
            end_of_prose()
            made += ["::", ""]  # what is set in after an empty line is a formula
            block = True
        block = block and (indent >= 4 or not line.strip())
        if block or example:
            end_of_prose()
            made.append(line)
        else:
            prose.append(line)
    end_of_prose()
    lines[:] = [*made, ""]


def _shorter(app, what, name, obj, options, signature, returned):
    """Sections of presets have more fields, with ranges, than a line can hold: see the source."""
    return ("(…)", returned) if what == "class" and len(signature or "") > 200 else None


def setup(app):
    app.add_html_math_renderer(
        "mathml", inline_renderers=(_inline_math, None), block_renderers=(_block_math, None)
    )
    app.connect("autodoc-process-docstring", _as_rst)
    app.connect("autodoc-process-signature", _shorter)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
