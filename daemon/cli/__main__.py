"""`python -m daemon.cli`: the command, also where no script `livevec` is on the path."""

from daemon.cli.app import main

if __name__ == "__main__":
    main()
