"""The attributes by which Temporal finds workflows; registers them."""

from temporalio.api.enums.v1 import IndexedValueType
from temporalio.api.operatorservice.v1 import AddSearchAttributesRequest, ListSearchAttributesRequest
from temporalio.client import Client
from temporalio.common import SearchAttributeKey, SearchAttributePair, TypedSearchAttributes
from temporalio.service import RPCError

from daemon.errors import WorkflowError

PIPELINE = SearchAttributeKey.for_keyword("LivevecPipeline")
TABLE = SearchAttributeKey.for_keyword("LivevecTable")
PHASE = SearchAttributeKey.for_keyword("LivevecPhase")
PERCENT = SearchAttributeKey.for_int("LivevecPercent")
ALL: tuple[SearchAttributeKey[str] | SearchAttributeKey[int], ...] = (PIPELINE, TABLE, PHASE, PERCENT)


def of(pipeline: str, table: str) -> TypedSearchAttributes:
    """Return what a workflow starts with."""
    return TypedSearchAttributes([SearchAttributePair(PIPELINE, pipeline), SearchAttributePair(TABLE, table)])


async def ensure(client: Client) -> None:
    """Register those that the namespace lacks; raise WorkflowError, with a command for a person, where it cannot."""
    service = client.operator_service
    try:
        known = await service.list_search_attributes(ListSearchAttributesRequest(namespace=client.namespace))
        missing = {
            key.name: IndexedValueType.ValueType(key.indexed_value_type)
            for key in ALL
            if key.name not in known.custom_attributes
        }
        if missing:
            await service.add_search_attributes(
                AddSearchAttributesRequest(namespace=client.namespace, search_attributes=missing)
            )
    except RPCError as error:
        names = " ".join(f"--name {key.name} --type {key.indexed_value_type.name.title()}" for key in ALL)
        raise WorkflowError(
            f"Temporal does not let the search attributes be read or added ({error.message}); add them by hand: "
            f"`temporal operator search-attribute create --namespace {client.namespace} {names}`"
        ) from error
