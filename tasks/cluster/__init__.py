"""Kubernetes clusters as lora-ops sees and uses them, through the kubeconfig of whoever runs it."""
