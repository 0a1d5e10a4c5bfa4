"""``python -m cmidiff`` is the command line."""

from cmidiff.app.cli import main

main()
