"""Optimisation: learning-rate schedules and their like."""
