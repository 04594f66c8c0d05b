"""A screenshot of the explorer for figures/, by a real browser through Voila.

Without a Chromium it says so and leaves it.

python .ci/screenshots.py
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "browser"))

import browsers  # noqa: E402

CODE = """import datekit as dk
guide = dk.rewards.load("shapes-clip", device="cpu")
judge = dk.rewards.load("shapes-clip-heldout", device="cpu")
backbone, prompt = dk.load("shapes", device="cpu"), "a purple square above a blue star"
rewards = {guide.name: guide, judge.name: judge}
dk.explore(backbone, rewards, prompt=prompt, seed=8)"""


def main(out: Path) -> None:
    """explorer.png: the explorer as it opens, at the final picture."""
    if not browsers.available():
        print("no Chromium, so figures/explorer.png stays as it is: .ci/chromium installs one")
        return
    with (
        tempfile.TemporaryDirectory() as folder,
        browsers.served("voila", Path(folder), CODE) as address,
        browsers.page(height=2200) as page,
    ):
        page.goto(address, timeout=300_000)
        browsers.status(page, "the final picture")
        shoot(page, out / "explorer.png")


def shoot(page, path: Path) -> None:
    """The widget alone, once it has been still for 6 s."""
    page.mouse.move(0, 0)
    before, still = None, 0
    while still < 2:
        page.wait_for_timeout(3000)
        seen = page.locator(".widget-vbox").first.screenshot()
        before, still = seen, still + 1 if seen == before else 0
    path.write_bytes(before)
    print(path.relative_to(ROOT))


if __name__ == "__main__":
    (ROOT / "figures").mkdir(exist_ok=True)
    main(ROOT / "figures")
