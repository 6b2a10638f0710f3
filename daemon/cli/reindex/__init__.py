"""`livevec reindex`: its commands, what they show, and the lines that they suggest for daemon.toml."""
