"""What runs livevec: the embedded stack here, production deployments beside it."""
