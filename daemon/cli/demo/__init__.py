"""`livevec demo`: everything, live, with one command."""
