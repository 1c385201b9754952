"""`python -m offramp` is the command `offramp`."""

import sys
from pathlib import Path

if __name__ == "__main__":
    if not sys.flags.safe_path and sys.path[:1] == [str(Path.cwd())]:
        del sys.path[0]  # modules in the working directory are imported only if `python:` names them
    from offramp.cli import main

    main()
