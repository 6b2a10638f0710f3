"""Random histories of a PostgreSQL table, applied to an index through every disorder livevec has to stand.

postgres.py         the model of the source: transactions, locks, snapshots and what the log says about them
faults.py           what may go wrong, and the rules above the version rule, each of which can be switched off
index.py            what a history needs of an index; python_index.py and redis_index.py are two of them
feeder.py           livevec's part: reads the log, reads chunks, plans and writes under the version rule
histories.py        one history: the source and the feeder at random, until all is delivered and at rest
mutations.py        ways of breaking functions.lua, each of which must make a history end wrong

Beside them, for single calls of the functions:

versions.py         versions for hypothesis, and texts that are none
calls.py            the calls, and the library's text
functions_twin.py   what functions.lua does to Redis, key by key, under `daemon.core.version`
"""
