"""The rules of lora-ops: pure, typed, without clock, network or randomness of their own."""

__version__ = "0.1.0"
SCHEMA_VERSION = 1
