"""Prefect flows: what happens in which order; and the reconciler."""
