"""A thread that keeps a controller at work: what the controls ask for comes first, the latest wins, nothing is lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from weakref import WeakKeyDictionary

from .controller import Controller

_TURNS: WeakKeyDictionary = (
    WeakKeyDictionary()
)  # a lock for each backbone: explorers of one model take turns, as EBCA changes its layers


class Worker:
    """Runs a controller in a thread of its own, which ends when there is nothing left to do.

    show: called where what is to be seen has changed, in the same thread; fail: called with any exception that a change, the work or
    `show` raises, and with None where a new attempt begins; pace: least seconds between two steps, so that eyes can follow, and
    then each is shown; at 0 showing takes no more time than sampling does.
    """

    def __init__(
        self,
        controller: Controller,
        show: Callable[[], None],
        fail: Callable[[Exception | None], None],
        pace: float = 0.0,
    ) -> None:
        self.controller, self.show, self.fail, self.pace = controller, show, fail, pace
        self._asked: list[Callable[[], None]] = []
        self._lock, self._news, self._idle = threading.Lock(), threading.Event(), threading.Event()
        self._idle.set()
        self._thread: threading.Thread | None = None
        self._turn = _TURNS.setdefault(controller.backbone, threading.RLock())

    @property
    def here(self) -> bool:
        """Whether the caller is the worker's own thread."""
        return threading.current_thread() is self._thread

    @property
    def asked(self) -> bool:
        """Whether a change waits in line."""
        return self._news.is_set()

    def do(self, change: Callable[[], None]) -> None:
        """Put a change of the controller in line. A computation under way stops before its next unit, changes are made in order, and the
        work begins anew."""
        with self._lock:
            self._asked.append(change)
            self._news.set()
            self._idle.clear()
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="datekit explorer", daemon=True
                )
                self._thread.start()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until all is done; False if it took longer than `timeout` seconds."""
        return self._idle.wait(timeout)

    def _run(self) -> None:
        try:
            while asked := self._next():
                self._guarded(lambda: self.fail(None))
                for act in (*asked, self.show):
                    self._guarded(lambda act=act: self._taken(act))
                self._guarded(self._work)
        except (
            BaseException
        ):  # `fail` itself failed: let the thread end loudly, and let nobody wait for it
            self._over()
            raise

    def _next(self) -> list[Callable[[], None]]:
        with self._lock:
            asked, self._asked = self._asked, []
            self._news.clear()
            if not asked:
                self._over()
            return asked

    def _over(self) -> None:
        self._thread = None
        self._idle.set()

    def _work(self) -> None:
        sampling = showing = 0.0
        began = time.monotonic()
        units = self.controller.work()
        while unit := self._taken(lambda: next(units, None)):
            done = time.monotonic()
            sampling += done - began
            if unit != "look" and (
                self.pace or showing <= sampling or self.controller.head == self.controller.goal
            ):
                self._taken(self.show)
                showing += time.monotonic() - done
            if unit == "step" and self.pace:
                self._news.wait(max(0.0, began + self.pace - time.monotonic()))
            if self.asked:
                return
            began = time.monotonic()
        self._taken(self.show)

    def _taken(self, call: Callable):
        """What `call` returns, no other explorer of this model being at work meanwhile."""
        with self._turn:
            return call()

    def _guarded(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:  # whatever it is, it belongs on screen; the other changes in line are still made
            self.fail(error)
