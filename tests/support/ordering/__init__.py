"""Random histories of a PostgreSQL table, brought into an index through every disorder livevec has to stand.

postgres.py            the model of the source: transactions, locks, snapshots and what the log says about them
faults.py              what may go wrong, and the rules above the version rule, each of which can be switched off
histories.py           one history of the real daemon and worker, in process (tests/support/shell), until it is at rest
rules.py               how each rule is switched off in the real daemon

For functions.lua in a real Redis, whose calls are made one by one:

function_histories.py  one history: the source and the feeder at random, until all is delivered and at rest
feeder.py              livevec's part in it: reads the log, reads chunks, plans and writes under the version rule
index.py               what it needs of an index; redis_index.py is one
mutations.py           ways of breaking functions.lua, each of which must make a history end wrong

Beside them, for single calls of the functions:

versions.py         versions for hypothesis, and texts that are none
calls.py            the calls, and the library's text
functions_twin.py   what functions.lua does to Redis, key by key, under `daemon.core.version`
"""
