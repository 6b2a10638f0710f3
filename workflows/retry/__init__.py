"""The retry of dead letters: the workflow, its queue, and the feeder that brings the letters from Kafka."""
