"""The commands that act on this machine. They import what they need when they run."""
