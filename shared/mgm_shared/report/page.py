"""Write a report: one HTML file with all it needs inside. It has no script and fetches nothing."""

from pathlib import Path
from typing import Any

from mgm_shared.files import replace_text
from mgm_shared.printable import one_line
from mgm_shared.report.blocks import Page

TEMPLATE, STYLE = "page.html.jinja", "style.css"


def to_html(page: Page) -> str:
    """The page as HTML. Whatever its texts contain, they are shown as text."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("mgm_shared", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    environment.filters["breakable"] = _breakable
    style = (Path(__file__).parent / STYLE).read_text(encoding="utf-8")
    return environment.get_template(TEMPLATE).render(page=page, style=style)


def _shown(value: Any) -> Any:
    """Names of files may hold line breaks and bytes that are no text, which UTF-8 cannot encode."""
    # Markup is a str that is HTML already: the style, and what a macro returns.
    return one_line(value) if type(value) is str else value


def _breakable(text: str) -> Any:
    """Long names may be broken behind `/`, `_` and `.`."""
    from markupsafe import Markup, escape

    shown = str(escape(one_line(text)))
    for letter in "/_.":
        shown = shown.replace(letter, f"{letter}<wbr>")
    return Markup(shown)


def write_page(page: Page, file: Path) -> None:
    """Write or replace a report; its folder is made."""
    html = to_html(page)
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_text(file, html)
