"""The floor: the barest loop that does the job with none of the checks. Not for use: it loses rows at every fault.

`python -m daemon.bench.floor CONFIG SAMPLES`: consume, embed, HSET, in one thread, for the only pipeline of CONFIG,
whose name is also that of the index, of the keys' prefix and of the consumer group. It writes one line to SAMPLES for
each row: its id, and the seconds from its commit until Redis had answered.
"""

import sys
import time
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import orjson
import redis
import tritonclient.grpc as triton
from confluent_kafka import Consumer, TopicPartition
from redis.commands.search.field import TagField, VectorField
from redis.commands.search.index_definition import IndexDefinition, IndexType

from daemon import config
from daemon.settings import Config

BATCH_MAX = 64


def main() -> None:
    settings, samples_path = config.load(Path(sys.argv[1])), Path(sys.argv[2])
    (pipeline,) = settings.pipelines
    store = redis.Redis.from_url(settings.redis.url.get_secret_value())
    _create_index(store, settings)
    consumer = Consumer(
        {
            **settings.kafka.client,
            "bootstrap.servers": settings.kafka.bootstrap_servers,
            "group.id": pipeline.name,
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            # Without these three, the floor would be the defaults' latency.
            "fetch.wait.max.ms": 5,
            "fetch.min.bytes": 1,
            "fetch.queue.backoff.ms": 1,
        }
    )
    topic = settings.topic(pipeline)
    partitions = consumer.list_topics(topic).topics[topic].partitions
    consumer.assign([TopicPartition(topic, number, 0) for number in partitions])
    embedder = triton.InferenceServerClient(settings.embedding.url)
    with samples_path.open("w", buffering=1, encoding="utf-8") as samples:
        while True:
            _batch(settings, consumer, embedder, store, samples)


def _batch(settings: Config, consumer: Consumer, embedder: Any, store: redis.Redis, samples: IO[str]) -> None:
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
    vectors = embedder.infer(settings.embedding.model, [tensor]).as_numpy("EMBEDDING")
    pipe = store.pipeline(transaction=False)
    for row, vector in zip(rows, vectors, strict=True):
        fields = {"id": row["id"], "chunk": 0, "text": row["body"], "embedding": vector.tobytes()}
        pipe.hset(f"{settings.pipelines[0].name}:{row['id']}", mapping=cast(Any, fields))
    pipe.execute()
    now_s = time.time()
    samples.writelines(
        f"{envelope['after']['id']} {now_s - envelope['source']['ts_us'] / 1e6:.6f}\n"
        for envelope in envelopes
    )


def _create_index(store: redis.Redis, settings: Config) -> None:
    """Create the same index as livevec's."""
    (pipeline,) = settings.pipelines
    vector = {
        "TYPE": "FLOAT32",
        "DIM": settings.embedding.dimension,
        "DISTANCE_METRIC": "COSINE",
        "M": pipeline.index.m,
        "EF_CONSTRUCTION": pipeline.index.ef_construction,
    }
    cast(Any, store.ft(pipeline.name)).create_index(
        [TagField("id"), VectorField("embedding", "HNSW", vector)],
        definition=cast(Any, IndexDefinition)(prefix=[f"{pipeline.name}:"], index_type=IndexType.HASH),
    )


if __name__ == "__main__":
    main()
