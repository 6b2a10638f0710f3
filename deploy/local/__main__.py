"""`python -m deploy.local up|down|status`: the bare stack, for work on the stack itself."""

import json
import sys
from dataclasses import asdict

from daemon.errors import StackError
from deploy.local.progress import Progress
from deploy.local.stack import Stack, default_home


def _print(progress: Progress) -> None:
    count = f" {progress.done}/{progress.total}" if progress.total else ""
    seconds = f" {progress.seconds:.1f} s" if progress.seconds is not None else ""
    print(f"{progress.step}{count}{seconds} {progress.detail}", file=sys.stderr, flush=True)


def main() -> int:
    stack = Stack(default_home())
    try:
        match sys.argv[1:]:
            case ["up"]:
                print(json.dumps(asdict(stack.up(_print, detach=True)), indent=1))
            case ["down"]:
                stack.down()
            case ["status"]:
                print(json.dumps([asdict(server) for server in stack.status()], indent=1))
            case _:
                print(__doc__, file=sys.stderr)
                return 2
    except StackError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
