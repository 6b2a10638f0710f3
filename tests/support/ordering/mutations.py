"""Ways of breaking functions.lua, each of which must make some history end wrong."""

from dataclasses import dataclass

from tests.support.ordering.faults import OF_THE_FUNCTIONS, Fault


@dataclass(frozen=True)
class Mutation:
    """One part of the version rule taken away.

    Attributes:
        broken: what goes on instead of the rule.
        replacements: texts of functions.lua and what takes their place; each is there exactly once.
        faults: that happen in its histories.
        certain: they happen in all of them.
        first_seed: from which the histories are tried; chosen so that a wrong one is soon found.
        xmin_is_the_lsn: it compares the WAL position of a read.
    """

    name: str
    broken: str
    replacements: tuple[tuple[str, str], ...]
    faults: tuple[Fault, ...] = OF_THE_FUNCTIONS
    certain: bool = False
    first_seed: int = 1
    xmin_is_the_lsn: bool = False

    def of(self, source: str) -> str:
        """The broken library.

        Raises:
            ValueError: a text to be replaced is not there exactly once; the library was changed, so the
                mutation has to be written anew.
        """
        for text, other in self.replacements:
            if source.count(text) != 1:
                raise ValueError(
                    f"mutation {self.name}: found {source.count(text)} times, not once: {text!r}"
                )
            source = source.replace(text, other)
        return source


_RETURN_SUPERSEDED = "if not beats_all(args[1], meta_key, floor_key) then return SUPERSEDED end"

MUTATIONS = (
    Mutation(
        "commit_order",
        "a change is compared with a change by its own LSN only",
        (("    if commit ~= 0 then return commit > 0 end\n", ""),),
        faults=(Fault.REEMIT,),
        certain=True,
    ),
    Mutation(
        "change_order",
        "of two changes of one transaction the last to arrive wins",
        (("return compare(write.second, stored.second) > 0", "return true"),),
    ),
    Mutation(
        "snap_order",
        "of two rows read from the source the last to arrive wins",
        (("return snapshot_order(write, stored) >= 0", "return true"),),
    ),
    Mutation(
        "snap_order_by_xmax_alone",
        "snapshots are compared without what was still running",
        (("return running(b) - running(a)", "return 0"),),
        first_seed=50,
    ),
    Mutation(
        "snapshot_alone",
        "a change must be beyond the WAL position of the read, too",
        (
            (
                "return not sees(stored, write.third)",
                "return compare(write.second, stored.first) > 0 and not sees(stored, write.third)",
            ),
        ),
        xmin_is_the_lsn=True,
    ),
    Mutation(
        "log_beats_source",
        "a change always replaces a row read from the source",
        (("return not sees(stored, write.third)", "return true"),),
    ),
    Mutation(
        "source_beats_log",
        "a row read from the source always replaces a change",
        (("return sees(write, stored.third)", "return true"),),
    ),
    Mutation(
        "running_is_visible",
        "a transaction that was still running counts as visible",
        (
            (
                "return not string.find(',' .. snapshot.third .. ',', ',' .. xid .. ',', 1, true)",
                "return true",
            ),
        ),
    ),
    Mutation(
        "future_is_visible",
        "a transaction that had not begun counts as visible",
        (("if compare(xid, snapshot.second) >= 0 then return false end", ""),),
    ),
    Mutation(
        "era",
        "positions are compared as if there were one history",
        (("  if era ~= 0 then return era > 0 end\n", ""),),
    ),
    Mutation(
        "numbers_as_doubles",
        "64-bit numbers are compared as doubles",
        (
            (
                "local function compare(a, b)\n",
                "local function compare(a, b)\n  a, b = tonumber(a), tonumber(b)\n",
            ),
            ("  if #a ~= #b then return #a < #b and -1 or 1 end\n", ""),
        ),
    ),
    Mutation(
        "numbers_as_text",
        "numbers are compared as text, without their length",
        (("  if #a ~= #b then return #a < #b and -1 or 1 end\n", ""),),
    ),
    Mutation(
        "truncate_floor",
        "TRUNCATE leaves no floor",
        (
            (
                "redis.call('SET', keys[1], args[1])",
                "if parse(args[1]).kind == 'S' then redis.call('SET', keys[1], args[1]) end",
            ),
        ),
    ),
    Mutation(
        "sweep_floor",
        "a reconcile leaves no floor",
        (
            (
                "redis.call('SET', keys[1], args[1])",
                "if parse(args[1]).kind == 'L' then redis.call('SET', keys[1], args[1]) end",
            ),
        ),
        faults=(Fault.LONG_PAUSE, Fault.FAILOVER),
        certain=True,
    ),
    Mutation(
        "floor_may_fall",
        "a floor is replaced by an older one",
        (("  if floor and not replaces(version, parse(floor)) then return SUPERSEDED end\n", ""),),
    ),
    Mutation(
        "sweep_strictly",
        "a sweep removes the rows read at its own snapshot",
        (("return snapshot_order(floor, stored) > 0", "return true"),),
    ),
    Mutation(
        "sweep_older_only",
        "a sweep removes whatever is there",
        (("  if not sweeps(version, parse(stored)) then return SUPERSEDED end\n", ""),),
    ),
    Mutation(
        "unchanged_bumps",
        "a metadata-only write leaves the version as it was",
        (
            (
                "redis.call('HSET', meta_key, 'v', args[1], 'm', args[3])\n",
                "redis.call('HSET', meta_key, 'm', args[3])\n",
            ),
        ),
    ),
    Mutation(
        "keep_on_conflict",
        "a metadata-only write is made whatever text is stored",
        (
            ("  if stored[1] ~= args[2] then return CONFLICT end\n", ""),
            ("tonumber(stored[3])", "tonumber(stored[3] or '0')"),
        ),
        faults=(Fault.REEMIT, Fault.PLAN_RACE),
        certain=True,
        first_seed=40,
    ),
    Mutation(
        "put_unguarded",
        "a row is written over a newer one",
        ((_RETURN_SUPERSEDED + "\n  local before", "local before"),),
    ),
    Mutation(
        "touch_unguarded",
        "a metadata-only write takes the version back",
        ((_RETURN_SUPERSEDED + "\n  local stored", "local stored"),),
    ),
    Mutation(
        "delete_unguarded",
        "a newer row is deleted",
        ((_RETURN_SUPERSEDED + "\n  local there", "local there"),),
    ),
    Mutation(
        "delete_marker",
        "a deleted document leaves nothing",
        (("redis.call('PEXPIRE', meta_key, args[2])", "redis.call('UNLINK', meta_key)"),),
    ),
    Mutation(
        "revival_persists",
        "a document written over a marker expires as the marker would have",
        ((" then redis.call('PERSIST', meta_key) end", " then return APPLIED end"),),
    ),
    Mutation(
        "surplus_chunks",
        "chunks beyond those of a shorter text stay",
        (("  drop_chunks(stem, chunks, before)\n", ""),),
    ),
    Mutation(
        "deleted_chunks",
        "the chunks of a deleted document stay",
        (("  drop_chunks(stem, 0, stored_chunks(meta_key))\n  redis.call('HDEL'", "  redis.call('HDEL'"),),
    ),
    Mutation(
        "swept_chunks",
        "the chunks of a swept document stay",
        (
            (
                "  drop_chunks(stem, 0, stored_chunks(meta_key))\n  redis.call('UNLINK'",
                "  redis.call('UNLINK'",
            ),
        ),
    ),
)
