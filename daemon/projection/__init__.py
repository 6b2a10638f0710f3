"""From a row to its document: the projector orders the effects, `build` puts one together, the slow lane throttles it.

The daemon, the workflows' activities and the checks all write through what is built here, and through nothing else.
"""
