"""`python -m offramp` is the command `offramp`."""

from offramp.cli import main

if __name__ == "__main__":
    main()
