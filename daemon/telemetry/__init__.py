"""What people and Prometheus see: metrics, logs, and the HTTP server that shows them."""
