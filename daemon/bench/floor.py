"""The floor: the barest loop that does the job with none of the checks. Not for use: it loses rows at every fault.

`python -m daemon.bench.floor SETTINGS`: consume, embed, HSET, in one thread. It writes one line to `samples` for
each row: its id, and the seconds from its commit until Redis had answered.
"""

import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Self, cast

import numpy as np
import orjson
import redis
import tritonclient.grpc as triton
from confluent_kafka import Consumer, TopicPartition
from redis.commands.search.field import TagField, VectorField
from redis.commands.search.index_definition import IndexDefinition, IndexType

BATCH_MAX = 64


@dataclass(frozen=True)
class FloorSettings:
    """What the loop reads, where it embeds, and where it writes.

    Attributes:
        partitions: how many the topic has; all are read from their beginning.
        prefix: of the Redis keys; `index` is made over it.
        samples: the file of latencies.
    """

    bootstrap_servers: str
    kafka_client: dict[str, str | int | float | bool]
    group: str
    topic: str
    partitions: int
    triton: str
    model: str
    dimension: int
    redis_url: str
    index: str
    prefix: str
    m: int
    ef_construction: int
    samples: str

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        return cls(**json.loads(text))


def main() -> None:
    settings = FloorSettings.from_json(Path(sys.argv[1]).read_text("utf-8"))
    store = redis.Redis.from_url(settings.redis_url)
    _create_index(store, settings)
    consumer = Consumer(
        {
            **settings.kafka_client,
            "bootstrap.servers": settings.bootstrap_servers,
            "group.id": settings.group,
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            # Without these three, the floor would be the defaults' latency.
            "fetch.wait.max.ms": 5,
            "fetch.min.bytes": 1,
            "fetch.queue.backoff.ms": 1,
        }
    )
    consumer.assign([TopicPartition(settings.topic, number, 0) for number in range(settings.partitions)])
    embedder = triton.InferenceServerClient(settings.triton)
    with Path(settings.samples).open("w", buffering=1, encoding="utf-8") as samples:
        while True:
            _batch(settings, consumer, embedder, store, samples)


def _batch(
    settings: FloorSettings, consumer: Consumer, embedder: Any, store: "redis.Redis", samples: IO[str]
) -> None:
    """Embed what has arrived, up to BATCH_MAX rows, in one request, and write it in one pipeline."""
    first = consumer.poll(0.02)
    if first is None:
        return
    messages = [first, *consumer.consume(BATCH_MAX - 1, 0)]
    envelopes = [orjson.loads(message.value() or b"") for message in messages if message.error() is None]
    if not envelopes:
        return
    rows = [envelope["after"] for envelope in envelopes]
    tensor = triton.InferInput("TEXT", [len(rows), 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[row["body"].encode()] for row in rows], dtype=np.object_))
    vectors = embedder.infer(settings.model, [tensor]).as_numpy("EMBEDDING")
    pipe = store.pipeline(transaction=False)
    for row, vector in zip(rows, vectors, strict=True):
        fields = {"id": row["id"], "chunk": 0, "text": row["body"], "embedding": vector.tobytes()}
        pipe.hset(f"{settings.prefix}{row['id']}", mapping=cast(Any, fields))
    pipe.execute()
    now_s = time.time()
    samples.writelines(
        f"{envelope['after']['id']} {now_s - envelope['source']['ts_us'] / 1e6:.6f}\n"
        for envelope in envelopes
    )


def _create_index(store: "redis.Redis", settings: FloorSettings) -> None:
    """Create the same index as livevec's."""
    vector = {
        "TYPE": "FLOAT32",
        "DIM": settings.dimension,
        "DISTANCE_METRIC": "COSINE",
        "M": settings.m,
        "EF_CONSTRUCTION": settings.ef_construction,
    }
    cast(Any, store.ft(settings.index)).create_index(
        [TagField("id"), VectorField("embedding", "HNSW", vector)],
        definition=cast(Any, IndexDefinition)(prefix=[settings.prefix], index_type=IndexType.HASH),
    )


if __name__ == "__main__":
    main()
