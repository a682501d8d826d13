"""Runs commands on the bundled model in a process that may not open a connection; run by test_network.

Prints a JSON line: the exit codes, and every attempt to look up or reach somebody.
"""

import json
import os
import socket
import sys
from pathlib import Path

ATTEMPTS: list[str] = []


def refuse(*arguments: object, **_: object) -> None:
    """Note who was to be reached, and fail as a machine without a network does."""
    address = next((a for a in arguments if isinstance(a, tuple | str | bytes)), arguments)
    ATTEMPTS.append(repr(address))
    raise OSError(101, "Network is unreachable")


def cut_off() -> None:
    """Leave this process no way out; only in `main`, for the tests import this module with all others."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"):
        os.environ.pop(name, None)  # nothing but the blocks below keeps it off the network
    for method in ("connect", "connect_ex", "sendto"):
        setattr(socket.socket, method, refuse)
    for function in ("getaddrinfo", "gethostbyname", "gethostbyname_ex", "create_connection"):
        setattr(socket, function, refuse)


def main(folder: Path) -> None:
    cut_off()
    from mcr_lens import cli

    prompts = folder / "prompts.txt"
    prompts.write_text("The river runs to the sea.\nA cat sat on the mat, and slept until the evening.\n")
    commands = [
        ["metrics"], ["inspect", "demo"], ["inspect", "demo", "--served"],
        ["measure", "demo", "--prompts", prompts, "--out", folder / "measured"],
        ["diagnose", "demo", "--limit", "2", "--out", folder / "diagnosed"],
        ["report", folder / "diagnosed" / "result.nc", "--out", folder / "page"],
        ["lens", "demo", "--text", prompts, "--out", folder / "lens"],
    ]  # fmt: skip
    codes = []
    for command in commands:
        sys.argv = ["mcr-lens", *map(str, command)]
        try:
            cli.app()
        except SystemExit as end:
            codes.append(end.code or 0)
    print("SEEN", json.dumps({"codes": codes, "attempts": ATTEMPTS}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
