"""`livevec status`: the command, and the probes that look at each part."""
