"""`lora-ops serve`: the REST API, the metrics, and the home of the reconciler."""
