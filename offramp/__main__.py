"""`python -m offramp` is the command `offramp`."""

import sys
from pathlib import Path

if __name__ == "__main__":
    if not sys.flags.safe_path and sys.path[:1] == [str(Path.cwd())]:
        del sys.path[0]  # what lies in the working directory is imported only where `python:` names it
    from offramp.cli import main

    main()
