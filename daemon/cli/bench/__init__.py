"""`livevec bench`: what a user runs to see how fast this installation is."""
