"""A headless Chromium, and JupyterLab, Notebook 7 or Voila on a notebook with the explorer.

`.ci/screenshots.py` uses it too.
"""

from __future__ import annotations

import contextlib
import functools
import http.server
import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

import nbformat
import pytest

FLAGS = "no-sandbox disable-gpu disable-dev-shm-usage no-first-run no-pings disable-default-apps"
FLAGS += " disable-background-networking disable-component-update disable-sync"
CODE = """import datekit as dk
reward = dk.rewards.load("shapes-clip", device="cpu")
explorer = dk.explore(dk.load("shapes", device="cpu"), reward, num_steps=6)
explorer"""


def chromium() -> str | None:
    """The path of $DATEKIT_CHROMIUM, the system's Chromium, or Playwright's own, if any."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    paths = [os.environ.get("DATEKIT_CHROMIUM"), *map(shutil.which, names)]
    home = Path.home() / ".cache" / "ms-playwright"
    cache = Path(os.environ.get("PLAYWRIGHT_BROWSERS_PATH", home))
    for name in ("chrome", "chrome-headless-shell", "headless_shell"):
        paths += map(str, cache.glob(f"chromium*/chrome*/{name}"))
    return next((path for path in paths if path and os.access(path, os.X_OK)), None)


@contextlib.contextmanager
def page(width: int = 1024, height: int = 1400, scale: float = 1.0, flags: str = "") -> Iterator:
    """A page of a headless browser; what the page itself logs as an error is in `page.mistakes`."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium(), args=[f"--{flag}" for flag in f"{FLAGS} {flags}".split()]
        )
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
    python3 = {"display_name": "Python 3", "language": "python", "name": "python3"}
    cells = [nbformat.v4.new_code_cell(code)]
    notebook = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": python3})
    work, log, port = folder / "work", folder / "log", _free_port()
    work.mkdir()
    nbformat.write(notebook, work / "explorer.ipynb")
    news = "@jupyterlab/apputils-extension/notification.jupyterlab-settings"
    settings = folder / "jupyterlab_settings_dir" / news
    settings.parent.mkdir(parents=True)
    settings.write_text('{"fetchNews": "false", "checkForUpdates": false}')  # it asks nobody
    module, path = {
        "lab": ("jupyterlab", "lab/tree/explorer.ipynb"),
        "notebook": ("notebook", "notebooks/explorer.ipynb"),
        "voila": ("voila", ""),
    }[kind]
    if kind == "voila":
        options = ["--VoilaExecutor.startup_timeout=300", "--VoilaExecutor.iopub_timeout=300"]
        options += ["--Voila.ip=127.0.0.1", str(work / "explorer.ipynb")]
        alive = "voila/static/voila.js"  # Voila runs the notebook to answer anything else
    else:
        options = ["--allow-root", "--ServerApp.ip=127.0.0.1", "--ServerApp.port_retries=0"]
        options += ["--IdentityProvider.token=", "--ServerApp.password="]
        options += ["--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
        options += [f"--ServerApp.root_dir={work}"]
        alive = "api"
    command = [sys.executable, "-m", module, "--no-browser", f"--port={port}", *options]
    with log.open("w") as out:
        server = subprocess.Popen(
            command, cwd=folder, env=_environment(folder), stdout=out, stderr=subprocess.STDOUT
        )
        try:
            _wait_for(f"http://127.0.0.1:{port}/{alive}", server, log)
            yield f"http://127.0.0.1:{port}/{path}"
        finally:
            server.terminate()
            try:
                server.wait(300)
            except subprocess.TimeoutExpired:
                server.kill()


@contextlib.contextmanager
def static(folder: Path, headers: Mapping[str, str] | None = None) -> Iterator[str]:
    """The address of a folder on a static server on this machine, which sends these headers too."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def end_headers(self):
            for item in (headers or {}).items():
                self.send_header(*item)
            super().end_headers()

    handler = functools.partial(Quiet, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()


def available() -> bool:
    """Whether there are a browser and the means to drive it."""
    return chromium() is not None and importlib.util.find_spec("playwright") is not None


def require() -> None:
    """Skip a test where there is no browser; in CI that is a failure."""
    if not available():
        if os.environ.get("CI"):
            pytest.fail("CI must have a browser: .ci/chromium installs one")
        pytest.skip("needs Chromium and Playwright")


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


def slider(page, name: str):
    """A slider by its label."""
    return page.locator(".widget-hslider", has=page.get_by_text(name, exact=True))


def drag(page, name: str, share: float) -> None:
    """Drag the handle of a slider by mouse to a share of its way, in a few moves as a hand does."""
    slider(page, name).scroll_into_view_if_needed()
    handle = slider(page, name).locator(".noUi-handle").bounding_box()
    way = slider(page, name).locator(".noUi-base").bounding_box()
    page.mouse.move(handle["x"] + handle["width"] / 2, handle["y"] + handle["height"] / 2)
    page.mouse.down()
    page.mouse.move(way["x"] + share * way["width"], way["y"] + way["height"] / 2, steps=5)
    page.mouse.up()


def press(page, name: str, key: str, times: int) -> None:
    """Press a key on the handle of a slider, which needs no mouse."""
    slider(page, name).locator(".noUi-handle").focus()
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
    names = ["JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"]
    names += ["JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR"]
    own = {name: str(folder / name.lower()) for name in names}
    own |= {"JUPYTER_PATH": str(Path(sys.prefix) / "share" / "jupyter")}
    own |= {"JUPYTER_PREFER_ENV_PATH": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return os.environ | own


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
    if not available():
        sys.exit("no Chromium, or no Playwright: see .ci/chromium")
    print(chromium())
