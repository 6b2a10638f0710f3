"""`livevec up` and `livevec down`: the embedded stack."""

from dataclasses import asdict
from typing import Annotated

import typer

from daemon import config
from daemon.cli import console
from daemon.cli import context as given
from daemon.cli.context import Json
from deploy.local.home import OnProgress
from deploy.local.stack import Stack


def up(
    context: typer.Context,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Return once the stack is up; `livevec down` stops it.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Start the embedded stack: PostgreSQL, Kafka, Connect, Triton, Redis, Temporal.

    Without --detach the stack runs until Ctrl-C. A second `up` attaches to the stack that runs already.
    """
    stack = local_stack(context)
    ours = not is_up(stack)
    with console.Steps() as steps:
        if ours:
            addresses = stack.up(reporter(steps), detach=detach)
        else:
            with steps.step("stack", "was up already"):
                addresses = stack.up(detach=detach)
    if as_json:
        console.print_json(addresses)
    else:
        table = console.table("part", "address")
        for name, address in asdict(addresses).items():
            table.add_row(name, address)
        console.out.print(table)
    if detach:
        return
    if not ours:
        console.err.print("the stack was up already and stays up; stop it with `livevec down`")
        return
    console.err.print("Ctrl-C stops it")
    try:
        with console.Steps() as steps:
            stack.wait(reporter(steps))
    finally:
        stack.down()


def down(context: typer.Context, as_json: Json = False) -> None:
    """Stop every process of the embedded stack; its data stays."""
    stack = local_stack(context)
    was_up = is_up(stack)
    stack.down()
    if as_json:
        console.print_json({"stopped": was_up})
    else:
        console.err.print("stopped" if was_up else "no stack was up")


def local_stack(context: typer.Context) -> Stack:
    """Return the stack of the current home, with the ports that the configuration, if there is one, sets."""
    path = given.config_path(context)
    ports = config.load(path).local.ports if given.is_given(context) or path.is_file() else {}
    return Stack(config.default_home(), ports)


def is_up(stack: Stack) -> bool:
    """Tell whether any server of the stack runs."""
    return any(server.state != "stopped" for server in stack.status())


def reporter(steps: console.Steps) -> OnProgress:
    """Return a callback that shows the stack's progress as steps."""
    return lambda progress: steps.news(**vars(progress))
