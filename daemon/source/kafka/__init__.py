"""Kafka: the consumer thread, dead letters written and read, events published. Every librdkafka error ends here."""
