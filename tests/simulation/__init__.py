"""
Whole agents under one simulated time: their own code on top of a claim store, an API server, a network and kernels in
memory, with whatever may go wrong in between, as a seed says. C{docs/reliability.rst} describes it.
"""
