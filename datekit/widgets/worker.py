"""A thread that keeps a controller at work; what the controls ask for comes first."""

from __future__ import annotations

import atexit
import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator

import torch

from .controller import Controller

QUICK = 20.0  # most seconds that an answer took, where its neighbours are computed unasked
REST = 0.4  # seconds without a change, after which they are


class Worker:
    """Runs a controller in a thread of its own, until it is asked for None.

    show: called in that thread where there is something new to be seen. fail: called with whatever
    a change, the work or `show` raises, and with None where a new attempt begins.
    """

    def __init__(self, controller: Controller, show: Callable, fail: Callable) -> None:
        self.controller, self.show, self.fail = controller, show, fail
        self._took = QUICK
        self._threads = torch.get_num_threads()
        self._asked: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        atexit.register(self._leave)  # a thread that Python ends in the middle of a step aborts

    @property
    def here(self) -> bool:
        """Whether the caller is the worker's own thread."""
        return threading.current_thread() is self._thread

    @property
    def asked(self) -> bool:
        """Whether a change waits in line."""
        return not self._asked.empty()

    def do(self, change: Callable[[], None] | None) -> None:
        """Put a change in line, before which the computation under way stops after its step."""
        self._asked.put(change)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until all is done; False if it took longer than `timeout` seconds."""
        done = self._asked.all_tasks_done
        with done:
            return done.wait_for(lambda: not self._asked.unfinished_tasks, timeout)

    def _leave(self) -> None:
        self.do(None)
        self._thread.join()

    def _run(self) -> None:
        change, last = True, True
        while change:
            change = self._next()
            try:
                if change:
                    with self._quickly():
                        last = self._serve(change, anew=last)
            finally:  # also where `fail` itself failed: that ends loudly, and nobody waits
                self._asked.task_done()
        atexit.unregister(self._leave)

    def _next(self) -> Callable[[], None] | None:
        """The next change in line; where it is long in coming, its answer may be ready before."""
        with contextlib.suppress(queue.Empty):
            return self._asked.get(timeout=REST)
        with self._quickly():
            self._look_ahead()
        return self._asked.get()

    @contextlib.contextmanager
    def _quickly(self) -> Iterator[None]:
        """In here a small model takes one thread, which for one picture is quicker than several."""
        if not self.controller.oracle:  # the models that have one are the small ones that ship
            yield
            return
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(self._threads)  # which is also what later threads begin with

    def _serve(self, change: Callable[[], None], *, anew: bool) -> bool:
        """Make a change; whether it was the last in line. An error stays until the line is done."""
        if anew:
            self.fail(None)
        last = not self.asked
        for act in [change, self.show, self._work] if last else [change]:
            try:
                act()
            except BaseException as error:  # it belongs on screen; the others are still made
                self.fail(error)
        return last

    def _work(self) -> None:
        began = time.monotonic()
        for _ in self.controller.work():
            self.show()
            if self.asked:
                return
        self._took = time.monotonic() - began
        self.show()

    def _look_ahead(self) -> None:
        """Compute what may be asked for next, until something is."""
        with contextlib.suppress(Exception):  # which comes again, and on screen, once it is asked
            for _ in self.controller.ahead() if self._took < QUICK else ():
                if self.asked:
                    return
