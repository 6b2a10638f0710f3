"""`livevec retry`: the command, and how it lists dead letters."""
