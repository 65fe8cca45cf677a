"""Takes passwords and keys out of what is written down.

An address may carry a password (https://user:password@host/...) or be signed
(?X-Goog-Signature=...). Downloads need all of it; logs, errors, manifests and reports,
which people pass on, get it without. `redact` is called where text leaves the program:
by `errors.InputError`, by the handler of logs and of tracebacks, and for what is kept
of a configuration and of a download. Variables of the environment are written nowhere.
"""

import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "[hidden]"
"""What stands in place of a secret."""

# Up to the last @ of the host's part, for passwords may hold others.
_USER = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)[^\s/?#'\"<>,]*@")
_QUERY = re.compile(r"\?([^\s?#'\"<>=&]+=[^\s#'\"<>]*)")
# What a query may say aloud.
_HARMLESS = ("tf-hub-format=compressed",)
_SECRET_NAMES = re.compile(
    r"(?i)(password|passwd|passphrase|secret|credential|api_?key|access_?key"
    r"|private_?key|auth_?token|access_?token|(^|_)token$|authorization)"
)


def redact(value: Any) -> Any:
    """Hides the secrets in a text, or in the texts of nested plain data.

    User and password of an address go, and what its query gives (all of it: which part
    is the key differs by service); so does any text whose field is called a password,
    token or key.

    Example:
      >>> redact("https://me:pass@host/a.zip?Expires=9&Signature=x: not found")
      'https://[hidden]@host/a.zip?Expires=[hidden]&Signature=[hidden] not found'
      >>> redact({"api_key": "x", "mirrors": ("https://t0ken@host/{path}",)})
      {'api_key': '[hidden]', 'mirrors': ('https://[hidden]@host/{path}',)}

    Args:
      value: Text; mappings, lists and tuples; anything else is returned as it is.
    """
    if isinstance(value, str):
        return _QUERY.sub(_hide_query, _USER.sub(rf"\1{HIDDEN}@", value))
    if isinstance(value, Mapping):
        return {
            redact(key): HIDDEN
            if isinstance(inner, str) and inner and _SECRET_NAMES.search(str(key))
            else redact(inner)
            for key, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return type(value)([redact(inner) for inner in value])
    return value


def _hide_query(match: re.Match[str]) -> str:
    pairs = (
        pair if pair in _HARMLESS else f"{pair.partition('=')[0]}={HIDDEN}"
        for pair in match[1].split("&")
    )
    return "?" + "&".join(pairs)
