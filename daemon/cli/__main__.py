"""`python -m daemon.cli`: the command `livevec`, also where no script of that name is on the path."""

from daemon.cli.app import main

if __name__ == "__main__":
    main()
