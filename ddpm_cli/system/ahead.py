"""Work done one step ahead by a thread, so that what waits for a disk or a processor is there when it is asked for."""

from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Ahead(Generic[Key, Value]):
    """make(key), where the value of next_of(key) is already being made while that of `key` is used.

    Whatever is asked for, the values are those of `make`, which must depend on its key alone and be free to run in
    another thread; another order than expected only costs what was made in vain. An error is raised when that value is
    asked for. slot: keys with the same slot follow one another; of each one value at most is made ahead.
    """

    def __init__(
        self,
        make: Callable[[Key], Value],
        next_of: Callable[[Key], Key],
        slot: Callable[[Key], Hashable] = lambda _: None,
    ):
        self._make, self._next_of, self._slot = make, next_of, slot
        self._coming: dict[Hashable, tuple[Key, Future[Value]]] = {}
        self._thread = ThreadPoolExecutor(1, "ahead")  # which ends when nobody holds this object any more

    def __call__(self, key: Key) -> Value:
        slot = self._slot(key)
        expected, future = self._coming.pop(slot, (None, None))
        if future is not None and expected == key:
            value = future.result()
        else:
            if future is not None:
                future.cancel()
            value = self._make(key)
        following = self._next_of(key)
        self._coming[slot] = following, self._thread.submit(self._make, following)
        return value
