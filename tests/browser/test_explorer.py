"""The explorer in a real browser, through JupyterLab, Notebook 7 and Voila: what a teacher does in
class.

Without a Chromium these are skipped, and in CI that is a failure: see tests/skips.md.
"""

from __future__ import annotations

import contextlib
import os
import re

import browsers
import pytest

NO_BROWSER = "needs Chromium and Playwright"
PATIENCE = 300_000  # milliseconds, for a busy machine
# Notebook 7.6.5 logs it at its start, whatever the notebook holds.
OF_NOTEBOOK_7 = "Cannot read properties of undefined (reading 'schema')"


@pytest.fixture(params=["lab", "voila"])
def explorer(request, tmp_path):
    """A page with the explorer, its first run finished."""
    if not browsers.available():
        if os.environ.get("CI"):
            pytest.fail("CI must have a browser: .ci/chromium installs one")
        pytest.skip(NO_BROWSER)
    with browsers.served(request.param, tmp_path) as address, browsers.page() as page:
        try:
            page.goto(address, timeout=PATIENCE)
            if request.param != "voila":
                browsers.run_the_cell(page)
            browsers.status(page, "finished")
            yield page
        finally:  # shown where something failed
            print((tmp_path / "log").read_text()[-2000:])
            with contextlib.suppress(Exception):
                print(page.inner_text("body", timeout=10_000)[-2000:])
        assert [
            mistake
            for mistake in page.mistakes
            if (request.param, mistake) != ("notebook", OF_NOTEBOOK_7)
        ] == []


def rho(page):
    """Where the slider stands."""
    return float(
        page.locator(".widget-hslider", has_text="rho").locator(".widget-readout").inner_text()
    )


def decoded(page, row="this run"):
    """The bytes of the decoded picture of a row, as its address."""
    return page.get_by_alt_text(
        re.compile(rf"^{row}, step \d+: the expected picture")
    ).get_attribute("src")


def changed(page, before, row="this run"):
    """Wait until that picture is another one."""
    page.wait_for_function(
        """([row, before]) => [...document.images].some(image =>
            image.alt.startsWith(row + ", step")
            && image.alt.includes("the expected picture") && image.src !== before)""",
        arg=[row, before],
        timeout=PATIENCE,
    )


def button(page, name):
    return page.locator(
        "button.jupyter-button", has_text=re.compile(f"^{name}$")
    )  # JupyterLab has a button "0" of its own


def test_a_lesson(explorer):
    """Run, drag rho, click steps, scrub by keyboard, fork, sweep, provoke an error and mend it;
    nothing logs a mistake.
    """
    page = explorer
    rights = page.evaluate(
        "[...document.querySelectorAll('.jupyter-widgets')]"
        ".map(part => part.getBoundingClientRect().right)"
    )
    assert max(rights) <= 1024  # the width of the window, JupyterLab's own panels included
    assert page.locator("figure img:not([alt])").count() == 0

    before = decoded(page)
    browsers.drag(page, "rho", 0.95)
    changed(page, before)
    browsers.status(page, "finished")
    assert rho(page) > 8

    before = decoded(page)
    for step in ("0", "1", "2"):
        button(page, step).click()
    page.get_by_title(
        "step 2 does not update"
    ).wait_for()  # said after the status of the new run: what "finished" means from here on
    browsers.status(page, "finished")
    changed(page, before)
    from playwright.sync_api import expect

    expect(button(page, "2")).not_to_have_class(re.compile("mod-active"), timeout=PATIENCE)
    expect(button(page, "3")).to_have_class(re.compile("mod-active"), timeout=PATIENCE)

    browsers.press(page, "step", "ArrowLeft", 3)
    browsers.status(page, "step 3 on screen")
    assert (
        page.get_by_alt_text(re.compile("^fixed embedding, step 3: the expected picture")).count()
        == 1
    )

    before = decoded(page)
    button(page, "fork here").click()
    browsers.status(page, "paused before step 3 of 6")
    browsers.drag(page, "rho", 0.1)
    changed(page, before)
    assert decoded(page, "before the fork") == before
    button(page, "play").click()
    browsers.status(page, "finished; a change samples again from step 3")

    button(page, "rho sweep").click()
    page.get_by_alt_text(re.compile("^x0bar at step 5, rho")).nth(6).wait_for(timeout=PATIENCE)

    named = page.get_by_text("steps", exact=True)
    steps = page.locator(".widget-text", has=named).locator("input")
    steps.fill("5000")
    steps.press("Enter")
    page.get_by_role("alert").filter(has_text="num_steps must be a whole number").wait_for(
        timeout=PATIENCE
    )
    steps.fill("4")
    steps.press("Enter")
    page.get_by_role("alert").wait_for(state="detached", timeout=PATIENCE)
    browsers.status(page, "step 4 on screen; finished")

    button(page, "Python").click()
    page.get_by_text("import datekit as dk", exact=False).last.wait_for(timeout=PATIENCE)
    assert (
        page.get_by_text("save explorer.py")
        .get_attribute("href")
        .startswith("data:text/x-python;base64,")
    )


@pytest.mark.parametrize("explorer", ["lab", "notebook"], indirect=True)
def test_by_keyboard_alone(explorer):
    """From the prompt on with Tab, page keys, typed numbers, Space and Enter: rho, a step cell,
    restart, step, fork, play, scrub.

    Arrows move a slider too, but where the notebook is in command mode it keeps them for itself.
    """
    page = explorer
    page.locator(".widget-text input").first.focus()
    before = decoded(page)
    browsers.tab_to(page, ".noUi-handle")
    page.keyboard.press("PageUp")
    changed(page, before)
    browsers.status(page, "finished")
    assert rho(page) > 1
    before = decoded(page)
    browsers.tab_to(page, ".widget-readout")
    for key in ("Control+A", "4", "Enter"):
        page.keyboard.press(key)
    changed(page, before)
    browsers.status(page, "finished")
    assert rho(page) == 4

    browsers.tab_to(page, "button", "2")
    page.keyboard.press("Space")
    page.wait_for_function(
        "!document.activeElement.classList.contains('mod-active')"
    )  # the cell keeps the focus
    browsers.status(page, "finished")

    browsers.tab_to(page, "button", "restart")
    page.keyboard.press("Enter")
    browsers.status(page, "paused before step 0")
    browsers.tab_to(page, "button", "step")
    for step in (1, 2, 3):
        page.keyboard.press("Space")
        browsers.status(page, f"paused before step {step} of 6")
    browsers.tab_to(page, "button", "fork here")
    page.keyboard.press("Space")
    page.get_by_alt_text(re.compile("^before the fork, step 3: the expected picture")).wait_for()
    browsers.tab_to(page, "button", "play", key="Shift+Tab")
    page.keyboard.press("Space")
    browsers.status(page, "finished; a change samples again from step 3")
    browsers.tab_to(page, ".noUi-handle")
    page.keyboard.press("Home")
    browsers.status(page, "step 0 on screen")
