"""`livevec reindex`: its commands, and what they show, with the lines that they suggest for daemon.toml."""
