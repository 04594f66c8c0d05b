"""The documentation site: built without a warning, every link arrives, nothing leaves it."""

from __future__ import annotations

import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import browsers
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the site; a warning of Sphinx fails."""
    folder = tmp_path_factory.mktemp("docs") / "site"
    command = [sys.executable, ".ci/docs.py", str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    before = os.times().children_user
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert os.times().children_user - before < 90  # seconds of a processor; 25 on the slowest seen
    return folder


class Page(HTMLParser):
    """What a page links to, what it loads, and its anchors."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links, self.loads, self.anchors = set(), set(), {""}
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attributes: list) -> None:
        values = dict(attributes)
        self.anchors.add(values.get("id"))
        if "href" in values:
            (self.links if tag == "a" else self.loads).add(values["href"])
        if "src" in values:
            self.loads.add(values["src"])


def test_every_link_arrives_and_nothing_is_loaded_from_elsewhere(site):
    pages = {path: Page(path) for path in site.rglob("*.html")}
    assert len(pages) > 40
    lost = []
    for path, page in pages.items():
        assert not [url for url in page.loads if urlsplit(url).scheme not in ("", "data")]
        for url in page.links | page.loads:
            parts = urlsplit(url)
            if parts.scheme:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            anchors = pages[target].anchors if target in pages else {""}
            if not target.is_file() or unquote(parts.fragment) not in anchors:
                lost.append(f"{path.relative_to(site)}: {url}")
    assert not lost


@pytest.fixture
def served(site):
    """The address of the site on this machine."""
    with browsers.static(site) as address:
        yield address


SEEN = {  # pages, and what a reader sees there
    "index": "img[alt^='The same noise']",
    "notebooks/09_theorem_2": "math[display='block'] mfrac",
    "notebooks/02_explorer": "text=A widget, which needs a kernel",
    "docs/paper_to_code": "td math",
    "notebooks/studies/results/README": "table >> text=best of 4",
    "api/datekit": "dt:has-text('class datekit.Sampler(')",
    "search.html?q=best_of": "#search-results li a:has-text('best_of')",
}


def test_pages_open_at_any_width_without_a_mistake_or_a_request_elsewhere(served):
    browsers.require()
    asked, failed = [], []
    with browsers.page() as page:
        page.on("request", lambda request: asked.append(request.url))
        page.on("requestfailed", lambda request: failed.append(request.url))
        page.on("response", lambda answer: answer.status < 400 or failed.append(answer.url))
        for name, seen in SEEN.items():
            page.set_viewport_size({"width": 390, "height": 900})
            page.goto(served + (name if "?" in name else f"{name}.html"))
            page.locator(seen).first.wait_for()
            assert page.evaluate("document.documentElement.scrollWidth") <= 390, name
            empty = "[...document.images].filter(i => i.complete && !i.naturalWidth).length"
            assert page.evaluate(empty) == 0, name
        assert page.mistakes == []
    outside = [url for url in asked if not url.startswith((served, "data:"))]
    assert outside == failed == []
