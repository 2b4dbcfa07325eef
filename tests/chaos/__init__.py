"""A real service under kills and freezes: `test_chaos.py` lets it happen, and looks at what is left."""
