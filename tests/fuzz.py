"""Hypothesis settings of the fuzz suites: 50 cases in `make test`, 10,000 in `make prove`."""

from hypothesis import HealthCheck, settings

CHECKS = [
    HealthCheck.too_slow,
    HealthCheck.data_too_large,
    HealthCheck.filter_too_much,
    HealthCheck.function_scoped_fixture,
]
SHORT = settings(
    max_examples=50, deadline=None, derandomize=True, database=None, suppress_health_check=CHECKS
)
LONG = settings(
    max_examples=10_000, deadline=None, database=None, print_blob=True, suppress_health_check=CHECKS
)
