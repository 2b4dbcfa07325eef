"""A real fleet: API replicas, Celery workers and their servers, kept running while `test_fleet_chaos.py` breaks it."""
