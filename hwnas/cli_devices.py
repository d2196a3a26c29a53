"""The commands about devices: what is reachable, and whether it can be measured."""

from __future__ import annotations

from typing import Annotated

import typer

from hwnas.cli_options import say
from hwnas.console import rows
from hwnas.errors import MeasurementError
from hwnas.plugins import DEVICES, load

device = typer.Typer(help="Examine a phone or a board.", no_args_is_help=True)


def devices(
    ssh: Annotated[list[str] | None, typer.Option(help="A board, as [user@]host[:port]; again for more.")] = None,
) -> None:
    """List this computer, the phones that adb sees, and boards, as 'hwnas profile --device' takes them."""
    found = load(DEVICES, "reachable")(ssh or [])
    rows("devices", ("device", "state", "what it is"), [(each.target, each.state, each.about) for each in found])


@device.command()
def doctor(target: Annotated[str, typer.Argument(help="adb:SERIAL, ssh://[user@]host[:port] or local.")]) -> None:
    """Check everything that measuring on a device needs; the report is made for pasting."""
    failed = load(DEVICES, "doctor")(target, say)
    if failed:
        raise MeasurementError(
            f"{failed} of the checks that measuring needs failed on {target}. What each says above is what to do; "
            "docs/phone.md has more."
        )
