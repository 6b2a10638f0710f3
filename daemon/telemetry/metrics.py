"""The Prometheus metrics, and the latest samples in full, for percentiles that buckets cannot give."""

from collections import deque
from dataclasses import asdict, dataclass
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from daemon.core.change import Outcome

_BUCKETS_S = (
    *(0.001, 0.002, 0.004, 0.006, 0.008, 0.010, 0.015, 0.020, 0.030, 0.040, 0.050, 0.060, 0.080),
    *(0.100, 0.150, 0.200, 0.300, 0.500, 0.750, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0),
)
_BATCH_BUCKETS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
STAGES = ("capture", "transit", "queue", "embed", "upsert")


@dataclass(frozen=True, slots=True)
class Sample:
    """The freshness of one embedded change, in seconds by the wall clock.

    Attributes:
        total: commit at the source to searchable.
        capture: commit to Kafka append (Kafka's timestamps have milliseconds).
        transit: append to the daemon.
        queue: received to the start of its batch.
        embed: look-up of what is stored and inference.
        upsert: writing to Redis until acknowledged.
    """

    id: str
    committed_at: float
    total: float
    capture: float
    transit: float
    queue: float
    embed: float
    upsert: float


class SampleRing:
    """Holds the latest samples, numbered, so that a reader can ask for those after the last one it has."""

    def __init__(self, size: int = 50_000) -> None:
        self._samples: deque[Sample] = deque(maxlen=size)
        self.count = 0

    def add(self, sample: Sample) -> None:
        self._samples.append(sample)
        self.count += 1

    def after(self, number: int) -> list[dict[str, float | str]]:
        """Return the samples numbered above `number`, as far as they are still held."""
        fresh = min(max(self.count - number, 0), len(self._samples))
        samples = list(self._samples)
        return [asdict(sample) for sample in samples[len(samples) - fresh :]]


class Metrics:
    """All metrics of the daemon, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        counter = partial(Counter, registry=registry)
        gauge = partial(Gauge, registry=registry)
        histogram = partial(Histogram, registry=registry)
        pipeline = ("pipeline",)
        self.read = counter("livevec_changes_read", "Records read.", pipeline)
        self.changes = counter(
            "livevec_changes",
            "Records by their outcome; the outcomes add up to the records read.",
            ("pipeline", "outcome"),
        )
        self.searchable = histogram(
            "livevec_commit_to_searchable_seconds",
            "Time from the commit at the source until a search finds the change.",
            pipeline,
            buckets=_BUCKETS_S,
        )
        self.stages = histogram(
            "livevec_stage_seconds",
            "Parts of commit to searchable: " + ", ".join(STAGES) + ".",
            ("pipeline", "stage"),
            buckets=_BUCKETS_S,
        )
        self.fresh_through = gauge(
            "livevec_fresh_through_timestamp_seconds",
            "Every change committed before this time is searchable.",
            ("source",),
        )
        self.batch = histogram("livevec_batch_changes", "Size of batches.", pipeline, buckets=_BATCH_BUCKETS)
        self.queued = gauge("livevec_queue_changes", "Changes waiting.", pipeline)
        self.queued_bytes = gauge("livevec_queue_bytes", "Bytes waiting.", pipeline)
        self.in_flight = gauge("livevec_batches_in_flight", "Batches running.", pipeline)
        self.paused = gauge("livevec_paused", "1 while partitions are paused.")
        self.overloaded = gauge("livevec_overloaded", "1 while deadlines cannot be met.", pipeline)
        self.cost_fixed = gauge(
            "livevec_inference_cost_fixed_seconds", "Learned cost of a request.", pipeline
        )
        self.cost_token = gauge("livevec_inference_cost_token_seconds", "Learned cost of a token.", pipeline)
        self.failures = counter(
            "livevec_failures", "Calls that failed, by part and class.", ("part", "failure")
        )
        self.dead_letters = counter(
            "livevec_dead_letters", "Rows refused, by reason.", ("pipeline", "reason")
        )
        self.dead_letters_tried = counter(
            "livevec_dead_letters_tried",
            "Dead letters that the worker has tried again, by outcome.",
            ("pipeline", "outcome"),
        )
        self.dead_letters_held = gauge(
            "livevec_dead_letters_held",
            "Documents that wait for another try or, in the state given_up, for a person.",
            ("pipeline", "reason", "state"),
        )
        self.dead_letters_unfed = gauge(
            "livevec_dead_letters_unfed",
            "Dead letters that the worker has read and Temporal has not accepted yet; more wait in Kafka.",
            pipeline,
        )
        self.part_up = gauge("livevec_part_up", "1 while the part answers.", ("part",))
        self.lag = gauge("livevec_unacknowledged_records", "Records read and not yet acknowledged.")
        self.went_back = counter(
            "livevec_redis_went_back", "Times that Redis was older than what was written to it."
        )
        self.needs_reconcile = gauge("livevec_needs_reconcile", "1: run `livevec verify --repair`.", pipeline)
        self.indexing_failures = gauge(
            "livevec_hash_indexing_failures", "Documents in Redis that its index could not take.", pipeline
        )
        self.oldest = gauge(
            "livevec_oldest_unacknowledged_seconds",
            "Age of the oldest change that is read and not acknowledged; keep it far below half of "
            "redis.delete_marker_ttl_s.",
        )
        self.active_version = gauge("livevec_index_version", "The index version that readers see.", pipeline)
        self.settings_differ = gauge(
            "livevec_settings_differ",
            "1: daemon.toml asks for other index settings than the present index has; run `livevec reindex`.",
            pipeline,
        )
        self.samples = SampleRing()

    def pipeline(self, name: str, *, seen: bool = True) -> "PipelineMetrics":
        return PipelineMetrics(self, name, seen=seen)


class PipelineMetrics:
    """The metrics of one index version of a pipeline, with their labels resolved once.

    The version that readers see is labelled with the pipeline's name, others with their index's; a swap swaps these.
    """

    def __init__(self, metrics: Metrics, name: str, *, seen: bool = True) -> None:
        self.all = metrics
        self.show_as(name, seen=seen)

    def show_as(self, name: str, *, seen: bool) -> None:
        """Use this label from now on; `seen`: readers see this version, so its samples are kept."""
        metrics = self.all
        self.name = name
        self._seen = seen
        self.read = metrics.read.labels(name)
        self.outcomes = {outcome: metrics.changes.labels(name, outcome.value) for outcome in Outcome}
        self.searchable = metrics.searchable.labels(name)
        self.stages = {stage: metrics.stages.labels(name, stage) for stage in STAGES}
        self.batch = metrics.batch.labels(name)
        self.queued = metrics.queued.labels(name)
        self.queued_bytes = metrics.queued_bytes.labels(name)
        self.in_flight = metrics.in_flight.labels(name)
        self.overloaded = metrics.overloaded.labels(name)

    def forget(self) -> None:
        """Remove the gauges of this label; the counters stay."""
        metrics = self.all
        for gauge in (metrics.queued, metrics.queued_bytes, metrics.in_flight, metrics.overloaded):
            gauge.remove(self.name)

    def embedded(self, sample: Sample) -> None:
        """Record the freshness of one embedded change."""
        self.searchable.observe(sample.total)
        for stage, seconds in self.stages.items():
            seconds.observe(getattr(sample, stage))
        if self._seen:
            self.all.samples.add(sample)
