"""How the daemon batches, retries and tells."""

from typing import Annotated, Literal

from pydantic import Field

from daemon.settings.base import LOCAL, PositiveFloat, PositiveInt, Settings


class BatchingSettings(Settings):
    policy: Literal["deadline", "aimd", "fixed"] = Field("deadline", description="How batches are cut.")
    target_ms: PositiveFloat = Field(100.0, description="Commit to searchable: each change's deadline.")
    linger_ms_max: Annotated[float, Field(ge=0)] = Field(
        5.0, description="`fixed` and `aimd`: longest wait for a batch to fill."
    )
    batch_max: PositiveInt = Field(500, description="Most changes in one batch.")
    batch_tokens_max: PositiveInt = Field(16_384, description="Most estimated tokens in one batch.")
    fixed_size: PositiveInt = Field(32, description="`fixed`: changes in one batch.")
    in_flight_max: PositiveInt = Field(4, description="Batches between closing and acknowledgement.")
    queue_changes_max: PositiveInt = Field(20_000, description="Changes waiting; more pauses the partitions.")
    queue_bytes_max: PositiveInt = Field(
        48 * 1024 * 1024, description="Memory of what waits, in bytes; more pauses the partitions."
    )


class SlowLaneSettings(Settings):
    request_ms_max: PositiveFloat = Field(
        40.0, description="Longest request to the embedder while no live change is about."
    )
    requests_max: PositiveInt = Field(
        2, description="Requests at the embedder at once, of one worker, while no live change is about."
    )
    live_request_ms_max: PositiveFloat = Field(
        20.0,
        description="Longest request while live changes are about, then one at a time: what one may wait for.",
    )
    parts_in_flight_max: PositiveInt = Field(
        4, description="Requests and the writes that follow them, before the next rows are taken."
    )


class RetrySettings(Settings):
    backoff_ms_min: PositiveInt = Field(50, description="First wait after a part failed.")
    backoff_ms_max: PositiveInt = Field(5_000, description="Longest wait between two tries.")
    stuck_version_s_max: PositiveFloat = Field(
        300.0,
        description="An index version that readers do not see, and that alone gets nowhere (its model is away), is "
        "given up then: it holds up the offsets of all.",
    )


class TelemetrySettings(Settings):
    address: str = Field(
        LOCAL,
        description="`host:port` of /metrics, /healthz, /readyz; `local`: the embedded stack's, or 127.0.0.1:9464.",
    )
    log_format: Literal["auto", "console", "json"] = Field(
        "auto", description="`auto`: console on a terminal."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level logged.")


class LocalSettings(Settings):
    ports: dict[str, int] = Field(
        {}, description="Fixed ports of the embedded stack by server name; free ones are chosen otherwise."
    )
