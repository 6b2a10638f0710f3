"""The project's own measurements, beside those that a user runs (`livevec bench`), and the plots of all of them.

`python -m tests.bench` lists them. Each file is one measurement: its load, its arithmetic, its report. `running.py` is
what they share on a running stack.
"""
