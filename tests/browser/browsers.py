"""A headless Chromium, and JupyterLab, Notebook 7 or Voila on a notebook with the explorer.

`.ci/screenshots.py` uses it too.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import nbformat

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-default-apps",
    "--disable-domain-reliability",
    "--no-first-run",
    "--no-pings",
]
CODE = """import datekit as dk
reward = dk.rewards.load("shapes-clip", device="cpu")
explorer = dk.explore(dk.load("shapes", device="cpu"), reward, num_steps=6)
explorer"""


def chromium() -> str | None:
    """The path of a Chromium or Chrome:

    $DATEKIT_CHROMIUM, one of the system's, or Playwright's own; None without any.
    """
    named = [
        os.environ.get("DATEKIT_CHROMIUM"),
        *map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome")),
    ]
    cache = Path(
        os.environ.get("PLAYWRIGHT_BROWSERS_PATH", Path.home() / ".cache" / "ms-playwright")
    )
    own = sorted(map(str, cache.glob("chromium*/chrome*/*chrome*")), reverse=True)
    own = [
        path
        for path in own
        if Path(path).name in ("chrome", "chrome-headless-shell", "headless_shell")
    ]
    return next((path for path in [*named, *own] if path and os.access(path, os.X_OK)), None)


@contextlib.contextmanager
def page(width: int = 1024, height: int = 1400, scale: float = 1.0) -> Iterator:
    """A page of a headless browser; what the page itself logs as an error is in `page.mistakes`."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
        try:
            opened = browser.new_page(
                viewport={"width": width, "height": height}, device_scale_factor=scale
            )
            opened.mistakes = []
            opened.on("pageerror", lambda error: opened.mistakes.append(str(error)))
            opened.set_default_timeout(300_000)
            yield opened
        finally:
            browser.close()


@contextlib.contextmanager
def served(kind: str, folder: Path, code: str = CODE) -> Iterator[str]:
    """The address of a notebook with one cell in JupyterLab, Notebook 7 or Voila ("lab",
    "notebook", "voila"), on this machine only.
    """
    cell = nbformat.v4.new_code_cell(code)
    kernel = {
        "kernelspec": {
            "display_name": "Python 3 (ipykernel)",
            "language": "python",
            "name": "python3",
        }
    }
    (folder / "work").mkdir()
    nbformat.write(
        nbformat.v4.new_notebook(cells=[cell], metadata=kernel), folder / "work" / "explorer.ipynb"
    )
    settings = (
        folder
        / "jupyterlab_settings_dir"
        / "@jupyterlab"
        / "apputils-extension"
        / "notification.jupyterlab-settings"
    )
    settings.parent.mkdir(parents=True)
    settings.write_text(
        '{"fetchNews": "false", "checkForUpdates": false}'
    )  # it asks nobody outside
    port = _free_port()
    local = ["--no-browser", f"--port={port}"]
    jupyter = [
        *local,
        "--allow-root",
        "--ServerApp.ip=127.0.0.1",
        "--ServerApp.port_retries=0",
        "--IdentityProvider.token=",
        "--ServerApp.password=",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
        f"--ServerApp.root_dir={folder / 'work'}",
    ]
    command, path = {
        "lab": (["jupyterlab", *jupyter], "lab/tree/explorer.ipynb"),
        "notebook": (["notebook", *jupyter], "notebooks/explorer.ipynb"),
        "voila": (
            [
                "voila",
                *local,
                "--Voila.ip=127.0.0.1",
                "--VoilaExecutor.startup_timeout=300",
                "--VoilaExecutor.iopub_timeout=300",
                str(folder / "work" / "explorer.ipynb"),
            ],
            "",
        ),
    }[kind]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=folder,
            env=_environment(folder),
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            # Voila runs the notebook to answer at all, so that asking the server itself is enough
            _wait_for(
                f"http://127.0.0.1:{port}/{'voila/static/voila.js' if kind == 'voila' else 'api'}",
                server,
                folder / "log",
            )
            yield f"http://127.0.0.1:{port}/{path}"
        finally:
            server.terminate()
            try:
                server.wait(300)
            except subprocess.TimeoutExpired:
                server.kill()


def available() -> bool:
    """Whether there are a browser and the means to drive it."""
    return chromium() is not None and importlib.util.find_spec("playwright") is not None


def run_the_cell(page) -> None:
    """In JupyterLab and Notebook 7: run the notebook's one cell.

    A key that comes before the kernel is lost, or starts a second kernel and ends in a dialog that
    asks which one: so wait for the kernel as the server tells of it (the page says "idle" before it
    has any), answer a dialog with what it proposes, and press again if need be.
    """
    dialog = page.locator("dialog.jp-Dialog")
    page.add_locator_handler(dialog, lambda: dialog.locator(".jp-mod-accept").click())
    _wait_for_the_kernel(page)
    ran = page.locator(".jp-CodeCell .jp-InputPrompt", has_text=re.compile(r"\[(\*|\d+)\]"))
    for _ in range(5):
        page.locator(".jp-Notebook .jp-CodeCell .cm-content").first.click()
        page.keyboard.press("Shift+Enter")
        with contextlib.suppress(Exception):
            ran.first.wait_for(timeout=60_000)
            break
    else:
        raise TimeoutError("the cell does not run")
    page.remove_locator_handler(dialog)


def _wait_for_the_kernel(page, seconds: float = 300) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with contextlib.suppress(Exception):  # a server that is slow to answer is asked again
            kernels = page.request.get(urllib.parse.urljoin(page.url, "/api/kernels")).json()
            if any(
                kernel["connections"] and kernel["execution_state"] == "idle" for kernel in kernels
            ):
                return
        page.wait_for_timeout(200)
    raise TimeoutError(f"no kernel after {seconds} s")


def status(page, text: str) -> None:
    """Wait until the explorer's line of status says this."""
    page.locator('span[role="status"]', has_text=text).wait_for()


def drag(page, name: str, share: float) -> None:
    """Drag the handle of a slider by mouse to a share of its way, in a few moves as a hand does."""
    slider = page.locator(".widget-hslider", has_text=name).first
    slider.scroll_into_view_if_needed()
    handle, way = (
        slider.locator(".noUi-handle").bounding_box(),
        slider.locator(".noUi-base").bounding_box(),
    )
    page.mouse.move(handle["x"] + handle["width"] / 2, handle["y"] + handle["height"] / 2)
    page.mouse.down()
    page.mouse.move(way["x"] + share * way["width"], way["y"] + way["height"] / 2, steps=5)
    page.mouse.up()


def press(page, name: str, key: str, times: int) -> None:
    """Press a key on the handle of a slider, which needs no mouse."""
    page.locator(".widget-hslider", has=page.get_by_text(name, exact=True)).locator(
        ".noUi-handle"
    ).focus()
    for _ in range(times):
        page.keyboard.press(key)


def tab_to(page, selector: str, text: str = "", key: str = "Tab") -> None:
    """Press Tab (or Shift+Tab) until what has the focus fits a CSS selector and, where it is given,
    has this text. No mouse.
    """
    fits = (
        "([selector, text]) => document.activeElement.matches(selector) && "
        "(!text || document.activeElement.textContent.trim() === text)"
    )
    for _ in range(80):
        page.keyboard.press(key)
        if page.evaluate(fits, [selector, text]):
            return
    raise AssertionError(f"{key} does not come to {selector} {text!r}")


def _environment(folder: Path) -> dict[str, str]:
    """Kernels of this environment, settings of nobody, no network."""
    fresh = {
        name: str(folder / name.lower())
        for name in (
            "JUPYTER_CONFIG_DIR",
            "JUPYTER_DATA_DIR",
            "JUPYTER_RUNTIME_DIR",
            "IPYTHONDIR",
            "JUPYTERLAB_SETTINGS_DIR",
            "JUPYTERLAB_WORKSPACES_DIR",
        )
    }
    own = {
        "JUPYTER_PATH": str(Path(sys.prefix) / "share" / "jupyter"),
        "JUPYTER_PREFER_ENV_PATH": "1",
    }
    return (
        os.environ
        | fresh
        | own
        | {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"}
    )


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _wait_for(address: str, server: subprocess.Popen, log: Path, seconds: float = 300) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if server.poll() is not None:
            raise RuntimeError(f"the server ended:\n{log.read_text()[-3000:]}")
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except urllib.error.HTTPError:
            return  # it answers
        except OSError:
            time.sleep(0.2)
    raise TimeoutError(f"no server at {address} after {seconds} s:\n{log.read_text()[-3000:]}")


if __name__ == "__main__":
    sys.exit(
        0
        if available() and print(chromium()) is None
        else "no Chromium, or no Playwright: see .ci/chromium"
    )
