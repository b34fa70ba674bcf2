"""The processes that measure: a module of this folder each, which is asked in JSON and answers in lines of JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from ...workers.errors import PoolError
from ...workers.pool.local import ONE_THREAD


class Process:
    """One that measures: it was asked for something, and may be asked for more (:mod:`.turns`)."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def tell(self, command: dict[str, Any]) -> None:
        """Ask for something."""
        print(json.dumps(command), file=self._pipe(self._process.stdin), flush=True)

    def answer(self) -> dict[str, Any]:
        """Return what it says next.

        Raises
        ------
        PoolError
            It died.
        """
        line = self._pipe(self._process.stdout).readline()
        if not line:
            raise PoolError(f"a process that measures ended with exit code {self._process.wait()}; see above why")
        said: dict[str, Any] = json.loads(line)
        return said

    def ask(self, command: dict[str, Any]) -> dict[str, Any]:
        """Ask, and return the answer."""
        self.tell(command)
        return self.answer()

    def answers(self) -> Iterator[dict[str, Any]]:
        """Yield what it says until it ends.

        Raises
        ------
        PoolError
            It ended with an error.
        """
        for line in self._pipe(self._process.stdout):
            yield json.loads(line)
        if code := self._process.wait():
            raise PoolError(f"a process that measures ended with exit code {code}; see above why")

    @staticmethod
    def _pipe(pipe: IO[str] | None) -> IO[str]:
        assert pipe is not None
        return pipe


@contextmanager
def start(module: str, question: dict[str, Any], environment: dict[str, str] | None = None) -> Iterator[Process]:
    """Start a module of this folder, its libraries told to use one thread; end it after use."""
    with subprocess.Popen(
        [sys.executable, "-m", f"{__package__}.{module}", json.dumps(question)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **ONE_THREAD, **(environment or {})},
    ) as process:
        try:
            yield Process(process)
        finally:
            process.kill()
