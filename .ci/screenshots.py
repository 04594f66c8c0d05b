"""Screenshots of the explorer for figures/, by a real browser through Voila.

Without a Chromium it says so and leaves them.

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
    """explorer.png: the final picture; explorer_fork.png: a step of a fork, unfolded."""
    if not browsers.available():
        print("no Chromium, so figures/explorer*.png stay as they are: .ci/chromium installs one")
        return
    with (
        tempfile.TemporaryDirectory() as folder,
        browsers.served("voila", Path(folder), CODE) as address,
        browsers.page(height=2200) as page,
    ):
        page.goto(address, timeout=300_000)
        browsers.status(page, "the final picture")
        shoot(page, out / "explorer.png")
        page.get_by_text("play, fork, choose steps").click()
        browsers.press(page, "step", "ArrowLeft", 12)
        browsers.status(page, "step 8 of 20")
        page.locator("button.jupyter-button", has_text="fork here").click()
        browsers.status(page, "a change acts from step 8 on")
        browsers.drag(page, "rho", 0.8)
        browsers.press(page, "step", "ArrowRight", 4)
        browsers.status(page, "step 12 of 20")
        page.get_by_text("inside this step").click()
        page.get_by_alt_text("Bars: each token").wait_for()
        shoot(page, out / "explorer_fork.png")


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
