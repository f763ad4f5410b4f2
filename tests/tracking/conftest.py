from tests.reporting.conftest import _elsewhere, bench

__all__ = ["_elsewhere", "bench"]
