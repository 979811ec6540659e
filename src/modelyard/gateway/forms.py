"""Bodies of HTML forms, sent whole: `application/x-www-form-urlencoded` and `multipart/form-data`.

Called by the translation lane. Bounded by the body's own bound, and by how many fields there may be.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from email.message import Message
from urllib.parse import unquote_to_bytes

from modelyard.errors import InvalidRequest
from modelyard.gateway.fields import refuse

URLENCODED = "application/x-www-form-urlencoded"
MULTIPART = "multipart/form-data"
MOST_FIELDS = 2000


@dataclass(frozen=True, slots=True)
class Upload:
    """A file of a form; `name` is what the client calls it."""

    name: str
    data: bytes


@dataclass(slots=True)
class Form:
    fields: dict[str, list[str]] = field(default_factory=dict)
    files: dict[str, Upload] = field(default_factory=dict)

    def add(self, name: str, value: str) -> None:
        self.fields.setdefault(name, []).append(value)


def media_of(content_type: bytes | None) -> tuple[str, str]:
    """The media type of a body, in lower case, and its `boundary`; empty where it is not said."""
    head = Message()
    head["content-type"] = (content_type or b"").decode("latin-1")
    boundary = head.get_param("boundary", "")
    kind = (content_type or b"").partition(b";")[0].strip().lower().decode("latin-1")
    return kind, boundary if isinstance(boundary, str) else ""


def urlencoded(data: bytes) -> Form:
    """The fields of a query or of an urlencoded body. Raises InvalidRequest."""
    form = Form()
    pairs = data.split(b"&", MOST_FIELDS)
    _check_count(len(pairs))
    for pair in pairs:
        if pair:
            first, _, second = pair.replace(b"+", b" ").partition(b"=")
            name = _text(unquote_to_bytes(first), "body")
            form.add(name, _text(unquote_to_bytes(second), name))
    return form


def multipart(data: bytes, boundary: str) -> Form:
    """The fields and files of a multipart body. Raises InvalidRequest."""
    if not boundary:
        raise InvalidRequest("The body is multipart/form-data without a `boundary` in its content type.")
    mark = b"\r\n--" + boundary.encode("latin-1")
    _, *parts = (b"\r\n" + data).split(mark, MOST_FIELDS + 2)
    _check_count(len(parts))
    if not parts or not parts[-1].startswith(b"--"):
        raise InvalidRequest("The body's last part does not end: it is cut, or its `boundary` is another.")
    form = Form()
    for part in parts[:-1]:
        head, found, content = part.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        if not found:
            raise InvalidRequest("A part of the body has no head that ends.")
        name, file = _disposition(head)
        if file is None:
            form.add(name, _text(content, name))
        else:
            form.files[name] = Upload(file, content)
    return form


def _disposition(head: bytes) -> tuple[str, str | None]:
    """The name of a part, and of its file if it is one."""
    for line in head.split(b"\r\n"):
        key, _, value = line.partition(b":")
        if key.strip().lower() == b"content-disposition":
            message = Message()
            message["content-disposition"] = _text(value.strip(), "content-disposition")
            name = message.get_param("name", header="content-disposition")
            if isinstance(name, str):
                return name, message.get_filename()
    raise InvalidRequest("A part of the body has no `Content-Disposition: form-data; name=…`.")


def _check_count(count: int) -> None:
    if count > MOST_FIELDS:
        raise InvalidRequest(f"The form has more than {MOST_FIELDS} fields.")


def _text(data: bytes, name: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as wrong:
        refuse(name, f"is not UTF-8: its byte {wrong.start + 1} is wrong; send UTF-8")
