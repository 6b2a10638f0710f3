"""Every error livevec raises, as one tree.

    LivevecError
    ├── ConfigError            daemon.toml or an argument is wrong; nothing was started
    ├── StackError             the embedded stack could not be started, stopped or found
    ├── ConnectorError         Kafka Connect or the preflight refused; carries the remedy
    ├── WorkflowError          Temporal refused or cannot be reached
    └── FailureClass           the classes to which an adapter (Kafka, Redis, Triton, PostgreSQL) translates its errors
        ├── RetryLater         a part is away or overloaded: the same call may work after `retry_after_s`
        ├── SplitBatch         the batch was refused as a whole: halve it, one member may be the cause
        ├── RejectRow          this row can never pass as it is: dead-letter it, the other rows go on
        ├── StopPipeline       one pipeline needs a person (its table was changed); the others go on
        └── StopProcess        going on could lose or damage data: stop and say what to do

Each message says what happened and what to do; `str(error)` can be shown to a person. Only one place of each adapter
translates its vendor's exceptions to a FailureClass.
"""


class LivevecError(Exception):
    """The base of every error that livevec raises on purpose."""


class ConfigError(LivevecError):
    """A setting, a file or an argument is wrong; the message says which one and what is allowed."""


class StackError(LivevecError):
    """The embedded stack failed; the message names the server and its log file."""


class ConnectorError(LivevecError):
    """A connector or its source database cannot be used; `remedy` says what to run or change."""

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(f"{message}; {remedy}" if remedy else message)
        self.remedy = remedy


class WorkflowError(LivevecError):
    """A workflow could not be started, reached or finished."""


class FailureClass(LivevecError):
    """The base of the classes that say how a failure is handled."""


class RetryLater(FailureClass):
    """The same call may succeed later.

    Attributes:
        retry_after_s: the shortest wait, in seconds; as the server asked for it, where it did.
    """

    def __init__(self, message: str, retry_after_s: float = 0.1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class SplitBatch(FailureClass):
    """The batch was refused as a whole; its halves may pass."""


class RejectRow(FailureClass):
    """One row can never pass as it is.

    Attributes:
        reason: a short, stable word for metrics and the dead letter's header, e.g. `malformed_envelope`.
    """

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class StopPipeline(FailureClass):
    """One pipeline cannot go on until a person has acted; the other pipelines go on."""


class StopProcess(FailureClass):
    """The process must end, because going on could lose or damage data."""
