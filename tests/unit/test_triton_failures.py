"""What becomes of each of Triton's errors."""

import grpc  # type: ignore[import-untyped]
import pytest
from grpc.aio import AioRpcError, Metadata  # type: ignore[import-untyped]

from daemon.embedding.triton.failures import TritonCause, cause_of, failure_of
from daemon.errors import FailureClass, RejectRow, RetryLater, SplitBatch

FAILING_CODES = [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK]


def _error(code: grpc.StatusCode, details: str = "") -> AioRpcError:
    return AioRpcError(code, Metadata(), Metadata(), details=details)


@pytest.mark.parametrize("code", FAILING_CODES, ids=lambda code: code.name)
def test_every_status_code_has_a_cause_and_a_failure_class(code: grpc.StatusCode) -> None:
    cause = cause_of(_error(code))
    for texts in (1, 2):
        for alive in (False, True):
            failure = failure_of(cause, texts=texts, model_alive=alive, where="model 'm' at h:1")
            assert isinstance(failure, FailureClass)
            assert "model 'm' at h:1" in str(failure)


# The messages are those of Triton 2.51.
@pytest.mark.parametrize(
    ("code", "details", "cause"),
    [
        ("INTERNAL", "Stub process 'text_embedder_0_0' is not healthy.", TritonCause.STUB_DEAD),
        (
            "INTERNAL",
            "Failed to process the request(s) for model instance 'text_embedder_0_0', message: "
            "Stub process 'text_embedder_0_0' is not healthy.",
            TritonCause.STUB_DEAD,
        ),
        (
            "INTERNAL",
            "Failed to process the request(s) for model 'm', message: MemoryError",
            TritonCause.MODEL_FAILED,
        ),
        ("UNAVAILABLE", "[request id: <id_unknown>] Exceeds maximum queue size", TritonCause.OVERLOADED),
        ("UNAVAILABLE", "failed to connect to all addresses", TritonCause.UNREACHABLE),
        ("NOT_FOUND", "Request for unknown model: 'm' has no available versions", TritonCause.NOT_LOADED),
        ("INVALID_ARGUMENT", "inference request batch-size must be <= 500 for 'm'", TritonCause.REFUSED),
    ],
)
def test_causes_are_told_apart_by_code_and_message(code: str, details: str, cause: TritonCause) -> None:
    assert cause_of(_error(grpc.StatusCode[code], details)) is cause


@pytest.mark.parametrize(
    ("cause", "texts", "model_alive", "expected"),
    [
        (TritonCause.UNREACHABLE, 500, False, RetryLater),
        (TritonCause.OVERLOADED, 500, False, RetryLater),
        (TritonCause.NOT_LOADED, 500, False, RetryLater),
        (TritonCause.STUB_DEAD, 500, False, RetryLater),
        (TritonCause.DENIED, 500, False, RetryLater),
        (TritonCause.TIMED_OUT, 2, False, SplitBatch),
        (TritonCause.TIMED_OUT, 1, False, RetryLater),
        (TritonCause.REFUSED, 2, False, SplitBatch),
        (TritonCause.REFUSED, 1, False, RejectRow),
        # A model that fails on everything must not send every row to the dead letters.
        (TritonCause.MODEL_FAILED, 2, False, RetryLater),
        (TritonCause.MODEL_FAILED, 1, False, RetryLater),
        (TritonCause.MODEL_FAILED, 2, True, SplitBatch),
        (TritonCause.MODEL_FAILED, 1, True, RejectRow),
    ],
)
def test_the_failure_class_follows_from_cause_and_batch(
    cause: TritonCause, texts: int, model_alive: bool, expected: type[FailureClass]
) -> None:
    assert type(failure_of(cause, texts=texts, model_alive=model_alive, where="m")) is expected
