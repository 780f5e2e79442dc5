"""Stop signals that wait: what must not be cut in half is done to its end, then they are heard.

By handlers, not by the thread's signal mask: with a second thread in the process (a driver's, a library's) the
kernel would give the signal to that one, and Python would run its handler in the midst of things all the same.
"""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

from scheduler.orphans import STOP_SIGNALS

Handler = Callable[[int, FrameType | None], object] | int | signal.Handlers


class SignalsWaiting:
    """Within it, stop signals are noted; on leaving, and within ``heard``, they are heard as they were before.

    Those that are ignored stay ignored. In the main thread only, as everything about signals in Python.
    """

    def __init__(self) -> None:
        self._former: dict[signal.Signals, Handler] = {}
        self._noted: list[int] = []

    def __enter__(self) -> "SignalsWaiting":
        self._hold()
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._let_go()

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Within it they are heard; the first thing heard is what was noted."""
        try:
            self._let_go()
            yield
        finally:
            self._hold()

    def _hold(self) -> None:
        for number in STOP_SIGNALS:
            handler = signal.getsignal(number)
            if handler is not None and handler is not signal.SIG_IGN:
                self._former[number] = handler
                signal.signal(number, self._note)

    def _let_go(self) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

        self._former.clear()
        while self._noted:
            signal.raise_signal(self._noted.pop(0))

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self._noted.append(number)
