"""Providers of metrics outside of the store."""
