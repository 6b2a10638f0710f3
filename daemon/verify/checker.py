"""Table against index: one pass over the rows, one over the keys in Redis, and a second look at what differs."""

from collections.abc import Mapping

from daemon.errors import RejectRow
from daemon.verify.comparison import Comparison
from daemon.verify.differences import Report
from daemon.verify.looks import SecondLooks
from daemon.verify.subject import ROWS_PER_CHUNK, OnProgress, Subject, batches
from daemon.verify.walk import KEYS_PER_STEP, Walk

__all__ = ["ROWS_PER_CHUNK", "Checker", "OnProgress", "Subject"]


class Checker:
    """Checks one pipeline whole. Holds the ids of what differs, and nothing else that grows with the table."""

    def __init__(self, subject: Subject, on_progress: OnProgress) -> None:
        self._subject = subject
        self._tell = on_progress
        self._comparison = Comparison(subject)
        self._suspects: set[str] = set()
        self._surplus: dict[str, set[int]] = {}
        self._foreign: set[str] = set()

    @property
    def surplus(self) -> Mapping[str, set[int]]:
        """Numbers of the surplus chunks that were found, by document."""
        return self._surplus

    async def check(self) -> Report:
        """Look at everything once, at what differs again, and tell what stayed different.

        Raises:
            FailureClass: a part failed.
        """
        await self._subject.stored.built(lambda documents: self._tell("index", documents, None))
        rows, refused = await self._check_rows()
        documents = await self._check_keys()
        differing = await SecondLooks(self._comparison).settle(
            self._suspects, self._surplus, lambda done, total: self._tell("again", done, total)
        )
        assert differing is not None, "nothing stops it"
        return Report(
            pipeline=self._subject.pipeline,
            rows=rows,
            documents=documents,
            refused=refused,
            differing=differing,
            foreign_keys=tuple(sorted(self._foreign)),
        )

    async def _check_rows(self) -> tuple[int, int]:
        """Every row against its document; answers how many rows, and how many can never be documents."""
        total = await self._subject.reader.count_estimate(self._subject.table)
        seen = refused = 0
        async for batch in batches(self._subject, None, None):
            wanted = self._comparison.rendered(batch.rows)
            looks = await self._comparison.looks(wanted)
            self._suspects |= {one for one, look in looks.items() if look.differences}
            refused += sum(isinstance(one, RejectRow) for one in wanted.values())
            seen += len(batch.rows)
            self._tell("rows", seen, max(total, seen))
        return seen, refused

    async def _check_keys(self) -> int:
        """Every key in Redis against the table; answers how many documents there are."""
        walk, keyspace = Walk(self._subject), self._subject.stored.keyspace
        documents = 0
        position = await keyspace.beginning()
        while not position.done:
            step = await keyspace.step(position, KEYS_PER_STEP)
            position = step.position
            found = await walk.look(step.keys)
            documents = found.documents + (0 if step.restarted else documents)
            self._suspects |= found.suspects
            self._foreign.update(found.foreign)
            for one, numbers in found.surplus.items():
                self._surplus.setdefault(one, set()).update(numbers)
            self._tell("documents", documents, None)
        return documents
