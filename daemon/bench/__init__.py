"""Measuring: commit to searchable, beside the barest loop that does the same job with none of the checks."""
