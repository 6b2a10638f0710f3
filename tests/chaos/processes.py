"""What a workflow runs on, to be killed one after another; each is there again afterwards."""

from tests.support.mirrored_table import MirroredTable

VICTIMS = ("redis", "triton", "worker", "daemon", "temporal")


class Processes:
    """The daemon and the worker of a table, and the stack's servers."""

    def __init__(self, table: MirroredTable) -> None:
        self._table = table
        self.daemon = table.start_daemon().wait_ready()
        self.worker = table.start_worker().wait_ready()

    def kill(self, victim: str) -> None:
        """The stack starts its servers again by itself."""
        if victim == "worker":
            self.worker.kill()
            self.worker = self._table.start_worker().wait_ready()
        elif victim == "daemon":
            self.daemon.kill()
            self.daemon = self._table.start_daemon().wait_ready()
        else:
            self._table.stack.kill(victim)
