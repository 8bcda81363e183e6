"""One table of what can go wrong with Redis, and what its administrator should do about it.

The URL may hold a password, so neither it nor the client's own words, which repeat parts of it, are in any message.
Nor are the arguments of a refused command, which are KV bytes.
"""

import os
import ssl
from typing import Final

import redis
from redis import exceptions as replies

from cwm_connector.core.errors import Code, CWMError

SETTING: Final = "CWM_REDIS_URL"

_SEVERAL_NODES: Final = "is one node of a cluster of several, which CWM can't use; give a server that has all keys"
_REFUSED: Final[dict[str, str]] = {
    "LOADING": "is still loading its data; try again in a while",
    "MASTERDOWN": "is a replica that has lost its primary; give the primary's address",
    "READONLY": "is a read-only replica; give the primary's address",
    "MISCONF": "can't write its own files and refuses all changes; check its disk and its log, then try again",
    "NOPERM": "refuses a command that CWM needs; allow its user ~* and +@all, or what docs/redis.md lists",
    "MOVED": _SEVERAL_NODES,
    "ASK": _SEVERAL_NODES,
    "CLUSTERDOWN": "is a cluster that does not serve all keys; repair it, then try again",
}
"""By the first word of the server's reply."""


class NoReply(CWMError):
    """`Code.BACKEND` after a command was sent: it may have been executed, may be executed later, or never."""

    def __init__(self, reason: str, *, timed_out: bool = False) -> None:
        super().__init__(Code.BACKEND, no_answer(reason).message)
        self.timed_out = timed_out


def refusal(problem: Exception) -> CWMError:
    """Return the error to raise for an exception of the client or an error reply of the server."""
    if isinstance(problem, replies.OutOfMemoryError) or "'maxmemory'" in str(problem):  # the word alone in a script
        return CWMError(
            Code.QUOTA,
            "the Redis server is at its memory limit and refuses new data; delete windows or raise its maxmemory, "
            "then try again",
        )
    if isinstance(problem, replies.AuthenticationError):
        return unfit(f"refuses the user or the password; correct them in {SETTING}")
    if isinstance(problem, replies.BusyLoadingError):
        return unfit(_REFUSED["LOADING"])
    if isinstance(problem, redis.ResponseError):
        word = _first_word(problem)
        return unfit(_REFUSED.get(word, f"refuses a command ({word}); check its state and its log, then try again"))
    if str(problem) == "max number of clients reached":
        return unfit("has no connection left; raise its maxclients, then try again")
    # redis-py raises its own error while it handles the system's.
    cause = problem if isinstance(problem, OSError) else problem.__context__
    if isinstance(cause, ssl.SSLCertVerificationError):
        return unfit(f"has an untrusted certificate; name its authority's file in {SETTING} (?ssl_ca_certs=…)")
    if isinstance(problem, ValueError | TypeError):
        return unfit(f"can't be connected to as {SETTING} says; correct its host and its options")
    return no_answer(_silence(problem))


def lost_reply(problem: Exception) -> NoReply:
    """Return the error to raise when the connection broke, or the time ran out, after a command was sent."""
    return NoReply(_silence(problem), timed_out=is_timeout(problem))


def no_answer(reason: str) -> CWMError:
    """Return the error for a server that does not answer. `reason` is shown in brackets."""
    return unfit(f"does not answer ({reason}); check it and {SETTING}, then try again")


def unfit(fault: str) -> CWMError:
    """Return a `Code.BACKEND` error that says what is wrong with the server and how to correct it."""
    return CWMError(Code.BACKEND, f"the Redis server {fault}")


def bad_url() -> CWMError:
    """Return the error for a URL that redis-py does not accept."""
    return CWMError(
        Code.ARGUMENT,
        f"{SETTING} is not a Redis URL, or has an option that redis-py does not know; write it as in "
        "redis://user:password@host:6379/0",
    )


def is_timeout(problem: BaseException) -> bool:
    """Return True if the time ran out, in redis-py or in a socket."""
    return isinstance(problem, redis.TimeoutError | TimeoutError)


def _silence(problem: Exception) -> str:
    if is_timeout(problem):
        return "no reply in time"
    cause = problem if isinstance(problem, OSError) else problem.__context__
    if isinstance(cause, ssl.SSLError):
        return "the TLS handshake failed"
    if isinstance(cause, OSError) and cause.errno is not None:
        return os.strerror(cause.errno) if cause.errno > 0 else "its host name can't be resolved"
    return "it closed the connection"


def _first_word(problem: redis.ResponseError) -> str:
    """Return the error's kind. redis-py moves it from some errors' texts to `status_code`."""
    word = getattr(problem, "status_code", None) or str(problem).split(" ", 1)[0]
    return word if word.isalpha() and word.isupper() else "an error"
