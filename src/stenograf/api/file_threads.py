"""Threads for what waits for recordings.

An object store or a shared folder that answers slowly keeps those who send a recording or fetch one, and nobody else:
whoever asks for a task or a result has the other threads.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial, wraps
from typing import ParamSpec, TypeVar

from anyio import CapacityLimiter, to_thread

THREADS = CapacityLimiter(40)
"""As many as there are for all else."""

P = ParamSpec("P")
T = TypeVar("T")


async def run_with_files(function: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    """Call `function` in one of the threads."""
    return await to_thread.run_sync(partial(function, *arguments, **named), limiter=THREADS)


def with_files(endpoint: Callable[P, T]) -> Callable[P, Awaitable[T]]:
    """An endpoint that runs in one of the threads, instead of those that FastAPI takes."""

    @wraps(endpoint)
    async def run(*arguments: P.args, **named: P.kwargs) -> T:
        return await run_with_files(endpoint, *arguments, **named)

    return run


async def streamed(blocks: Iterator[bytes]) -> AsyncIterator[bytes]:
    """The blocks of a file, each of them read in one of the threads."""
    while block := await run_with_files(next, blocks, b""):
        yield block
