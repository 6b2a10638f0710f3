"""The daemon in process: the real `Service` on a virtual clock, over fakes of the servers that it uses.

clock.py       an event loop whose time jumps to the next timer when nothing else is to be done
faults.py      the calls that cross an edge, numbered; a script may refuse, lose, delay or hold any of them
redis.py       Redis, as far as the product uses it
kafka.py       a broker, its consumer groups, and a reader with the manners of `daemon.source.kafka.reader`
postgres.py    a reader over the model of `tests.support.ordering.postgres`, and Debezium's records of its log
embedder.py    vectors that depend on nothing but text and model
letters.py     the dead letters that were written
servers.py     all of them together, and the edges through which one process reaches them
shell.py       one daemon over the servers: started, killed, stopped, started again
backfill.py    what the workflows do to the index, through the real projector

Nothing here starts a process or a thread, or waits for the real clock.
"""
