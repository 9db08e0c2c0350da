"""Checks on the address of a server. This module imports only the standard library, so that spec can use it."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass


def holds_credentials(url: str) -> bool:
    """Return True if ``url`` has a user name or a password.

    An @ may be part of a path. But a password may contain a slash, and what is before it then looks like a host and a
    port that is not a number.
    """
    after_scheme = url.partition("://")[2] or url  # somebody forgot the scheme
    authority = re.split(r"[/?#]", after_scheme, maxsplit=1)[0]
    has_port = ":" in authority and not authority.endswith("]")  # brackets hold an IPv6 address
    odd_port = has_port and not authority.rpartition(":")[2].isdigit()
    return "@" in authority or (odd_port and "@" in after_scheme)


def is_loopback(url: str) -> bool:
    """Return True if ``url`` is an address of this machine: localhost, 127.0.0.0/8 or ::1."""
    host = (urlsplit(url).hostname or "").rstrip(".")
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:  # a name, not a number
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def proxy_for(url: str) -> str | None:
    """Return the proxy for ``url`` that the environment names, or None.

    It reads HTTP_PROXY, HTTPS_PROXY and NO_PROXY, in upper or lower case, but not ALL_PROXY. A loopback address has no
    proxy: the proxy would look for the server on its own machine.
    """
    if is_loopback(url):
        return None
    address = urlsplit(url)
    proxy = None if proxy_bypass(address.netloc) else getproxies().get(address.scheme)
    return f"http://{proxy}" if proxy and "://" not in proxy else proxy
