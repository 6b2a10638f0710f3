"""Prometheus metrics, and the latest samples in full for percentiles that buckets cannot give."""

from collections import deque
from dataclasses import asdict, dataclass

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
    """Freshness of one embedded change; all in seconds, by the wall clock.

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
    """The latest samples, numbered, so that a reader can ask for those after the last it saw."""

    def __init__(self, size: int = 50_000) -> None:
        self._samples: deque[Sample] = deque(maxlen=size)
        self.count = 0

    def add(self, sample: Sample) -> None:
        self._samples.append(sample)
        self.count += 1

    def after(self, number: int) -> list[dict[str, float | str]]:
        """Samples numbered above `number`, as far as they are still held."""
        fresh = min(max(self.count - number, 0), len(self._samples))
        samples = list(self._samples)
        return [asdict(sample) for sample in samples[len(samples) - fresh :]]


class Metrics:
    """All metrics of the daemon, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.read = Counter("livevec_changes_read", "Records read.", ["pipeline"], registry=registry)
        self.changes = Counter(
            "livevec_changes",
            "Records by how they ended; over all outcomes they add up to those read.",
            ["pipeline", "outcome"],
            registry=registry,
        )
        self.searchable = Histogram(
            "livevec_commit_to_searchable_seconds",
            "From the commit at the source until a search finds the change.",
            ["pipeline"],
            buckets=_BUCKETS_S,
            registry=registry,
        )
        self.stages = Histogram(
            "livevec_stage_seconds",
            "Parts of commit to searchable: " + ", ".join(STAGES) + ".",
            ["pipeline", "stage"],
            buckets=_BUCKETS_S,
            registry=registry,
        )
        self.fresh_through = Gauge(
            "livevec_fresh_through_timestamp_seconds",
            "Every change committed before this time is searchable.",
            ["source"],
            registry=registry,
        )
        self.batch = Histogram(
            "livevec_batch_changes",
            "Size of batches.",
            ["pipeline"],
            buckets=_BATCH_BUCKETS,
            registry=registry,
        )
        self.queued = Gauge("livevec_queue_changes", "Changes waiting.", ["pipeline"], registry=registry)
        self.queued_bytes = Gauge("livevec_queue_bytes", "Bytes waiting.", ["pipeline"], registry=registry)
        self.in_flight = Gauge(
            "livevec_batches_in_flight", "Batches running.", ["pipeline"], registry=registry
        )
        self.paused = Gauge("livevec_paused", "1 while partitions are paused.", registry=registry)
        self.overloaded = Gauge(
            "livevec_overloaded", "1 while deadlines cannot be met.", ["pipeline"], registry=registry
        )
        self.cost_fixed = Gauge(
            "livevec_inference_cost_fixed_seconds",
            "Learned cost of a request.",
            ["pipeline"],
            registry=registry,
        )
        self.cost_token = Gauge(
            "livevec_inference_cost_token_seconds",
            "Learned cost of a token.",
            ["pipeline"],
            registry=registry,
        )
        self.failures = Counter(
            "livevec_failures",
            "Calls that failed, by part and class.",
            ["part", "failure"],
            registry=registry,
        )
        self.dead_letters = Counter(
            "livevec_dead_letters", "Rows refused, by reason.", ["pipeline", "reason"], registry=registry
        )
        self.dead_letters_tried = Counter(
            "livevec_dead_letters_tried",
            "Tries of dead letters by the worker, by what became of them.",
            ["pipeline", "outcome"],
            registry=registry,
        )
        self.dead_letters_held = Gauge(
            "livevec_dead_letters_held",
            "Documents that wait for another try, or (state given_up) for a person.",
            ["pipeline", "reason", "state"],
            registry=registry,
        )
        self.dead_letters_unfed = Gauge(
            "livevec_dead_letters_unfed",
            "Dead letters that the worker has read and Temporal has not taken yet; more wait in Kafka.",
            ["pipeline"],
            registry=registry,
        )
        self.part_up = Gauge("livevec_part_up", "1 while the part answers.", ["part"], registry=registry)
        self.lag = Gauge("livevec_unacknowledged_records", "Read, not yet acknowledged.", registry=registry)
        self.went_back = Counter(
            "livevec_redis_went_back", "Times Redis was found older than what was written.", registry=registry
        )
        self.needs_reconcile = Gauge(
            "livevec_needs_reconcile", "1: run `livevec verify --repair`.", ["pipeline"], registry=registry
        )
        self.indexing_failures = Gauge(
            "livevec_hash_indexing_failures",
            "Documents in Redis that its index could not take.",
            ["pipeline"],
            registry=registry,
        )
        self.oldest = Gauge(
            "livevec_oldest_unacknowledged_seconds",
            "Age of the oldest change that is read and not acknowledged; keep it far below half of "
            "redis.delete_marker_ttl_s.",
            registry=registry,
        )
        self.active_version = Gauge(
            "livevec_index_version", "The index version that readers see.", ["pipeline"], registry=registry
        )
        self.settings_differ = Gauge(
            "livevec_settings_differ",
            "1: daemon.toml asks for another index than the one there is; run `livevec reindex`.",
            ["pipeline"],
            registry=registry,
        )
        self.samples = SampleRing()

    def pipeline(self, name: str, *, seen: bool = True) -> "PipelineMetrics":
        return PipelineMetrics(self, name, seen=seen)


class PipelineMetrics:
    """The metrics of one pipeline's index version, with their labels resolved once.

    The version that readers see goes by the pipeline's name, another one by its index's; they trade names at a swap.
    """

    def __init__(self, metrics: Metrics, name: str, *, seen: bool = True) -> None:
        self.all = metrics
        self.show_as(name, seen=seen)

    def show_as(self, name: str, *, seen: bool) -> None:
        """Count under this name from now on; `seen`: its samples are those of what readers see."""
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
        """Show no present state under this name any more; what was counted stays."""
        metrics = self.all
        for gauge in (metrics.queued, metrics.queued_bytes, metrics.in_flight, metrics.overloaded):
            gauge.remove(self.name)

    def embedded(self, sample: Sample) -> None:
        """Note the freshness of one embedded change."""
        self.searchable.observe(sample.total)
        stages = self.stages
        stages["capture"].observe(sample.capture)
        stages["transit"].observe(sample.transit)
        stages["queue"].observe(sample.queue)
        stages["embed"].observe(sample.embed)
        stages["upsert"].observe(sample.upsert)
        if self._seen:
            self.all.samples.add(sample)
