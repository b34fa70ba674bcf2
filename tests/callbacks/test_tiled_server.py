"""What the embedded catalog's server does beside Tiled."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Annotated, Any

import pytest
from fastapi import Depends, FastAPI, Header
from fastapi.dependencies import utils
from httpx import ASGITransport, AsyncClient

from haltere.callbacks.tiled_server import remember_dependants


def who() -> str:
    return "nobody"


def greeting(name: Annotated[str, Depends(who)], voice: Annotated[str, Header()] = "") -> str:
    return f"hello, {name}{voice}"


def test_what_a_dependency_depends_on_is_worked_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    worked_out: list[Callable[..., Any]] = []
    work_out = utils.get_dependant

    def count(**of: Any) -> Any:
        worked_out.append(of["call"])
        return work_out(**of)

    monkeypatch.setattr(utils, "get_dependant", count)
    app = FastAPI()

    @app.get("/")
    def answer(said: Annotated[str, Depends(greeting)]) -> str:
        return said

    app.dependency_overrides[who] = lambda: "you"
    remember_dependants()
    worked_out.clear()

    async def ask() -> list[str]:
        async with AsyncClient(transport=ASGITransport(app), base_url="http://here") as client:
            return [(await client.get("/", headers={"voice": voice})).json() for voice in "!?!"]

    assert asyncio.run(ask()) == ["hello, you!", "hello, you?", "hello, you!"]  # a request's values are its own
    assert len(worked_out) == len(set(worked_out)) == 3  # the greeting, who, and who is asked instead
