"""Kiwi's tests."""

from hypothesis import HealthCheck, settings

# How fast the machine is has no say in whether a test passes.
settings.register_profile("kiwi", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("kiwi")
