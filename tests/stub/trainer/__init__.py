"""A stand-in for the trainer that imports no torch: what it does is written in behaviour.json beside it."""
