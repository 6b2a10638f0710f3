"""The backfill: its workflow decides, its activities act, its contract holds what they exchange."""
