"""Kubernetes: how its API is asked and followed, and what Kiwi wants to know from it."""
