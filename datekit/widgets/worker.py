"""A thread that keeps a controller at work; what the controls ask for comes first."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from .controller import Controller

PACE = 0.15  # least seconds a step while playing, so that eyes can follow


class Worker:
    """Runs a controller in a thread of its own, which ends when there is nothing left to do.

    show: called in that thread where there is something new to be seen. fail: called with any
    exception that a change, the work or `show` raises, and with None where a new attempt begins.
    """

    def __init__(
        self,
        controller: Controller,
        show: Callable[[], None],
        fail: Callable[[Exception | None], None],
    ) -> None:
        self.controller, self.show, self.fail = controller, show, fail
        self._asked: list[Callable[[], None]] = []
        self._lock, self._news, self._idle = threading.Lock(), threading.Event(), threading.Event()
        self._idle.set()
        self._thread: threading.Thread | None = None

    @property
    def here(self) -> bool:
        """Whether the caller is the worker's own thread."""
        return threading.current_thread() is self._thread

    @property
    def asked(self) -> bool:
        """Whether a change waits in line."""
        return self._news.is_set()

    def do(self, change: Callable[[], None]) -> None:
        """Put a change in line, before which the computation under way stops after its step."""
        with self._lock:
            self._asked.append(change)
            self._news.set()
            self._idle.clear()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, daemon=True)
                self._thread.start()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until all is done; False if it took longer than `timeout` seconds."""
        return self._idle.wait(timeout)

    def _run(self) -> None:
        try:
            while asked := self._next():
                self.fail(None)
                for act in (*asked, self.show, self._work):
                    try:
                        act()
                    except Exception as error:  # it belongs on screen; the others are still made
                        self.fail(error)
        except BaseException:  # `fail` itself failed: end loudly, and let nobody wait
            self._end()
            raise

    def _next(self) -> list[Callable[[], None]]:
        with self._lock:
            asked, self._asked = self._asked, []
            self._news.clear()
            if not asked:
                self._end()
            return asked

    def _end(self) -> None:
        self._thread = None
        self._idle.set()

    def _work(self) -> None:
        began = time.monotonic()
        for _ in self.controller.work():
            self.show()
            if self.controller.playing:
                self._news.wait(max(0.0, began + PACE - time.monotonic()))
            if self.asked:
                return
            began = time.monotonic()
