"""The sections of daemon.toml for the workflows and for Temporal."""

import base64
from typing import Annotated

from pydantic import Field, SecretStr, field_validator

from daemon.settings.sections import LOCAL, PositiveFloat, PositiveInt, Settings


class RetryDeadLettersSettings(Settings):
    """The settings of the `retry` workflow, of which each pipeline has one."""

    pause_s_min: PositiveFloat = 30.0
    """First pause before a dead letter is tried again; doubled by each try, up to half of it random."""
    pause_s_max: PositiveFloat = 3600.0
    """Longest pause between two tries."""
    attempts_max: PositiveInt = 12
    """Refusals after which a dead letter is given up; a server that is away does not count."""
    give_up_after_s: PositiveFloat = 3 * 24 * 3600.0
    """Age at which a dead letter is given up; it is listed until it is dropped."""
    documents_max: PositiveInt = 2_000
    """Most documents that one pipeline's workflow holds; more wait in Kafka."""
    wait_for_change: tuple[str, ...] = (
        *("oversized_text", "not_numeric", "missing_column", "no_key"),
        *("malformed_envelope", "malformed_json", "malformed_key", "malformed_value"),
    )
    """Reasons that do not pass with time: such a row waits until it is changed, or for `livevec retry`."""


class ReindexSettings(Settings):
    """The settings of the `reindex` workflow."""

    recall_min: Annotated[float, Field(ge=0, le=1)] = 0.95
    """Lowest recall@10 of the new index, compared with exact search, that --auto approves."""
    queries: Annotated[int, Field(ge=1, le=1_000)] = 100
    """Sampled rows whose texts are searched for, to measure recall and to compare answers."""
    exact_vectors_max: PositiveInt = 1_000_000
    """Most vectors of the new index that the exact search reads, in batches; others are left out."""
    grace_s: Annotated[float, Field(ge=0)] = 86_400.0
    """How long the replaced index is kept and written, so that one can roll back to it."""
    last_readers_s: Annotated[float, Field(ge=0)] = 10.0
    """Wait before an index that was searched until now is dropped: a reader may just have looked it up."""


class WorkerSettings(Settings):
    """The settings of `livevec worker`."""

    activities_max: PositiveInt = 8
    """Most activities of one worker at once."""
    workflow_tasks_max: Annotated[int, Field(ge=2)] = 16
    """Most workflow tasks of one worker at once."""
    metrics_address: str = LOCAL
    """`host:port` of the worker's /metrics, /readyz; `local`: the embedded stack's, or 127.0.0.1:9465."""
    sdk_metrics_address: str = LOCAL
    """`host:port` of the /metrics of Temporal's SDK; `local`: the embedded stack's, or 127.0.0.1:9466."""
    deployment: str = Field("livevec", pattern=r"^[A-Za-z0-9_-]*$")
    """Name of the worker deployment; empty: no worker versioning."""
    build_id: str = Field("", pattern=r"^[A-Za-z0-9_.+-]*$")
    """Build id; empty: the package's version and a hash of its workflows."""
    become_current: bool = True
    """Let a worker that starts make its build the current one, on which workflows run."""


class TemporalSettings(Settings):
    address: str = LOCAL
    """`host:port` of the frontend, or `local`."""
    namespace: str = "livevec"
    """Namespace of the workflows."""
    task_queue: str = "livevec"
    """Task queue of `livevec worker`."""
    ui_url: str = LOCAL
    """Address of Temporal's UI, for links; or `local`."""
    tls: bool = False
    """Use TLS, which Temporal Cloud requires."""
    api_key: SecretStr = SecretStr("")
    """API key of the namespace; needs `tls`."""
    codec_key: SecretStr = SecretStr("")
    """Key that encrypts arguments and results of workflows, 32 bytes in base64; empty: no encryption."""
    codec_keys_old: tuple[SecretStr, ...] = ()
    """Former keys, which still decrypt and no longer encrypt."""
    worker: WorkerSettings = WorkerSettings()

    @field_validator("codec_key", "codec_keys_old")
    @classmethod
    def _keys(cls, value: SecretStr | tuple[SecretStr, ...]) -> SecretStr | tuple[SecretStr, ...]:
        for key in value if isinstance(value, tuple) else (value,):
            text = key.get_secret_value()
            try:
                size_bytes = len(base64.b64decode(text, validate=True))
            except ValueError:
                size_bytes = -1
            if text and size_bytes != 32:
                raise ValueError("not 32 bytes in base64; `openssl rand -base64 32` makes a key")
        return value
