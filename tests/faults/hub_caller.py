"""Asks a hub that is down, closed or does not know; run by test_hub in a process of its own.

Prints a JSON line for each call: what was called, with which name, how it was refused.
"""

import http.server
import json
import os
import socket
import sys
import threading
import time

CODES = {"broken": 503, "gated": 401, "unknown": 404}


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers by the name that it is asked for, as the hub does."""

    def answer(self) -> None:
        code = next((code for name, code in CODES.items() if name in self.path), 404)
        self.send_response(code)
        if code == 401:
            self.send_header("X-Error-Code", "GatedRepo")
        if code == 404:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD = do_POST = answer

    def log_message(self, *_) -> None:
        """Nothing on standard error."""


def address(down: bool) -> str:
    """Where the hub is, or is not."""
    if down:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            return f"http://127.0.0.1:{free.getsockname()[1]}"
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}"


def main(down: bool, offline: bool, home: str) -> None:
    os.environ |= {"HF_ENDPOINT": address(down), "HF_HOME": home, "HF_HUB_DISABLE_TELEMETRY": "1"}
    os.environ |= {"HF_HUB_OFFLINE": str(int(offline)), "TRANSFORMERS_OFFLINE": str(int(offline))}
    import mcr_lens
    from mcr_lens import cli, prompt_sources

    time.sleep = lambda seconds: None  # the hub's client waits longer from try to try

    def swept(name: str) -> None:
        plan = {"out": f"{home}/out", "models": [name], "prompts": [{"name": "p", "texts": ["A text."]}]}
        mcr_lens.sweep(plan, progress=False)

    def command(name: str) -> None:
        sys.argv = ["mcr-lens", "inspect", name]
        cli.app()

    calls = {
        "load_model": lambda name: mcr_lens.load_model(name, verbose=False),
        "serve": lambda name: mcr_lens.serve(name, verbose=False),
        "dataset": lambda name: list(prompt_sources.DatasetPrompts(name)),
        "emergence": lambda name: mcr_lens.emergence(name, ["A text."], revisions=["step1"], progress=False),
        "sweep": swept,
        "command": command,
    }
    for name in ["down"] if down or offline else CODES:
        for what, call in calls.items():
            said = "nothing"
            try:
                call(f"acme/{name}")
            except SystemExit as end:
                said = f"exit {end.code}"
            except Exception as error:
                said = f"{type(error).__name__}: {error}"
            print(json.dumps({"what": what, "name": name, "said": said}))


if __name__ == "__main__":
    main(sys.argv[1] == "down", sys.argv[1] == "offline", sys.argv[2])
