"""The workflows, and Temporal under them."""

import base64
from typing import Annotated

from pydantic import Field, SecretStr, field_validator

from daemon.settings.base import LOCAL, PositiveFloat, PositiveInt, Settings


class RetryDeadLettersSettings(Settings):
    """The `retry` workflow of each pipeline, in `livevec worker`."""

    pause_s_min: PositiveFloat = Field(
        30.0,
        description="Before a dead letter is tried again; doubled by each try, up to half of it by chance.",
    )
    pause_s_max: PositiveFloat = Field(3600.0, description="Longest pause between two tries.")
    attempts_max: PositiveInt = Field(
        12, description="Refusals after which it is given up; a part that is away is none."
    )
    give_up_after_s: PositiveFloat = Field(
        3 * 24 * 3600.0,
        description="Age at which it is given up. What is given up is listed until it is dropped.",
    )
    documents_max: PositiveInt = Field(2_000, description="Held of one pipeline; the rest waits in Kafka.")
    wait_for_change: tuple[str, ...] = Field(
        (
            *("oversized_text", "not_numeric", "missing_column", "no_key"),
            *("malformed_envelope", "malformed_json", "malformed_key", "malformed_value"),
        ),
        description="Reasons that time does not heal: such a row waits for a newer version of itself, or for "
        "`livevec retry`.",
    )


class ReindexSettings(Settings):
    """The `reindex` workflow, in `livevec worker`."""

    recall_min: Annotated[float, Field(ge=0, le=1)] = Field(
        0.95,
        description="Least recall@10 of the new index against exact search; less is never approved by --auto.",
    )
    queries: Annotated[int, Field(ge=1, le=1_000)] = Field(
        100, description="Sampled rows whose texts are searched for to measure recall and to compare answers."
    )
    exact_vectors_max: PositiveInt = Field(
        1_000_000,
        description="Vectors of the new index that exact search reads, in batches; more are left out.",
    )
    grace_s: Annotated[float, Field(ge=0)] = Field(
        86_400.0, description="How long the replaced index is kept, written to, and can be rolled back to."
    )
    last_readers_s: Annotated[float, Field(ge=0)] = Field(
        10.0,
        description="Before an index that was searched until now is dropped: for who looked it up just before.",
    )


class WorkerSettings(Settings):
    """`livevec worker`."""

    activities_max: PositiveInt = Field(8, description="Activities of one worker at once.")
    workflow_tasks_max: Annotated[int, Field(ge=2)] = Field(
        16, description="Decisions of workflows that one worker makes at once."
    )
    metrics_address: str = Field(
        LOCAL,
        description="`host:port` of the worker's own /metrics, /healthz, /readyz; `local`: or 127.0.0.1:9465.",
    )
    sdk_metrics_address: str = Field(
        LOCAL,
        description="`host:port` of the /metrics of Temporal's SDK in the worker; `local`: or 127.0.0.1:9466.",
    )
    deployment: str = Field(
        "livevec",
        pattern=r"^[A-Za-z0-9_-]*$",
        description="Name of the worker deployment; empty: no worker versioning.",
    )
    build_id: str = Field(
        "",
        pattern=r"^[A-Za-z0-9_.+-]*$",
        description="Build id; empty: the package's version and a hash of its workflows.",
    )
    become_current: bool = Field(
        True, description="A worker that starts makes its build the one that workflows run on."
    )


class TemporalSettings(Settings):
    address: str = Field(LOCAL, description="`host:port` of the frontend, or `local`.")
    namespace: str = Field("livevec", description="Namespace.")
    task_queue: str = Field("livevec", description="Task queue of `livevec worker`.")
    ui_url: str = Field(LOCAL, description="Address of Temporal's UI, for links; or `local`.")
    tls: bool = Field(False, description="Speak TLS, as Temporal Cloud asks for.")
    api_key: SecretStr = Field(SecretStr(""), description="API key of the namespace; needs `tls`.")
    codec_key: SecretStr = Field(
        SecretStr(""),
        description="Key that encrypts what workflows are given and answer: 32 bytes in base64; empty: plain.",
    )
    codec_keys_old: tuple[SecretStr, ...] = Field(
        (), description="Former keys: they still decrypt, and encrypt nothing."
    )
    worker: WorkerSettings = WorkerSettings()

    @field_validator("codec_key", "codec_keys_old")
    @classmethod
    def _keys(cls, given: SecretStr | tuple[SecretStr, ...]) -> SecretStr | tuple[SecretStr, ...]:
        for key in given if isinstance(given, tuple) else (given,):
            text = key.get_secret_value()
            try:
                size_bytes = len(base64.b64decode(text, validate=True))
            except ValueError:
                size_bytes = -1
            if text and size_bytes != 32:
                raise ValueError("not 32 bytes in base64; `openssl rand -base64 32` makes a key")
        return given
