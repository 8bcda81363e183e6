"""Go on with HTTP clients whose session this process does not know.

Clients of the protocol's older era hold a session id. After a restart of the server, or half an hour of silence, the
protocol's answer is 404, upon which they should initialise again. Most never do, and their tools stay dead. No tool
needs a session, so such a request is answered without one. What is lost are questions of the server to the client,
and cancelling a call by a notification.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_SESSION: Final = b"mcp-session-id"
_NOT_FOUND: Final = 404
_MAX_ENDED: Final = 10_000
"""Sessions that are remembered because their clients have ended them."""


def with_lost_sessions(known: Starlette, sessionless: Starlette) -> Starlette:
    """Return `known`, with `sessionless` to answer requests of sessions that `known` does not know."""

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with known.router.lifespan_context(known), sessionless.router.lifespan_context(sessionless):
            yield

    return Starlette(routes=[Mount("/", app=_Either(known, sessionless))], lifespan=lifespan)


class _Either:
    """Ask the first app, and the second one if the first does not know the request's session."""

    def __init__(self, known: ASGIApp, sessionless: ASGIApp) -> None:
        self._known = known
        self._sessionless = sessionless
        self._ended: dict[bytes, None] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. Its body is kept until the first app has begun to answer."""
        session = next((value for name, value in scope.get("headers", ()) if name == _SESSION), None)
        if scope["type"] != "http" or session is None or session in self._ended:
            await self._known(scope, receive, send)
            return
        if scope["method"] == "DELETE":
            self._ended[session] = None  # its client has ended it, and 404 is the answer from now on
            if len(self._ended) > _MAX_ENDED:
                del self._ended[next(iter(self._ended))]
        read: list[Message] = []
        status: int | None = None

        async def noting() -> Message:
            message = await receive()
            if status is None:
                read.append(message)
            return message

        async def unless_lost(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            if status != _NOT_FOUND:
                await send(message)

        await self._known(dict(scope), noting, unless_lost)
        if status == _NOT_FOUND:
            again = iter(read)

            async def replayed() -> Message:
                message = next(again, None)
                return await receive() if message is None else message

            await self._sessionless(scope, replayed, send)
