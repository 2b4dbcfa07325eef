"""`python -m stenograf` is the command line."""

from stenograf.cli import main

main()
