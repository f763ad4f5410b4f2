"""Redaction of secrets: the one mask over everything that kdlab writes or prints.

A secret stands in an address: the name and password before its host, and the values of its query.
"""

from __future__ import annotations

import re
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

MASK = "***"
Plain = TypeVar("Plain")

# a password can hold blanks: from "name:" without a port on, the address goes to the last @ of its line
_ADDRESS = re.compile(
    r"[a-z][a-z0-9+.-]{0,30}://(?:[^\s/?#@:\[\]]*:(?!\d)[^\s@]*\s[^\n]*@\S*|\S*)", re.IGNORECASE | re.ASCII
)
_SETTING = re.compile(r"((?:[\w.-]+=)?)([a-z][a-z0-9+.-]{0,30}://[^\n]*)", re.IGNORECASE | re.ASCII)
_VALUE = re.compile(r"([?&;][^=&;#\s]*=)[^&;#\s\"'<>`]*")


def masked(value: Plain) -> Plain:
    """Text or plain data as others may read it; what holds no secret stays as it is."""
    found: Any = value
    match value:
        case str() if "://" in value:
            whole = _SETTING.fullmatch(value)
            found = _ADDRESS.sub(lambda match: _masked(match[0]), value)
            found = whole[1] + _masked(whole[2]) if whole else found
        case dict():
            found = {key: masked(inner) for key, inner in value.items()}
        case list() | tuple():
            found = type(value)(map(masked, value))
    return found  # type: ignore[no-any-return]


def holds_secret(value: Any) -> bool:
    """Whether something in text or plain data must not be read by others."""
    return masked(value) != value


def masked_of(text: str, address: str) -> str:
    """What a library said of an address, which may repeat a part of it alone: "nonnumeric port: 'pass'"."""
    _, _, hidden = address.partition("://")
    hidden, _, shown = hidden.rpartition("@")
    parts = re.split(r"[/?#@:]", hidden) + [value for _, _, value in _pairs(shown)]
    text = masked(text)
    for part in sorted({*parts, *map(unquote, parts)} - {""}, key=len, reverse=True):
        text = re.sub(rf"(?<!\w){re.escape(part)}(?!\w)", MASK, text)
    return text


def _pairs(address: str) -> list[tuple[str, str, str]]:
    return [pair.partition("=") for pair in re.split("[&;]", urlsplit(f"//{address}").query)]


def _masked(address: str) -> str:
    scheme, _, rest = address.partition("://")
    try:
        parts = urlsplit(address)
        with_port = parts.port is not None
    except ValueError:
        # no port behind the colon: then it is a password, that ends at the last @ or was cut before it
        _, at, behind = rest.rpartition("@")
        return f"{scheme}://{MASK}{at}{_without_values(behind if at else '')}"
    # a password can hold a slash, and then what is before that looks like a host with its port
    if "@" in parts.netloc or (with_port and "@" in rest):
        rest = f"{MASK}@{rest.rpartition('@')[2]}"
    return f"{scheme}://{_without_values(rest)}"


def _without_values(rest: str) -> str:
    """What follows the scheme, without the values of its query; no server is told what is behind a #."""
    before, hash_sign, fragment = rest.partition("#")
    return _VALUE.sub(rf"\1{MASK}", before) + hash_sign + fragment
