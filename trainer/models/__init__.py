"""The model families, each one module behind the contract of `base`. Importing this imports no torch."""
