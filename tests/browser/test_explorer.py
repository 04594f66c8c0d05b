"""The explorer in a real browser, through JupyterLab, Notebook 7 and Voila.

Without a Chromium these are skipped, and in CI that is a failure: see tests/skips.md.
"""

from __future__ import annotations

import contextlib
import re

import browsers
import pytest

PATIENCE = 300_000  # milliseconds, for a busy machine
# Notebook 7.6.5 logs it at its start, whatever the notebook holds.
OF_NOTEBOOK_7 = "Cannot read properties of undefined (reading 'schema')"


@pytest.fixture(params=["lab", "voila"])
def explorer(request, tmp_path):
    """A page with the explorer, its first run finished."""
    browsers.require()
    with browsers.served(request.param, tmp_path) as address, browsers.page() as page:
        try:
            page.goto(address, timeout=PATIENCE)
            if request.param != "voila":
                browsers.run_the_cell(page)
            browsers.status(page, "the final picture")
            yield page
        finally:  # shown where something failed
            print((tmp_path / "log").read_text()[-2000:])
            with contextlib.suppress(Exception):
                print(page.inner_text("body", timeout=10_000)[-2000:])
        known = [OF_NOTEBOOK_7] if request.param == "notebook" else []
        assert [mistake for mistake in page.mistakes if mistake not in known] == []


def rho(page, least):
    """Wait until what stands beside the slider is at least that, and return it."""
    field = named(page, "rho =").element_handle()
    fits = "([field, least]) => Number(field.value) >= least"
    page.wait_for_function(fits, arg=[field, least], timeout=PATIENCE)
    return float(field.input_value())


def named(page, label):
    """The field of a label."""
    return page.locator(".widget-text", has=page.get_by_text(label, exact=True)).locator("input")


def picture(page, row="this run"):
    """The bytes of the picture of a row, as its address."""
    return page.get_by_alt_text(re.compile(f"^{row}, the")).get_attribute("src")


def changed(page, before, row="this run"):
    """Wait until that picture is another one, and no longer pale."""
    page.wait_for_function(
        """([row, before]) => [...document.images].some(image =>
            image.alt.startsWith(row + ", the") && image.src !== before
            && !image.closest(".datekit-pale"))""",
        arg=[row, before],
        timeout=PATIENCE,
    )


def button(page, name):
    # JupyterLab has a button "0" of its own
    return page.locator("button.jupyter-button", has_text=re.compile(f"^{name}$"))


def test_a_lesson(explorer):
    """Run, drag rho, click steps, scrub by keyboard, fork, provoke an error and mend it, take the
    code away; nothing logs a mistake.
    """
    page = explorer
    rights = page.evaluate(
        "[...document.querySelectorAll('.jupyter-widgets')]"
        ".map(part => part.getBoundingClientRect().right)"
    )
    assert max(rights) <= 1024  # the width of the window, JupyterLab's own panels included
    assert page.locator("figure img:not([alt])").count() == 0

    before = picture(page)
    browsers.drag(page, "rho", 0.95)
    changed(page, before)
    rho(page, 8)
    before = picture(page)
    page.get_by_text("play, fork, choose steps").click()
    for step in ("0", "1", "2"):
        button(page, step).click()
    page.get_by_title("step 2 does not update").wait_for()
    changed(page, before)

    browsers.press(page, "step", "ArrowLeft", 3)
    browsers.status(page, "step 3 of 6")
    before = picture(page)
    button(page, "fork here").click()
    browsers.status(page, "a change acts from step 3 on")
    browsers.drag(page, "rho", 0.3)
    changed(page, before)
    assert picture(page, "before the fork") == before
    page.locator(".widget-play button").first.click()
    browsers.status(page, "the final picture")

    page.get_by_text("inside this step").click()
    page.get_by_alt_text(re.compile("^Bars: each token")).wait_for(timeout=PATIENCE)
    page.get_by_text("method and settings").click()
    steps = named(page, "steps")
    steps.fill("5000")
    steps.press("Enter")
    page.get_by_role("alert").filter(has_text="5000").wait_for(timeout=PATIENCE)
    page.wait_for_function("input => input.value === '6'", arg=steps.element_handle())
    before = picture(page)
    steps.fill("4")
    steps.press("Enter")
    page.get_by_role("alert").wait_for(state="detached", timeout=PATIENCE)
    changed(page, before)

    page.get_by_text("take it away").click()
    button(page, "Python").click()
    page.get_by_text("import datekit as dk", exact=False).last.wait_for(timeout=PATIENCE)
    link = page.get_by_text("save explorer.py").get_attribute("href")
    assert link.startswith("data:text/x-python;base64,")

    if "/lab/" in page.url:  # saved and loaded again, it stands as it stood, and lives
        stood = picture(page)
        with page.expect_response(saves_the_notebook) as saved:
            page.locator("[data-command='docmanager:save']").first.click()
        assert saved.value.ok
        page.reload()
        browsers.status(page, "the final picture")
        assert picture(page) == stood
        browsers.drag(page, "rho", 0.8)
        changed(page, stood)


def saves_the_notebook(response):
    """Whether a response is to the saving of a notebook, and not of the workspace."""
    path = response.url.partition("?")[0]
    return response.request.method == "PUT" and path.endswith(".ipynb") and "/contents/" in path


@pytest.mark.parametrize("explorer", ["lab", "notebook"], indirect=True)
def test_by_keyboard_alone(explorer):
    """From the prompt on with Tab, page keys, typed numbers, Space and Enter: rho, the step, what
    is folded, fork, a step cell, play.

    Arrows move a slider too, but where the notebook is in command mode it keeps them for itself.
    """
    page = explorer
    page.locator(".widget-text input").first.focus()
    before = picture(page)
    browsers.tab_to(page, ".noUi-handle")
    page.keyboard.press("PageUp")
    changed(page, before)
    rho(page, 0.55)
    before = picture(page)
    browsers.tab_to(page, "input[type=number]")
    for key in ("Control+A", "4", "Enter"):
        page.keyboard.press(key)
    changed(page, before)
    assert rho(page, 4) == 4
    browsers.tab_to(page, "input[type=number]")
    for key in ("Control+A", "3", "Enter"):  # beside rho is the step
        page.keyboard.press(key)
    browsers.status(page, "step 3 of 6")
    browsers.tab_to(page, "button", "play, fork, choose steps")
    page.keyboard.press("Space")
    browsers.tab_to(page, "button", "fork here")
    page.keyboard.press("Space")
    page.get_by_alt_text(re.compile("^before the fork, the expected picture at step 3")).wait_for()
    browsers.tab_to(page, "button", "4")
    page.keyboard.press("Space")
    page.get_by_title("step 4 does not update").wait_for()
    browsers.tab_to(page, ".widget-play button:first-of-type", key="Shift+Tab")
    page.keyboard.press("Space")
    browsers.status(page, "the final picture; forked: a change acts from step 3 on")
