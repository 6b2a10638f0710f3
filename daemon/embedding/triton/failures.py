"""What Triton's errors mean: the one place where its status codes become failure classes."""

from enum import Enum

import grpc  # type: ignore[import-untyped]
import grpc.aio  # type: ignore[import-untyped]

from daemon.errors import FailureClass, RejectRow, RetryLater, SplitBatch


class TritonCause(Enum):
    """Why a call failed."""

    UNREACHABLE = "cannot be reached"
    OVERLOADED = "has a full queue"
    TIMED_OUT = "did not answer in time"
    NOT_LOADED = "has not loaded the model"
    STUB_DEAD = "lost the model's process"
    REFUSED = "refused the request"
    MODEL_FAILED = "failed inside the model"
    DENIED = "denied access"


_Code = grpc.StatusCode
# RESOURCE_EXHAUSTED: a message over the size limit of either side.
CAUSE_BY_CODE = (
    dict.fromkeys((_Code.INVALID_ARGUMENT, _Code.RESOURCE_EXHAUSTED, _Code.OUT_OF_RANGE), TritonCause.REFUSED)
    | dict.fromkeys((_Code.NOT_FOUND,), TritonCause.NOT_LOADED)
    | dict.fromkeys((_Code.DEADLINE_EXCEEDED,), TritonCause.TIMED_OUT)
    | dict.fromkeys((_Code.UNAVAILABLE, _Code.CANCELLED, _Code.ABORTED), TritonCause.UNREACHABLE)
    | dict.fromkeys((_Code.INTERNAL, _Code.UNKNOWN, _Code.DATA_LOSS), TritonCause.MODEL_FAILED)
    | dict.fromkeys((_Code.FAILED_PRECONDITION, _Code.ALREADY_EXISTS), TritonCause.MODEL_FAILED)
    | dict.fromkeys((_Code.UNIMPLEMENTED, _Code.PERMISSION_DENIED, _Code.UNAUTHENTICATED), TritonCause.DENIED)
)
VENDOR_ERRORS = (grpc.RpcError, grpc.aio.BaseError)


def cause_of(error: Exception) -> TritonCause:
    """Return why a call failed; an error without a status code is of a channel that was closed meanwhile."""
    if not isinstance(error, grpc.aio.AioRpcError):
        return TritonCause.UNREACHABLE
    details = (error.details() or "").lower()
    if "stub process" in details:
        # Triton goes on answering `ready` while every inference fails with this.
        return TritonCause.STUB_DEAD
    if "maximum queue size" in details:
        return TritonCause.OVERLOADED
    return CAUSE_BY_CODE.get(error.code(), TritonCause.MODEL_FAILED)


def failure_of(cause: TritonCause, *, texts: int, model_alive: bool, where: str) -> FailureClass:
    """Return the failure class of a request of `texts` texts.

    Args:
        model_alive: the model embeds another text right now, so the cause lies in this request.
        where: `text_embedder at host:port`, for the message.
    """
    if cause is TritonCause.REFUSED or (cause is TritonCause.MODEL_FAILED and model_alive):
        if texts > 1:
            return SplitBatch(f"{where} {cause.value} of {texts} texts; halves of it may pass")
        return RejectRow(
            f"{where} {cause.value} of this one text; see Triton's log for why, then retry the row",
            reason="embedder_refused",
        )
    if cause is TritonCause.TIMED_OUT and texts > 1:
        # Nothing tells a hung server from a batch that takes too long, and that one would time out for ever.
        return SplitBatch(
            f"{where} {cause.value} for {texts} texts; halves of it may pass, else raise [embedding] timeout_s"
        )
    after_s, remedy = _RETRIES[cause]
    return RetryLater(f"{where} {cause.value}; is tried again; {remedy}", retry_after_s=after_s)


# The wait in seconds, and what to do where waiting does not help.
_RETRIES = {
    TritonCause.UNREACHABLE: (0.2, "check [embedding] url and that Triton runs"),
    TritonCause.OVERLOADED: (0.05, "lower [embedding] requests_max if it stays so"),
    TritonCause.TIMED_OUT: (0.2, "look at Triton's load and log"),
    TritonCause.NOT_LOADED: (0.5, "load the model, or start Triton with --load-model"),
    TritonCause.STUB_DEAD: (
        0.5,
        "restart Triton if it stays so (explicit model control lets livevec reload)",
    ),
    TritonCause.MODEL_FAILED: (0.5, "look at Triton's log"),
    TritonCause.DENIED: (0.5, "check the access rules in front of Triton"),
}
