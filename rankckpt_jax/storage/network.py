"""Whether servers can be reached, before long attempts to use them."""

from __future__ import annotations

_TIMEOUT = 5.0  # Seconds.


def reachable(url: str) -> bool:
    """Return whether a server answers at an address, with whatever status."""
    import requests  # Here for start-up time.

    try:
        requests.head(url, timeout=_TIMEOUT, allow_redirects=False).close()
    except requests.RequestException:
        return False
    return True
