"""The site of `make docs`: the pages of docs/, with README as their front. Warnings are errors.

The source folder is the root of the repository, so that a link between pages is the same in both.
"""

import re
from pathlib import Path

from sphinx.application import Sphinx

ROOT = Path(__file__).parents[1]
PARTS = {
    "Start": ["tutorial", "how-to-read-a-report", "studies", "data", "backbones", "gpu", "cluster"],
    "A model": ["final", "predict", "model-folder"],
    "Results": ["statistics", "findings", "../benchmarks/RESULTS", "report", "run-folder"],
    "Reference": ["verbs", "api", "glossary"],
    "The project": ["architecture", "../CONTRIBUTING", "../CHANGELOG", "LOG"],
}

project = "birdtune"
html_title = "birdtune"
html_theme = "furo"
root_doc = "README"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
include_patterns = ["*.md", "docs/*.md", "benchmarks/*.md"]
myst_heading_anchors = 4
highlight_language = "text"
default_role = "code"
autodoc_typehints = "description"
autodoc_member_order = "bysource"


def _for_the_site(app: Sphinx, page: str, source: list[str]) -> None:
    """Unlink folders, which the site has not, and give the front its navigation."""
    here = (ROOT / page).parent
    source[0] = re.sub(
        r"\[([^\]]*)\]\(([^)#\s]+)\)",
        lambda link: link[1] if (here / link[2]).is_dir() else link[0],
        source[0],
    )
    if page == root_doc:
        for title, pages in PARTS.items():
            names = "\n".join("/docs/" + name if "/" not in name else name[2:] for name in pages)
            source[0] += f"\n```{{toctree}}\n:hidden:\n:caption: {title}\n\n{names}\n```\n"


def setup(app: Sphinx) -> None:
    app.connect("source-read", _for_the_site)
