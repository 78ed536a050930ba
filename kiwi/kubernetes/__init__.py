"""What Kiwi wants to know from Kubernetes: the Services."""
