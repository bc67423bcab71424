"""Work in threads: one piece beside whatever else is done, or a series of them ahead of who takes the results."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Part = TypeVar("Part")
Result = TypeVar("Result")


class Background(Generic[Result]):
    """Runs a function in a thread. Unlike an executor's, the thread never keeps an interrupted process from ending."""

    def __init__(self, work: Callable[[], Result]) -> None:
        self._result: Result | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(work,), daemon=True)
        self._thread.start()

    def _run(self, work: Callable[[], Result]) -> None:
        try:
            self._result = work()
        except BaseException as error:  # handed over to whoever asks for the result
            self._error = error

    def wait(self, seconds: float | None = None) -> bool:
        """Whether the work is over."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def result(self) -> Result:
        """Wait for the work, and give its result or raise its error."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._result  # type: ignore[return-value]


def ahead(work: Callable[[Part], Result], parts: Iterable[Part], threads: int) -> Iterator[Result]:
    """The parts' results in their order, up to as many as there are ``threads`` made before they are asked for."""
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[Result]] = deque()
        for part in parts:
            waiting.append(pool.submit(work, part))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
