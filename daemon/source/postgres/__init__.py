"""PostgreSQL: rows with their snapshots, tables and types, and the watches of what never reaches the log.

Every psycopg error is translated in `failures`.
"""
