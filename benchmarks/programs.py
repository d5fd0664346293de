"""What programs cost: the time until a result is ready, and that of compilation."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax


def timed(action: Callable[[], Any]) -> tuple[Any, float]:
    """The result of an action, and the milliseconds until all of it was ready."""
    start = time.perf_counter()
    result = jax.block_until_ready(action())
    return result, 1e3 * (time.perf_counter() - start)


@contextlib.contextmanager
def compilation() -> Iterator[list[float]]:
    """Seconds of each program that is compiled within the context."""
    seconds: list[float] = []

    def hear(event: str, duration_secs: float, **_: Any) -> None:
        if event.endswith("backend_compile_duration"):
            seconds.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(hear)
    try:
        yield seconds
    finally:
        jax.monitoring.unregister_event_duration_listener(hear)
