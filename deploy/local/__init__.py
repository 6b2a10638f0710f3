"""The embedded stack: the real servers, without containers, one command up and one down."""
