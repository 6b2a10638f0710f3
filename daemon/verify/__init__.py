"""Compares a table with its index, and makes the index equal to it.

This is the one check that trusts none of livevec's own counts: it reads the table, the documents and the index
itself. `livevec verify` runs it in this process (session); a reconcile runs the same parts in Temporal's activities.
sides: the table, and with stored the index. comparison: rows against their documents. looks: again, until
a difference is sure. examiner: a key range, and all keys, on their way through the check. refill: a full backfill.
"""
