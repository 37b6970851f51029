"""The command line `lora-ops`: a thin HTTP client of `lora-ops serve`."""
