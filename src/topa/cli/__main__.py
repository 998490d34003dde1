"""`python -m topa.cli` is `topa`."""

from topa.cli import main

main()
