"""Durable jobs: the database row is the truth, a message is only a hint.

`docs/jobs.md` has the states, their arrows and what happens at each point where something may crash.
"""
