"""
A laboratory for whole agents: hosts in network namespaces on one pretend LAN, where they can do no harm.

L{tests.lab.laboratory.Lab} is the door. Everything in here blocks, needs root, and cleans up after itself: processes
die with the lab's own process, and what a lab that was killed left behind is swept away by the next one.
"""
