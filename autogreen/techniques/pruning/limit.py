"""A limit on the time that code in this thread may take, for libraries that can loop for ever."""

import ctypes
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from autogreen.errors import RefusedError


class _TimeUpError(BaseException):  # no Exception: a library that catches those must not swallow it
    pass


@contextmanager
def limit(seconds: float, told: Callable[[FrameType | None], str]) -> Iterator[None]:
    """Stop the code inside after so many seconds, between two steps of Python, in whatever thread it runs.

    A signal would reach the main thread only, and a forked child would inherit locks of torch's threads. told: makes
    the message, given the frame in which the time was up.

    Raises:
        RefusedError: the time is up.
    """
    thread, done, lock = threading.get_ident(), threading.Event(), threading.Lock()
    messages: list[str] = []

    def watch() -> None:
        wait = seconds
        while not done.wait(wait):
            with lock:
                if not done.is_set():
                    messages.append(told(sys._current_frames().get(thread)))  # while it still stands there
                    _raise_in(thread, _TimeUpError)
            wait = 1.0  # once more, where it was swallowed

    watcher = threading.Thread(target=watch, name="time limit", daemon=True)
    watcher.start()
    try:
        try:
            yield
        finally:
            with lock:
                done.set()
                _raise_in(thread, None)  # what has not arrived yet does so no more
    except _TimeUpError:
        raise RefusedError(messages[0]) from None
    finally:
        done.set()
        watcher.join()


def _raise_in(thread: int, error: type[BaseException] | None) -> None:
    pending = ctypes.py_object(error) if error is not None else None
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), pending)
