"""A table with everything that mirrors it and a worker, shared by the tests of one file."""

from collections.abc import Iterator

import pytest

from deploy.local.stack import Stack
from tests.support.mirrored_table import MirroredTable


@pytest.fixture(scope="module")
def running(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MirroredTable]:
    """Connector, daemon and worker run. Its tests leave rows behind: each begins with its own."""
    table = MirroredTable(stack, tmp_path_factory.mktemp("running"), pipeline="text_bytes_max = 300")
    try:
        table.connect()
        with table.daemon(), table.worker() as worker:
            table.running_worker = worker
            yield table
    finally:
        table.close()


@pytest.fixture
def empty(running: MirroredTable) -> MirroredTable:
    """`running`, without rows."""
    running.execute("truncate $T")
    running.wait_equal()
    return running
