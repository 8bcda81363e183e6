"""What a failure of Redis means for whoever runs it. The URL may hold a password, so neither it nor the client's own
words, which repeat parts of it, are in any message; nor are a refused command's arguments, which are KV bytes.
"""

import os
import ssl
from typing import Final

import redis
from redis import exceptions as replies

from cwm_connector.core.errors import Code, CWMError

SETTING: Final = "CWM_REDIS_URL"

_REFUSED: Final[dict[str, str]] = {
    "LOADING": "is still loading its data; try again in a while",
    "MASTERDOWN": "is a replica that has lost its primary; give the primary's address",
    "READONLY": "is a read-only replica; give the primary's address",
    "MISCONF": "can't write its own files and refuses to change anything; check its disk and its log, then try again",
    "NOPERM": "refuses a command that the tier needs; allow its user ~* and +@all, or what docs/redis.md lists",
    "MOVED": "is one node of a cluster of several, which the tier can't use; give a server that has all keys",
    "ASK": "is one node of a cluster of several, which the tier can't use; give a server that has all keys",
    "CLUSTERDOWN": "is a cluster that does not serve all keys; repair it, then try again",
}
"""By the first word of the server's reply."""


def refusal(problem: Exception) -> CWMError:
    """The error to raise for what the client, or the server's reply, raised."""
    if isinstance(problem, replies.OutOfMemoryError):
        return CWMError(
            Code.QUOTA,
            "the Redis server is at its memory limit and refuses chunks; delete windows or raise its maxmemory, "
            "then try again",
        )
    if isinstance(problem, replies.AuthenticationError):
        return _backend(f"refuses the user or the password; correct them in {SETTING}")
    if isinstance(problem, replies.BusyLoadingError):
        return _backend(_REFUSED["LOADING"])
    if isinstance(problem, redis.ResponseError):
        word = _first_word(problem)
        return _backend(_REFUSED.get(word, f"refuses a command ({word}); check its state and its log, then try again"))
    return _silence(problem)


def silence(reason: str) -> CWMError:
    return _backend(f"does not answer ({reason}); check it and {SETTING}, then try again")


def _silence(problem: Exception) -> CWMError:
    if isinstance(problem, redis.TimeoutError | TimeoutError):
        return silence("no reply in time")
    if str(problem) == "max number of clients reached":
        return _backend("has no connection left; raise its maxclients, then try again")
    # redis-py raises its own error while it handles the system's.
    cause = problem if isinstance(problem, OSError) else problem.__context__
    if isinstance(cause, ssl.SSLCertVerificationError):
        return _backend(
            f"shows a certificate that is not accepted; name its authority's file in {SETTING} (?ssl_ca_certs=…)"
        )
    if isinstance(cause, ssl.SSLError):
        return silence("TLS is not spoken as asked")
    if isinstance(cause, OSError) and cause.errno is not None:
        return silence(os.strerror(cause.errno) if cause.errno > 0 else "its name is not known")
    if isinstance(problem, ValueError | TypeError):
        return _backend(f"can't be connected to as {SETTING} says; correct its host and its options")
    return silence("it closed the connection")


def _first_word(problem: redis.ResponseError) -> str:
    """redis-py takes the word away from some errors and keeps it in `status_code`."""
    word = getattr(problem, "status_code", None) or str(problem).split(" ", 1)[0]
    return word if word.isalpha() and word.isupper() else "an error"


def _backend(what: str) -> CWMError:
    return CWMError(Code.BACKEND, f"the Redis server {what}")
