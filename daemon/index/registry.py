"""The registry of a pipeline's index versions, kept in Redis beside them: what each was made with, which is active.

One hash, `lv:<pipeline>:versions`: `<number>` -> settings (JSON), `active` -> the number that the alias names,
`retired:<number>` -> since when no daemon shall write to it, `failed:<number>` -> why no daemon can. The daemons look
at it every second: a version that appears is written to from then on, beside the others. Another hash,
`lv:<pipeline>:writers:<number>`, has a field for each partition whose owner writes its changes to that version too.
"""

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, cast

import orjson

from daemon.embedding.embedder import EmbeddingSpace
from daemon.errors import ConfigError, RetryLater
from daemon.index.connection import Client, translated
from daemon.index.layout import Layout, pipeline_key, writers_key
from daemon.settings import ChunkingSettings, EmbeddingSettings, MetadataField, Pipeline

FIRST_VERSION = 1
_ACTIVE = "active"
_LAST = "last"
_RETIRED = "retired:"
_FAILED = "failed:"
_OF_THE_INDEX = ("m", "ef_construction", "metric", "type")
"""Settings that have their names in `[index]` of a pipeline too."""


@dataclass(frozen=True, slots=True)
class IndexVersion:
    """What one index version was made with; another setting needs another version.

    Attributes:
        model: name of the model at its provider.
        fingerprint: identity of the embedding space.
        text: the template.
        chunking: tokens_max and tokens_overlap.
        metadata: (column, name in Redis, type).
    """

    number: int
    model: str
    fingerprint: str
    dimension: int
    text: str
    chunking: tuple[int, int]
    metadata: tuple[tuple[str, str, str], ...]
    m: int
    ef_construction: int
    metric: str
    type: str

    def space(self) -> str:
        """Return what a content hash depends on besides the text."""
        return f"{self.fingerprint}|{self.chunking}"

    def encode(self) -> bytes:
        return orjson.dumps(asdict(self))

    @classmethod
    def decode(cls, record: bytes) -> "IndexVersion":
        settings: dict[str, Any] = orjson.loads(record)
        settings["chunking"] = tuple(settings["chunking"])
        settings["metadata"] = tuple(tuple(field) for field in settings["metadata"])
        return cls(**settings)

    def differences(self, other: "IndexVersion") -> list[str]:
        """Return names of the settings in which two versions differ."""
        names = [field.name for field in fields(self) if field.name != "number"]
        return [name for name in names if getattr(self, name) != getattr(other, name)]

    def pipeline(self, settings: Pipeline) -> Pipeline:
        """Return the pipeline with what this version was made with in place of what the configuration says."""
        tokens_max, tokens_overlap = self.chunking
        tokenizer = settings.chunking.tokenizer
        made_with = {
            "text": self.text,
            "metadata": tuple(
                MetadataField(column=column, type=cast(Any, kind), name=name)
                for column, name, kind in self.metadata
            ),
            "index": settings.index.model_copy(update={name: getattr(self, name) for name in _OF_THE_INDEX}),
            "chunking": ChunkingSettings(
                tokens_max=tokens_max, tokens_overlap=tokens_overlap, tokenizer=tokenizer
            ),
        }
        # Made anew, not copied: a copy would keep what was cached of the old template.
        configured = {name: getattr(settings, name) for name in Pipeline.model_fields}
        return Pipeline(**{**configured, **made_with})

    def embedding(self, settings: EmbeddingSettings) -> EmbeddingSettings:
        """Return the settings of where this version's vectors come from."""
        return settings.model_copy(update={"model": self.model, "dimension": self.dimension})

    def check_space(self, space: EmbeddingSpace, pipeline: str) -> None:
        """Raise ConfigError where the embedder does not give the vectors that this version holds."""
        if (space.fingerprint, space.dimension) != (self.fingerprint, self.dimension):
            raise ConfigError(
                f"pipeline {pipeline!r}: index version {self.number} was made with another model under the name "
                f"{self.model!r} (fingerprint {self.fingerprint or 'unknown'}, now {space.fingerprint or 'unknown'}); "
                f"put that model back, and bring the new one in under a name of its own: "
                f"`livevec reindex {pipeline} --model NAME`"
            )


def wanted(pipeline: Pipeline, space: EmbeddingSpace, number: int = FIRST_VERSION) -> IndexVersion:
    """Return the version that the configuration asks for."""
    return IndexVersion(
        number=number,
        model=space.model,
        fingerprint=space.fingerprint,
        dimension=space.dimension,
        text=pipeline.text,
        chunking=(pipeline.chunking.tokens_max, pipeline.chunking.tokens_overlap),
        metadata=tuple((field.column, field.field, field.type) for field in pipeline.metadata),
        **{name: getattr(pipeline.index, name) for name in _OF_THE_INDEX},
    )


@dataclass(frozen=True, slots=True)
class VersionTable:
    """The registry at one moment.

    Attributes:
        active: the version that readers see.
        versions: all that are registered, by number.
        retired: those that no daemon shall write to any more.
        failed: those that no daemon can write to, and why.
    """

    active: int
    versions: Mapping[int, IndexVersion]
    retired: frozenset[int]
    failed: Mapping[int, str]

    @property
    def written(self) -> list[IndexVersion]:
        """Those that every change must reach, the active one first."""
        numbers = sorted(self.versions.keys() - self.retired - self.failed.keys())
        numbers.sort(key=lambda number: number != self.active)
        return [self.versions[number] for number in numbers]

    def version(self, number: int | None = None) -> IndexVersion:
        """Return that version; None: the active one.

        Raises:
            ConfigError: there is none.
        """
        number = self.active if number is None else number
        version = self.versions.get(number)
        if version is None:
            known = ", ".join(map(str, sorted(self.versions))) or "none"
            raise ConfigError(f"there is no index version {number}; registered: {known}")
        return version


class Versions:
    """The registry of one pipeline."""

    def __init__(self, client: Client, pipeline: str) -> None:
        self._client = cast(Any, client)
        self._pipeline = pipeline
        self._key = pipeline_key(pipeline, "versions")

    async def read(self) -> VersionTable | None:
        """Return the registry; None where nothing was registered yet."""
        with translated():
            stored: dict[bytes, bytes] = await self._client.hgetall(self._key)
        plain = {name.decode(): value for name, value in stored.items()}
        versions = {int(name): IndexVersion.decode(value) for name, value in plain.items() if name.isdigit()}
        if not versions:
            return None
        retired, failed = (
            {int(name.removeprefix(prefix)): text for name, text in plain.items() if name.startswith(prefix)}
            for prefix in (_RETIRED, _FAILED)
        )
        return VersionTable(
            active=int(plain.get(_ACTIVE) or min(versions)),
            versions=versions,
            retired=frozenset(retired),
            failed={number: reason.decode() for number, reason in failed.items()},
        )

    async def known(self) -> VersionTable:
        """Return the registry; raise ConfigError where nothing was registered yet."""
        table = await self.read()
        if table is None:
            raise ConfigError(
                f"pipeline {self._pipeline!r} has no index yet; `livevec run` makes it when it starts"
            )
        return table

    async def restore(self, versions: Sequence[IndexVersion], active: int) -> VersionTable:
        """Register these where they are missing, as at the first start or in a Redis that lost them."""
        with translated():
            for version in versions:
                await self._client.hsetnx(self._key, str(version.number), version.encode())
            await self._client.hsetnx(self._key, _ACTIVE, str(active))
        table = await self.read()
        if table is None:
            raise RetryLater(
                f"Redis lost the registry of {self._pipeline} while it was written; writing it again"
            )
        return table

    async def register(self, version: IndexVersion) -> IndexVersion:
        """Register under the next free number, which is never used again; its own `number` is not looked at."""
        table = await self.known()
        with translated():
            await self._client.hsetnx(self._key, _LAST, str(max(table.versions)))
            number = int(await self._client.hincrby(self._key, _LAST, 1))
            numbered = IndexVersion(**{**asdict(version), "number": number})
            await self._client.hset(self._key, str(number), numbered.encode())
        return numbered

    async def activate(self, number: int) -> None:
        """Make this the version that readers see; the alias follows (`schema.point_alias`)."""
        with translated():
            await self._client.hset(self._key, _ACTIVE, str(number))

    async def retire(self, number: int) -> None:
        """Let the daemons stop writing to it; `writers` tells when they have."""
        with translated():
            await self._client.hset(self._key, f"{_RETIRED}{number}", f"{time.time():.3f}")

    async def fail(self, number: int, reason: str) -> None:
        """Note that this version cannot be written to; whoever builds it gives it up."""
        with translated():
            await self._client.hset(self._key, f"{_FAILED}{number}", reason)

    async def forget(self, number: int) -> None:
        """Remove it from the registry, after its keys were."""
        with translated():
            await self._client.hdel(self._key, str(number), f"{_RETIRED}{number}", f"{_FAILED}{number}")
            await self._client.delete(writers_key(self._pipeline, number))

    async def writers(self, number: int) -> frozenset[tuple[str, int]]:
        """Return the partitions whose changes are written to it."""
        with translated():
            names: list[bytes] = await self._client.hkeys(writers_key(self._pipeline, number))
        split = (name.decode().rpartition("/") for name in names)
        return frozenset((topic, int(partition)) for topic, _, partition in split)

    async def joined(self, number: int, partitions: Collection[tuple[str, int]]) -> None:
        """Note that the changes of these partitions are written to it from now on."""
        if partitions:
            fields = {f"{topic}/{partition}": f"{time.time():.3f}" for topic, partition in partitions}
            with translated():
                await self._client.hset(writers_key(self._pipeline, number), mapping=fields)

    async def left(self, number: int, partitions: Collection[tuple[str, int]]) -> None:
        """Note that nothing of these partitions will be written to it any more."""
        if partitions:
            names = [f"{topic}/{partition}" for topic, partition in partitions]
            with translated():
                await self._client.hdel(writers_key(self._pipeline, number), *names)

    def layout(self, number: int) -> Layout:
        return Layout(self._pipeline, number)
