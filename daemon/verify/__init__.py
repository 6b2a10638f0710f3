"""Comparing a table with its index at rest, and making the index right.

The one check that trusts none of livevec's own counts: it reads the table, the documents and the index itself.
differences: what is told. stored: what Redis holds. checker: table against index. repair: a full backfill.
"""
