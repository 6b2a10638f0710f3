"""Where changes come from: kafka (the consumer thread), envelope and events (records -> changes), postgres
(reads from the source with their snapshot), dead_letters (where refused rows go)."""
