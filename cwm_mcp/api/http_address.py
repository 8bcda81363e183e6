"""Where a server of ours listens for HTTP."""

import ipaddress
import socket
from dataclasses import dataclass

from cwm_connector.core.errors import Code, CWMError


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen."""

    host: str
    port: int

    @classmethod
    def of(cls, text: str) -> "Address":
        """Parse [HOST:]PORT, with an IPv6 address in brackets. Raises: `Code.ARGUMENT`."""
        host, _, port = text.rpartition(":")
        if not (port.isascii() and port.isdigit() and int(port) < 1 << 16) or (":" in host and host[0] != "["):
            raise CWMError(Code.ARGUMENT, f"{text!r} is no address; write 8765 or 127.0.0.1:8765")
        return cls(host.strip("[]") or "127.0.0.1", int(port))

    @property
    def is_loopback(self) -> bool:
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def is_any(self) -> bool:
        try:
            return ipaddress.ip_address(self.host).is_unspecified
        except ValueError:
            return False

    def listen(self) -> socket.socket:
        """Return a listening socket. Raises: `Code.ARGUMENT` for an address that is taken or not this machine's."""
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        try:
            return socket.create_server((self.host, self.port), family=family)
        except OSError as problem:
            reason = problem.strerror or str(problem)
            raise CWMError(
                Code.ARGUMENT, f"{self.host} port {self.port} can't be listened on ({reason}); choose another"
            ) from None


def bracketed(host: str) -> str:
    """Return the host as it is written in a URL."""
    return f"[{host}]" if ":" in host else host
