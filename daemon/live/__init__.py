"""The running daemon: the life of the process, its partitions, and the index versions that it keeps in step.

The way of a row begins here: partitions -> mirror -> dispatcher, and goes on in `daemon.projection`. Only what lives as
long as the process belongs here; nothing in it knows Temporal.
"""
