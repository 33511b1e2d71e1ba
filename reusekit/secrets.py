"""Passwords and tokens in the addresses of servers and stores, kept out of what is shown."""

import re
from collections.abc import Iterator
from urllib.parse import quote, unquote

HIDDEN = "***"

_SCHEME = re.compile(r"(?:sqlite|file)[\w+.-]*:/{0,2}|[A-Za-z][\w+.-]*:/*|//")
_ADDRESS = re.compile(r"(?:[A-Za-z][\w+.-]*:|(?<![:\w/])/)/[^\s'\"<>`]*")
_VALUE = re.compile(r"([?&;][\w.%\[\]-]+=)[^&;#\s'\"<>`)]*")
_SHORTEST = 4  # characters of a value that is looked for in a text, since "1" is everywhere


def shown(uri: str) -> str:
    """Return an address without its password, the same in every working folder.

    Example:
        >>> shown("postgresql://me:secret@host/runs?sslpassword=secret")
        'postgresql://***@host/runs?sslpassword=***'
        >>> shown("sqlite:////me@home/mlflow.db")
        'sqlite:////me@home/mlflow.db'
    """
    scheme, secret, rest = _parts(uri)
    # In the name of a file that SQLite opens, such a sign stands for itself.
    rest, sign, fragment = (rest, "", "") if uri.startswith("sqlite:") else rest.partition("#")
    rest, mark, query = rest.partition("?")
    query = "&".join(_without_value(pair) for pair in re.split("[&;]", query)) if query else ""
    rest = _VALUE.sub(rf"\1{HIDDEN}", rest)
    return "".join(
        (
            scheme,
            f"{HIDDEN}@" if secret else "",
            rest,
            mark,
            query,
            sign,
            HIDDEN if fragment else "",
        )
    )


def hide(text: str, *addresses: str) -> str:
    """Return a text without the secrets of any address in it.

    Args:
        text: Such as the message of another library's error.
        addresses: Those whose secrets may be in the text by themselves, too.

    Example:
        >>> hide("no driver for nope://me:secret@host/db", "nope://me:secret@host/db")
        'no driver for nope://***@host/db'
        >>> hide("models:/digits@champion cannot be loaded")
        'models:/digits@champion cannot be loaded'
        >>> hide("Max retries exceeded with url: /api?token=secret (by secret)", "http://host?secret")
        'Max retries exceeded with url: /api?token=*** (by ***)'
    """
    for address in filter(None, addresses):
        text = text.replace(address.rstrip("/"), shown(address).rstrip("/"))
    text = _ADDRESS.sub(lambda found: shown(found[0]), text)
    text = _VALUE.sub(rf"\1{HIDDEN}", text)
    secrets = {secret for address in addresses for secret in _secrets(address)}
    for secret in sorted(secrets, key=len, reverse=True):
        text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", HIDDEN, text)
    return text


def hide_in(error: BaseException, *addresses: str) -> None:
    """Take the secrets out of an error and of those that led to it, as a traceback shows them.

    Args:
        error: An error; the texts that it was made of are replaced.
        addresses: As for `hide`.
    """
    seen: set[int] = set()
    left: list[object] = [error]
    while left:
        found = left.pop()
        if not isinstance(found, BaseException) or id(found) in seen:
            continue
        seen.add(id(found))
        left += [found.__cause__, found.__context__, *found.args, *vars(found).values()]
        found.args = tuple(hide(a, *addresses) if isinstance(a, str) else a for a in found.args)
        for name in ("message", "_message", "reason"):
            if isinstance(vars(found).get(name), str):
                setattr(found, name, hide(vars(found)[name], *addresses))


def _parts(uri: str) -> tuple[str, str, str]:
    """Return an address as scheme, the part before its host's last @, and the rest.

    Drivers of databases take passwords with any sign in them, so that a slash does not end one.
    """
    if re.match("models:/[^/]", uri):  # a name and its alias
        return "", "", uri
    found = _SCHEME.match(uri)
    scheme = found[0] if found else ""
    rest = uri[len(scheme) :]
    host = re.split("[/?#]", rest, maxsplit=1)[0]
    if "@" in host and scheme:
        secret, _, behind = host.rpartition("@")
        return scheme, secret, behind + rest[len(host) :]
    if "@" in rest and ":" in host and not re.search(r":\d{1,5}$", host) and scheme:
        secret, _, behind = rest.rpartition("@")
        return scheme, secret, behind
    return scheme, "", rest


def _without_value(pair: str) -> str:
    name, equals, _ = pair.partition("=")
    return f"{name}={HIDDEN}" if equals and re.fullmatch(r"[\w.%\[\]-]+", name) else HIDDEN


def _secrets(uri: str) -> Iterator[str]:
    """Yield the secret parts of an address, as written, decoded and encoded."""
    _, secret, rest = _parts(uri)
    user, _, password = secret.partition(":")
    # A token may stand in place of a user, and a value may be a list of names and values again.
    values = [user, password]
    if not uri.startswith("sqlite:"):
        rest, _, fragment = rest.partition("#")
        values.append(fragment)
    pairs = re.split("[?&;]", rest)[1:]
    pairs += [inner for pair in pairs for inner in unquote(pair).split(";")]
    values += [pair.partition("=")[2] or pair for pair in pairs]
    values += [pair.rpartition("=")[2] for pair in pairs]
    for value in values:
        for written in {value, unquote(value), quote(value, safe="")}:
            if len(written) >= _SHORTEST or (written and written == password):
                yield written
