"""The command `livevec`: one file per group of commands, each thin: parse, call, print.

The only package that may import connectors, workflows and deploy. What is heavy to import is imported inside
the commands, so that `livevec --help` answers at once.
"""
