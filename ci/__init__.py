"""Inbound webhooks and what CI runs."""
