"""Comparing a table with its index, and making the index right.

The one check that trusts none of livevec's own counts: it reads the table, the documents and the index itself.
What is told: differences. What is looked at: subject (rows), stored and keyspace (Redis). How: comparison (rows
against documents), walk (Redis' keys against the table), looks (again, until it is sure). Put together: checker (all
of it at once, for `livevec verify`), and workflows/activities/reconciling.py (in parts, for `livevec reconcile`).
Mending: mend (single documents), repair (a full backfill).
"""
