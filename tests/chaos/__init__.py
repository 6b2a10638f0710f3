"""Faults between and in the real parts, under load; at rest the index must equal the table."""
