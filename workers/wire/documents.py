"""The messages between the recorder and the sessions that follow processed runs.

============  =====================  =======================================================================
message       direction              says
============  =====================  =======================================================================
Fetch         session → recorder     I have these runs' documents up to here: send what comes next
Documents     recorder → session     what comes next, at once if there is any, else when there is, else empty
============  =====================  =======================================================================

One answer per question, however late (long poll): a session that doesn't ask gets nothing, so nothing piles up for it.
Each session has its own cursors, and keeps them itself. A run's documents have the same numbers for ever, so neither
end's restart makes one come twice or not at all.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from ..errors import WireError
from .messages import Index, Message, Name, Serial, Text, Uid

MAX_DOCUMENTS: Final = 1000
"""Most documents in an answer."""

MAX_ANSWER: Final = 32 << 20
"""Most bytes in an answer."""

FULL_ANSWER: Final = 1 << 20
"""So many bytes of documents are enough for one answer, the one that passes them included."""

MAX_WAIT_MS: Final = 60_000


class Cursor(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Of the run with this uid, raw or processed, I have the documents before number ``first``."""

    run: Uid
    first: Index


class Fetch(Message, frozen=True, tag="FETCH"):
    """``Fetch(12, 1732271334000000, [Cursor("6b9c…", 30)], 200, 5000)``: say within 5 s what comes next.

    Asked for are the runs in ``cursors`` and, from their first document on, those opened later than number ``after``
    (−1: none; the answer's ``newest`` is where to start). ``serial`` names the question.
    """

    serial: Serial
    after: Annotated[int, Meta(ge=-1, lt=2**62)]
    cursors: Annotated[list[Cursor], Meta(max_length=64)]
    limit: Annotated[int, Meta(ge=1, le=MAX_DOCUMENTS)]
    wait_ms: Annotated[int, Meta(ge=0, le=MAX_WAIT_MS)]


class Document(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """``Document("event_page", b"…")``: the body is the document, in msgpack."""

    name: Name
    body: bytes


class Part(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Documents ``[first, first + len(documents))`` of one processed run; ``complete``: there won't be more.

    ``number`` grows with every run that is opened. ``fault`` says why a run that was asked for has no documents.
    """

    number: Serial
    run: Uid
    processed: Uid
    first: Index
    documents: Annotated[list[Document], Meta(max_length=MAX_DOCUMENTS)]
    complete: bool
    fault: Text = ""


class Documents(Message, frozen=True, tag="DOCUMENTS"):
    """The answer to question ``serial``; ``newest`` is the number of the last run that was opened, −1 for none."""

    serial: Serial
    newest: Annotated[int, Meta(ge=-1, lt=2**62)]
    parts: Annotated[list[Part], Meta(max_length=128)]


_decoder: msgspec.msgpack.Decoder[Fetch | Documents] = msgspec.msgpack.Decoder(Fetch | Documents)
_encoder = msgspec.msgpack.Encoder()


def encode(message: Fetch | Documents) -> bytes:
    """Return the message's bytes.

    >>> decode(encode(Documents(3, -1, [])))
    Documents(serial=3, newest=-1, parts=[])
    """
    return _encoder.encode(message)


def decode(data: Any) -> Fetch | Documents:
    """Return the message that ``data`` (bytes-like) holds.

    Raises
    ------
    WireError
        It is too long, not msgpack, of no known kind, or a field is out of bounds.
    """
    if len(data) > MAX_ANSWER:
        raise WireError(f"a message of {len(data)} bytes is over the limit of {MAX_ANSWER}: dropped")
    try:
        return _decoder.decode(data)
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"neither a FETCH nor DOCUMENTS: {error}") from None


def pack(name: str, doc: dict[str, Any]) -> Document:
    """Return a document as it travels: numbers, strings, lists and mappings only.

    >>> unpack(pack("stop", {"exit_status": "success"}))
    ('stop', {'exit_status': 'success'})
    """
    return Document(name, _encoder.encode(doc))


def unpack(document: Document) -> tuple[str, dict[str, Any]]:
    """Return a document's name and the document.

    Raises
    ------
    WireError
        Its body isn't a mapping in msgpack.
    """
    try:
        doc = msgspec.msgpack.decode(document.body, type=dict[str, Any])
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"a {document.name} document that isn't one: {error}") from None
    return document.name, doc
