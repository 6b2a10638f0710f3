"""Measurements that a user runs: latency and throughput, beside the floor (the barest loop that does the same job
with none of the checks) and the ceiling (the embedder alone).

Here live the load, the systems' protocols, the arithmetic and the reports. The commands are in daemon/cli/bench; the
measurements that only the project itself needs, and all plots, are in tests/bench.
"""
