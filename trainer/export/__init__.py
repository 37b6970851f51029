"""Writing adapters in the formats that others read."""
