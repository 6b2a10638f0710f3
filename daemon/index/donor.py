"""Vectors out of another version of the same index: what it has of a text need not be embedded again.

Where model and chunking are the same, equal content hashes say that two versions hold the same vectors.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from daemon.core.vectors import decode, encode, size_bytes
from daemon.index.connection import Client, FunctionsMissing, failure, pipelined
from daemon.index.layout import Layout
from daemon.index.registry import IndexVersion, VersionTable
from daemon.index.writer import load_functions


@dataclass(frozen=True, slots=True)
class VectorDonor:
    """Gives the vectors of one version, in the number format of another.

    Attributes:
        layout: of the version that gives.
        type: its number format.
        taker: the version that takes them.
        commands_max: documents asked for in one go.
    """

    client: Client
    layout: Layout
    type: str
    taker: IndexVersion
    commands_max: int

    async def vectors(self, documents: Sequence[tuple[str, str]]) -> list[tuple[bytes, ...]]:
        """Return the vectors of each (document id, content hash), one a chunk; none where there are not all of them.

        Raises:
            FailureClass: Redis failed.
        """
        vectors: list[tuple[bytes, ...]] = []
        for start in range(0, len(documents), self.commands_max):
            calls = [
                ("FCALL", "livevec_vectors", 3, *self.layout.keys(identifier), content_hash)
                for identifier, content_hash in documents[start : start + self.commands_max]
            ]
            replies = await pipelined(self.client, calls, raise_on_error=False)
            vectors += [await self._taken(reply) for reply in replies]
        return vectors

    async def _taken(self, reply: object) -> tuple[bytes, ...]:
        if isinstance(reply, Exception):
            error = failure(reply)
            if isinstance(error, FunctionsMissing):
                await load_functions(self.client)
            raise error
        vectors = cast(list[bytes], reply)
        if any(len(vector) != size_bytes(self.type, self.taker.dimension) for vector in vectors):
            return ()
        if self.type == self.taker.type or not vectors:
            return tuple(vectors)
        return tuple(encode(decode(vectors, self.type), self.taker.type))


def donor(
    client: Client, pipeline: str, table: VersionTable, taker: IndexVersion, pipeline_commands_max: int
) -> VectorDonor | None:
    """Return what gives its vectors to a version that is not the one that readers see; None: no other has the same.

    A shorter number format does not become a longer one: the digits that it lost stay lost.
    """
    if taker.number == table.active:
        return None
    for version in table.written:
        same_model = version.fingerprint or version.model == taker.model
        exact = version.type in ("FLOAT32", taker.type)
        fits = version.space() == taker.space() and version.dimension == taker.dimension
        if version.number != taker.number and same_model and exact and fits:
            layout = Layout(pipeline, version.number)
            return VectorDonor(client, layout, version.type, taker, pipeline_commands_max)
    return None
