"""`python -m edgec`, for launchers that start modules."""

from edgec.cli.main import main

main()
