"""Names of files in headers, both ways: as clients send them with a form, and as they go out with a download."""

from __future__ import annotations

import re
import unicodedata
from urllib.parse import quote, unquote_to_bytes

MAX_NAME_LENGTH = 200
"""Characters of a file name that are kept."""

NAMELESS = "recording"
"""The name of a file of which no name is left."""

_PARAMETER = re.compile(r';\s*([^\s=;"]+)\s*=\s*(?:"((?:\\"|[^"])*)"(?=\s*(?:;|$))|([^;]*))')
_MEDIA_TYPE = re.compile(r"[\w!#$&^.+-]{1,60}/[\w!#$&^.+-]{1,100}", re.ASCII)
_UNPRINTABLE = {"Cc", "Cs", "Zl", "Zp"}
"""Unicode categories: control characters, surrogates, ends of lines and paragraphs."""

_REORDERING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Marks that show a name in another order than it has, so that what reads `exe.mp3` may be an .exe."""


def safe_name(raw: str | bytes) -> str:
    """A file name that can be shown and stored, from one that a client sent. Never raises.

    The last component of a path, whichever slash it has; no control characters and none that turn the order of
    letters; Unicode NFC; at most `MAX_NAME_LENGTH` characters, the suffix kept; `recording` where nothing is left.
    Bytes are UTF-8, or else Latin-1. Browsers send quotes and line ends in percents (HTML, 4.10.21.8).
    """
    text = raw if isinstance(raw, str) else _decoded(raw)
    return _clean(re.sub(r"%(22|0[AaDd])", lambda found: chr(int(found[1], 16)), text))


def content_disposition(filename: str, inline: bool = False, *, stem: str = "file") -> str:
    """The header's value by RFC 6266: the name in ASCII, and where that is not all of it, in UTF-8 too.

    `stem` stands for a name of which nothing is left in ASCII: some programs, curl among them, know only that one.
    The name is cleaned as in `safe_name`, so that no line end or quote of it gets into the header.
    """
    name = _clean(filename)
    letters = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    # RFC 6266, appendix D: some browsers undo percents and backslashes here.
    fallback = re.sub(r'["\\%/]', "_", letters).strip()
    if not re.match(r"[^.]*[A-Za-z0-9]", fallback):
        suffix = re.search(r"\.\w+$", fallback)
        fallback = stem + (suffix[0] if suffix else "")
    value = f'{"inline" if inline else "attachment"}; filename="{fallback}"'
    return value if fallback == name else f"{value}; filename*=UTF-8''{quote(name)}"


def parameters(header: str) -> tuple[str, dict[str, str]]:
    """A header's value in lower case and its parameters, each as it stands, its bytes as Latin-1.

    python_multipart's own function leaves out `filename*`. Of backslashes only those before a quote or another one
    are taken away: browsers send those of a path bare.
    """
    options: dict[str, str] = {}
    value, semicolon, rest = header.partition(";")
    for key, quoted, bare in _PARAMETER.findall(semicolon + rest):
        options.setdefault(key.lower(), re.sub(r'\\(["\\])', r"\1", quoted) if quoted else bare.strip(' \t"'))
    return value.strip().lower(), options


def field_name(options: dict[str, str]) -> str:
    """The name of a form's field, by the parameters of its Content-Disposition; empty where it has none."""
    return _decoded(_bytes(options.get("name", ""))).replace("%22", '"')


def sent_filename(options: dict[str, str]) -> str:
    """The safe name of a form's file, by the parameters of its Content-Disposition."""
    # .NET puts a name that is not ASCII into `filename` the way e-mails do, and properly only into `filename*`.
    name = _extended(options.get("filename*", ""))
    return safe_name(_bytes(options.get("filename", ""))) if name is None else _clean(name)


def content_type(sent: str) -> str:
    """A media type that can be stored and sent out again: `sent`, or application/octet-stream if it is none."""
    return sent if _MEDIA_TYPE.fullmatch(sent) else "application/octet-stream"


def _clean(text: str) -> str:
    name = re.split(r"[/\\]", text.rstrip("/\\"))[-1]
    name = "".join(c for c in name if unicodedata.category(c) not in _UNPRINTABLE and c not in _REORDERING)
    name = unicodedata.normalize("NFC", name).strip()
    if name in ("", ".", ".."):
        return NAMELESS
    if len(name) > MAX_NAME_LENGTH:
        stem, dot, suffix = name.rpartition(".")
        kept = dot + suffix if stem and len(suffix) <= 16 else ""
        name = name[: MAX_NAME_LENGTH - len(kept)].rstrip() + kept
    return name


def _extended(value: str) -> str | None:
    """The text of an RFC 8187 value such as `UTF-8''na%C3%AFve`; None where it is none."""
    charset, _, rest = value.partition("'")
    _, quote_mark, encoded = rest.partition("'")
    if not quote_mark or charset.lower() not in ("utf-8", "iso-8859-1"):
        return None
    try:
        return unquote_to_bytes(_bytes(encoded)).decode(charset)
    except UnicodeDecodeError:
        return None


def _bytes(text: str) -> bytes:
    return text.encode("latin-1", "replace")


def _decoded(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")
