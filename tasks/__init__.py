"""Adapters: each one outside effect, idempotent."""
