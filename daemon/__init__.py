"""The hot path of livevec and all it needs: core, source, index, embedding, telemetry, cli."""
