"""Public IP addresses for Kubernetes Services on plain hosts."""

__version__ = "0.1.0"
