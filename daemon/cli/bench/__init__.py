"""The commands `livevec bench`, and what they need of a running stack."""
