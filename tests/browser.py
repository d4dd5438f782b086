"""A real browser without a window: Chromium of playwright, or one of the system. Reports are opened in it."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
VOID = {"meta", "img", "input", "br", "wbr", "link", "hr", "path", "rect"}
# What makes a browser fetch something.
FETCHING = {"src", "href", "poster", "data", "srcset", "action", "xlink:href"}


def launched() -> Iterator[Any]:
    """A browser. The test is skipped, with the reason, where there is none."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as playwright:
        own = Path(playwright.chromium.executable_path)
        found = str(own) if own.exists() else next(filter(None, map(shutil.which, NAMES)), None)
        if found is None:
            pytest.skip("there is no Chromium: neither playwright's own nor one of the system")
        # root may not use the sandbox
        arguments = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=found, args=arguments)
        yield browser
        browser.close()


@dataclass
class Opened:
    """A page, what it asked for and what it complained of."""

    page: Any
    requests: list[str]
    complaints: list[str]

    def shows(self, selector: str) -> bool:
        return bool(self.page.locator(selector).first.is_visible())

    def is_wider_than_the_window(self) -> bool:
        return bool(self.page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth"))


def opened(browser: Any, file: Path, width: int, **options: Any) -> Opened:
    """A file in a window of that width."""
    page = browser.new_context(viewport={"width": width, "height": 900}, **options).new_page()
    result = Opened(page, [], [])
    page.on("request", lambda request: result.requests.append(request.url))
    page.on("console", lambda message: result.complaints.append(message.text))
    page.on("pageerror", lambda error: result.complaints.append(str(error)))
    page.goto(file.as_uri())
    result.requests = [url for url in result.requests if not url.startswith("data:") and url != file.as_uri()]
    return result


@dataclass
class Outline(HTMLParser):
    """A page without a browser: its tags must be balanced; what it fetches, its texts, and the cells of its tables."""

    open_tags: list[str] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)
    tags: set[str] = field(default_factory=set)
    texts: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    @classmethod
    def of(cls, html: str) -> "Outline":
        outline = cls()
        outline.feed(html)
        outline.close()
        assert outline.open_tags == [], "these were never closed"
        return outline

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.fetched += [value or "" for name, value in attrs if name in FETCHING]
        if tag not in VOID:
            self.open_tags.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th") and self.rows:
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.fetched += [value or "" for name, value in attrs if name in FETCHING]

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open_tags.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        if "style" in self.open_tags:
            self.fetched += [data] if "url(" in data.replace("url(#", "") or "@import" in data else []
            return
        self.texts.append(data)
        if self.rows and self.open_tags and {"td", "th"} & set(self.open_tags):
            self.rows[-1][-1] += data

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    @property
    def outside(self) -> list[str]:
        """What comes from outside the file: everything but `data:` and places in the page."""
        return [url for url in self.fetched if not url.startswith(("data:", "#"))]
