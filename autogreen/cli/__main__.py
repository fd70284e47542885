"""`python -m autogreen.cli`."""

from autogreen.cli import main

main()
