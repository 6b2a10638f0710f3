"""What Triton's errors mean: the one place where its status codes become failure classes."""

from enum import Enum

import grpc  # type: ignore[import-untyped]
import grpc.aio  # type: ignore[import-untyped]

from daemon.errors import FailureClass, RejectRow, RetryLater, SplitBatch

RETRY_OVERLOADED_S = 0.05
RETRY_UNREACHABLE_S = 0.2
RETRY_BROKEN_S = 0.5


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


CAUSE_BY_CODE = {
    grpc.StatusCode.INVALID_ARGUMENT: TritonCause.REFUSED,
    # A message over the size limit of either side.
    grpc.StatusCode.RESOURCE_EXHAUSTED: TritonCause.REFUSED,
    grpc.StatusCode.OUT_OF_RANGE: TritonCause.REFUSED,
    grpc.StatusCode.NOT_FOUND: TritonCause.NOT_LOADED,
    grpc.StatusCode.DEADLINE_EXCEEDED: TritonCause.TIMED_OUT,
    grpc.StatusCode.UNAVAILABLE: TritonCause.UNREACHABLE,
    grpc.StatusCode.CANCELLED: TritonCause.UNREACHABLE,
    grpc.StatusCode.ABORTED: TritonCause.UNREACHABLE,
    grpc.StatusCode.INTERNAL: TritonCause.MODEL_FAILED,
    grpc.StatusCode.UNKNOWN: TritonCause.MODEL_FAILED,
    grpc.StatusCode.DATA_LOSS: TritonCause.MODEL_FAILED,
    grpc.StatusCode.FAILED_PRECONDITION: TritonCause.MODEL_FAILED,
    grpc.StatusCode.ALREADY_EXISTS: TritonCause.MODEL_FAILED,
    grpc.StatusCode.UNIMPLEMENTED: TritonCause.DENIED,
    grpc.StatusCode.PERMISSION_DENIED: TritonCause.DENIED,
    grpc.StatusCode.UNAUTHENTICATED: TritonCause.DENIED,
}


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
    return RetryLater(f"{where} {cause.value}; {_REMEDIES[cause]}", retry_after_s=_WAITS_S[cause])


_WAITS_S = {
    TritonCause.UNREACHABLE: RETRY_UNREACHABLE_S,
    TritonCause.OVERLOADED: RETRY_OVERLOADED_S,
    TritonCause.TIMED_OUT: RETRY_UNREACHABLE_S,
    TritonCause.NOT_LOADED: RETRY_BROKEN_S,
    TritonCause.STUB_DEAD: RETRY_BROKEN_S,
    TritonCause.MODEL_FAILED: RETRY_BROKEN_S,
    TritonCause.DENIED: RETRY_BROKEN_S,
}
_REMEDIES = {
    TritonCause.UNREACHABLE: "is tried again; check [embedding] url and that Triton runs",
    TritonCause.OVERLOADED: "is tried again; lower [embedding] requests_max if it stays so",
    TritonCause.TIMED_OUT: "is tried again; look at Triton's load and log",
    TritonCause.NOT_LOADED: "is tried again; load the model, or start Triton with --load-model",
    TritonCause.STUB_DEAD: "is tried again; restart Triton if it stays so (explicit model control lets livevec reload)",
    TritonCause.MODEL_FAILED: "is tried again; look at Triton's log",
    TritonCause.DENIED: "is tried again; check the access rules in front of Triton",
}
