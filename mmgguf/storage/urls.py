"""URLs as sources: tell them from paths, and hide the secrets in them.

A URL may carry credentials: a user and password in front of the host, or a signature in its query.  What is shown
(messages, ``repr``) has neither; what is pickled has no user, no password and no part of the query that looks like a
secret, nor have the options of a file system.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from ..errors import MissingExtraError

__all__ = ["hide", "is_url", "require_fsspec", "scheme_of", "shown_url", "split_query", "without_secrets"]

#: One scheme or several that are chained, as fsspec has it: ``simplecache::https://``.
_URL: Final = re.compile(r"(?:[a-z][a-z0-9+.-]+::)*(?P<scheme>[a-z][a-z0-9+.-]+)://", re.IGNORECASE | re.ASCII)
_USER: Final = re.compile(r"(?<=://)[^/?#]*@(?=[^/?#]*)")
_SECRET: Final = re.compile(
    r"token|secret|passw|pwd|pass$|sig$|signature|credential|auth|cookie|session|(^|[_-])key([_-]|$)|accesskey|apikey|"
    r"^sas|hmac|jwt|headers$|^cert|connection_string|x-amz|x-goog|^policy$|username|^user$|proxy",
    re.IGNORECASE,
)


def require_fsspec() -> Any:
    """The package, or the error that says how to get it."""
    try:
        import fsspec
        import fsspec.asyn
    except ImportError:
        raise MissingExtraError("fsspec", "remote") from None
    return fsspec


def is_url(text: str) -> bool:
    """Whether a text is a URL, and no path."""
    return _URL.match(text) is not None


def scheme_of(url: str) -> str:
    """The first scheme of a URL in lower case: ``simplecache`` of ``simplecache::https://host``."""
    return re.split(r"::|://", url, maxsplit=1)[0].lower()


def shown_url(url: str) -> str:
    """A URL as messages show it: without user, password, query and fragment."""
    text, mark, _ = _USER.sub("", url).partition("?")
    return f"{text}?…" if mark else text.partition("#")[0]


def hide(text: str, url: str) -> str:
    """Another program's message without what is secret in a URL."""
    text = text.replace(url, shown_url(url))
    text = _USER.sub("", text)
    for value in _secrets(url):
        text = text.replace(value, "…")
    # Queries of other URLs, which a redirect may have led to.
    return re.sub(r"(://[^\s?'\"]*)\?[^\s'\"]*", r"\1?…", text)


def _secrets(url: str) -> list[str]:
    user = _USER.search(url)
    found = [] if user is None else user.group()[:-1].split(":", 1)
    _, _, query = url.partition("?")
    found += [value for pair in re.split("[&;#]", query) for value in pair.split("=", 1)[1:]]
    return sorted({value for value in found if len(value) > 3}, key=len, reverse=True)


def without_secrets(url: str, options: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """A URL and options of a file system that may leave this process."""
    text, mark, query = _USER.sub("", url).partition("?")
    kept = [pair for pair in query.split("&") if pair and not _SECRET.search(pair.split("=", 1)[0])]
    return (f"{text}?{'&'.join(kept)}" if mark and kept else text), _clean(options)


def _clean(options: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _clean(value) if isinstance(value, Mapping) else value
        for name, value in options.items()
        if not _SECRET.search(str(name))
    }


def split_query(location: str) -> tuple[str, str]:
    """A location in two: up to the end of its path, and the query of a URL."""
    if not is_url(location):
        return location, ""
    path, mark, query = location.partition("?")
    return path, mark + query
