"""What continuous integration and webhooks call: on the same floor as the console."""
