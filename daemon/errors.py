"""Every error livevec raises, as one tree.

    LivevecError
    ├── ConfigError            daemon.toml or an argument is wrong; nothing was started
    ├── StackError             the embedded stack could not start, stop or be found
    ├── ConnectorError         Kafka Connect or the preflight refused; carries the remedy
    ├── WorkflowError          Temporal refused or cannot be reached
    └── FailureClass           what an adapter (Kafka, Redis, Triton, PostgreSQL) translates its errors to
        ├── RetryLater         a part is away or overloaded: the same call may work after `retry_after_s`
        ├── SplitBatch         this batch cannot pass as one: halve it, one member may be the cause
        ├── RejectRow          this row can never pass as it is: dead-letter it, its neighbours go on
        ├── StopPipeline       one pipeline cannot go on without a person (a changed table); others go on
        └── StopProcess        going on would lose or damage data: stop, say what to do

Each message says what happened and what to do next; `str(error)` is fit for a person.
Vendor exceptions become a FailureClass in one place per adapter and nowhere else.
"""


class LivevecError(Exception):
    """Base of every error that livevec raises on purpose."""


class ConfigError(LivevecError):
    """A setting, a file or an argument is wrong; says which one and what it may be."""


class StackError(LivevecError):
    """The embedded stack failed; names the server and its log file."""


class ConnectorError(LivevecError):
    """A connector or its source database is not fit; `remedy` is what to run or change."""

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(f"{message}; {remedy}" if remedy else message)
        self.remedy = remedy


class WorkflowError(LivevecError):
    """A workflow could not be started, reached or finished."""


class FailureClass(LivevecError):
    """Base of the classes that tell the pipeline what to do about a failure."""


class RetryLater(FailureClass):
    """The same call may succeed later.

    Attributes:
        retry_after_s: how long to wait at least, in seconds; the other side's own word where it gave one.
    """

    def __init__(self, message: str, retry_after_s: float = 0.1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class SplitBatch(FailureClass):
    """The batch as a whole was refused; its halves may pass."""


class RejectRow(FailureClass):
    """One row can never pass as it is.

    Attributes:
        reason: a short, stable word for metrics and the dead letter's header, e.g. `malformed_envelope`.
    """

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class StopPipeline(FailureClass):
    """One pipeline cannot go on before a person has acted; the other pipelines go on."""


class StopProcess(FailureClass):
    """The process must end: what it would do next could lose or damage data."""
