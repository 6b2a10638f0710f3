"""What a row becomes in the index: its text, its metadata, and the hashes that tell whether they changed."""

import json
import math
import string
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Literal

from daemon.core.change import Row
from daemon.errors import RejectRow

TAG_SEPARATOR = "\x1f"
"""Between the tags of one field: a character that no tag holds, so that a tag with a comma stays one tag."""
_HASH_BYTES = 16


@dataclass(frozen=True, slots=True)
class Field:
    """One metadata column: where it comes from and how it is searched."""

    column: str
    name: str
    type: Literal["tag", "numeric", "text"]


@dataclass(frozen=True, slots=True)
class Document:
    """A row as the index will hold it, before chunking and embedding.

    Attributes:
        text: rendered from the template; blank text gives a document without chunks.
        content_hash: of the text and the embedding space; equal hashes need no new vector.
        metadata: (name, value) of the fields that have a value.
        absent: names of the fields that are NULL.
        metadata_hash: of the metadata; equal hashes need no write to the documents at all.
    """

    text: str
    content_hash: str
    metadata: tuple[tuple[str, str], ...]
    absent: tuple[str, ...]
    metadata_hash: str


class Template:
    """A text with `{column}` in it; NULL renders as nothing."""

    def __init__(self, template: str) -> None:
        self._parts = [(literal, column) for literal, column, _, _ in string.Formatter().parse(template)]
        self.columns = tuple(dict.fromkeys(column for _, column in self._parts if column))

    def render(self, row: Row) -> str:
        return "".join(literal + (_text(row[column]) if column else "") for literal, column in self._parts)


class DocumentBuilder:
    """Renders rows of one pipeline for one embedding space.

    Args:
        template: of the text.
        fields: metadata columns.
        space: identity of the embedding space and of the chunking; part of every content hash.
        text_bytes_max: longest text that is taken.
    """

    def __init__(self, template: str, fields: Sequence[Field], space: str, text_bytes_max: int) -> None:
        self._template = Template(template)
        self._fields = tuple(fields)
        self._space = blake2b(space.encode(), digest_size=_HASH_BYTES).digest()
        self._text_bytes_max = text_bytes_max
        self.text_columns = self._template.columns
        self.columns = tuple(dict.fromkeys((*self._template.columns, *(field.column for field in fields))))

    def text_size(self, row: Row) -> int:
        """Characters of the row's text, about; costs less than rendering it."""
        return sum(len(value) for column in self.text_columns if isinstance(value := row[column], str))

    def build(self, row: Row) -> Document:
        """The document of a row that has all of `columns`.

        Raises:
            RejectRow: the text is too long, or a numeric field is not a number.
        """
        text = self._template.render(row)
        encoded = text.encode("utf-8", "surrogatepass")
        if len(encoded) > self._text_bytes_max:
            raise RejectRow(
                f"the text has {len(encoded)} bytes, text_bytes_max is {self._text_bytes_max}; "
                "raise it, or shorten the column",
                "oversized_text",
            )
        metadata: list[tuple[str, str]] = []
        absent: list[str] = []
        for field in self._fields:
            value = row[field.column]
            if value is None:
                absent.append(field.name)
            else:
                metadata.append((field.name, _metadata(field, value)))
        return Document(
            text=text,
            content_hash=blake2b(encoded, digest_size=_HASH_BYTES, key=self._space).hexdigest(),
            metadata=tuple(metadata),
            absent=tuple(absent),
            metadata_hash=blake2b(json.dumps(metadata).encode(), digest_size=_HASH_BYTES // 2).hexdigest(),
        )


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    return json.dumps(value, ensure_ascii=False)


def _metadata(field: Field, value: Any) -> str:
    if field.type == "numeric":
        return _number(field, value)
    if field.type == "tag" and isinstance(value, list):
        return TAG_SEPARATOR.join(_text(item) for item in value)
    return _text(value)


def _number(field: Field, value: Any) -> str:
    """A value that Redis can index as NUMERIC: one that it cannot would keep the whole document out."""
    text = _text(value)
    if isinstance(value, bool):
        return "1" if value else "0"
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise RejectRow(
            f"column {field.column!r} is declared numeric but holds a value that is no finite number; "
            "declare it as tag, or correct the row",
            "not_numeric",
        )
    return text
