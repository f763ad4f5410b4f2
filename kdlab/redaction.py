"""Redaction of secrets: the one mask over everything that kdlab writes or prints.

A secret stands in an address: the name and password before its host, and the values of its query and of its
fragment, unless that is a path.
"""

from __future__ import annotations

import re
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

MASK = "***"
ADDRESS_START = re.compile(r"([a-z][a-z0-9+.-]+):/", re.IGNORECASE)
"""How an address begins, also one that a path library took a slash from; the group is its scheme."""
Plain = TypeVar("Plain")

_SCHEME = r"[a-z][a-z0-9+.-]{0,30}:"
# a password can hold blanks: from "name:" on, without a port or a blank behind it, an address goes to the
# last @ of its line that is near; a scheme may be missing, and then only a password tells an address
_ADDRESS = re.compile(
    rf"{_SCHEME}//(?:[^\s/?#@:\[\]]*:(?![\d\s])[^\s@]*\s[^\n]{{0,256}}@\S*|\S*)"
    r"|(?<![\w:/])//[^\s/?#@:\[\]]*:[^\s@]{1,256}@\S*"
    # what a path library made of one
    rf"|{_SCHEME}/(?=[^\s/@:]{{1,64}}:[^\s@]{{1,256}}@)\S*",
    re.IGNORECASE | re.ASCII,
)
_SETTING = re.compile(rf"((?:[\w.-]+=)?)({_SCHEME}//[^\n]*)", re.IGNORECASE | re.ASCII)
_VALUE = re.compile(r"([?&;#][^=?&;#\s]*=)[^&#\s\"'<>`]*|([?&])[^=?&;#\s\"'<>`]++(?!=)")
_WITH_BLANKS = re.compile(
    r"([?&;#]\w{0,30}(?:pass|pwd|secret|token)\w{0,30}=)(?!\*\*\*)[^&;#\n]*", re.IGNORECASE
)


def masked(value: Plain) -> Plain:
    """Text or plain data as others may read it; what holds no secret stays as it is."""
    found: Any = value
    match value:
        case str() if ":/" in value or "//" in value:
            whole = _SETTING.fullmatch(value)
            found = _ADDRESS.sub(lambda match: _masked(match[0]), value)
            if whole:
                found = whole[1] + _masked(_WITH_BLANKS.sub(rf"\1{MASK}", whole[2]))
        case dict():
            found = {masked(key): masked(inner) for key, inner in value.items()}
        case list() | tuple():
            found = type(value)(map(masked, value))
    return found  # type: ignore[no-any-return]


def holds_secret(value: Any) -> bool:
    """Whether something in text or plain data must not be read by others."""
    return bool(masked(value) != value)


def masked_of(text: str, address: str) -> str:
    """What a library said of an address, which may repeat a part of it alone: "nonnumeric port: 'pass'"."""
    _, _, hidden = address.partition("//")
    hidden, _, shown = hidden.rpartition("@")
    parts = re.split(r"[/?#@:]", hidden) + _values(shown)
    text = masked(text)
    for part in sorted({*parts, *map(unquote, parts)} - {""}, key=len, reverse=True):
        text = re.sub(rf"(?<!\w){re.escape(part)}(?!\w)", MASK, text)
    return text


def _values(address: str) -> list[str]:
    """Those of a query and a fragment; a word without "=" is one itself."""
    parts = urlsplit(f"//{address}")
    pairs = re.split("[&;]", parts.query) + re.findall("[^&;]*=[^&;]*", parts.fragment)
    return [value if equals else name for name, equals, value in (pair.partition("=") for pair in pairs)]


def _masked(address: str) -> str:
    scheme, slashes, rest = address.partition("//")
    if not slashes:
        scheme, _, rest = address.partition("/")
        return f"{scheme}/{MASK}@{_without_values(rest.rpartition('@')[2])}"
    try:
        parts = urlsplit(address)
        with_port = parts.port is not None
    except ValueError:
        # no port behind the colon: then it is a password, that ends at the last @ or was cut before it
        _, at, behind = rest.rpartition("@")
        return f"{scheme}//{MASK}{at}{_without_values(behind if at else '')}"
    # a password can hold a slash, and then what is before that looks like a host with its port
    if "@" in parts.netloc or (with_port and "@" in rest):
        rest = f"{MASK}@{rest.rpartition('@')[2]}"
    return f"{scheme}//{_without_values(rest)}"


def _without_values(rest: str) -> str:
    """What follows the scheme, without the values of its query; a path behind a # is one of a page."""
    before, route, path = rest.partition("#/")
    return _VALUE.sub(lambda match: f"{match[1] or match[2]}{MASK}", before) + route + path
