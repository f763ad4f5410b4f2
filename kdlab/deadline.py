"""A time limit for what a server does as a whole: timeouts of a connection begin anew with every byte."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

Answer = TypeVar("Answer")


def within(seconds: float, ask: Callable[[], Answer]) -> Answer:
    """What a server answers in so many seconds.

    Raises:
        TimeoutError: it has not.
        Exception: what asking raises.
    """
    done: list[Answer] = []
    raised: list[Exception] = []

    def run() -> None:
        try:
            done.append(ask())
        except Exception as error:
            raised.append(error)

    # a daemon: who does not wait for the answer must not wait for the thread at its end either
    thread = threading.Thread(target=run, name="kdlab-asks", daemon=True)
    thread.start()
    thread.join(seconds)
    if raised:
        raise raised[0]
    if not done:
        raise TimeoutError(f"no whole answer in {seconds:.0f} s")
    return done[0]
