"""The command line: one module per group of commands."""

import sys


def main() -> None:
    """Entry point of ``phasewatch``; Ctrl-C while the commands are imported ends it quietly."""
    try:
        from pipelines.cli.app import main
    except KeyboardInterrupt:
        sys.exit(130)  # console.INTERRUPTED, which is not imported yet
    main()
