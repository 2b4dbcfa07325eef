"""The HTTP service: requests into jobs, jobs into responses."""
