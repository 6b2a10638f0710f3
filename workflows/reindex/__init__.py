"""The reindex: another version of an index, filled, measured, and given to its readers."""
