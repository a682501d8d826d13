"""Does a hub that is down, closed or does not know a name give a sentence, and no traceback?"""

import json
from pathlib import Path

import pytest
from scripts import ran

pytestmark = pytest.mark.once

SCRIPT = Path(__file__).with_name("hub_caller.py")
CALLS = ("load_model", "serve", "dataset", "emergence", "sweep", "command")
NOT_FETCHED = "'acme/{name}' is neither a local folder nor a model that could be fetched from the hub ({why}"
ADVICE = "; check the name and the network, or pass a folder"
GATED = "'acme/gated' is gated on the hub: ask for access on its page, then log in with `hf auth login` or"


def asked(how: str, home: Path) -> tuple[dict[tuple[str, str], str], str]:
    """What was said, by call and name; and on standard error."""
    done = ran(SCRIPT, how, home)
    assert "Traceback" not in done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return {(line["what"], line["name"]): line["said"] for line in lines}, done.stderr


def assert_not_fetched(said: dict[tuple[str, str], str], name: str, why: str) -> None:
    """Every way to load a model says it alike, in one line."""
    expected = NOT_FETCHED.format(name=name, why=why)
    for what in ("load_model", "serve", "emergence"):
        text = said[what, name]
        assert text.startswith(f"ModelLoadError: {expected}") and text.endswith(ADVICE) and "\n" not in text
    assert said["sweep", name].startswith("SweepError: 1 of 1 results are not finished, the first of them ac")
    assert expected in said["sweep", name] and said["command", name] == "exit 1"


@pytest.mark.parametrize("how", [pytest.param("down", marks=pytest.mark.slow), "offline"])
def test_nobody_answers(tmp_path, how):
    pytest.importorskip("datasets")
    said, stderr = asked(how, tmp_path)
    assert sorted(said) == sorted((what, "down") for what in CALLS)
    assert_not_fetched(said, "down", "We couldn't connect to 'http://127.0.0.1:")
    assert said["dataset", "down"].startswith(
        "ValueError: dataset 'acme/down' could not be opened (Couldn't "
    )
    errors = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and errors[0].endswith(ADVICE)


def test_the_hub_says_no(tmp_path):
    """503: it is broken; 401: the model is gated; 404: there is no such model."""
    pytest.importorskip("datasets")
    said, stderr = asked("up", tmp_path)
    assert sorted(said) == sorted((what, name) for what in CALLS for name in ("broken", "gated", "unknown"))
    assert_not_fetched(said, "broken", "We couldn't connect to 'http://127.0.0.1:")
    assert_not_fetched(said, "unknown", "acme/unknown is not a local folder and is not a valid model ident")
    for what in ("load_model", "serve", "emergence"):
        assert said[what, "gated"].startswith(f"ModelLoadError: {GATED}")
    assert GATED in said["sweep", "gated"] and said["command", "gated"] == "exit 1"
    assert f"error: {GATED} set HF_TOKEN" in stderr.splitlines()
    for name, why in (("broken", "Couldn't find"), ("gated", "Dataset 'acme/gated' is a gated dataset"),
                      ("unknown", "Dataset 'acme/unknown' doesn't exist")):  # fmt: skip
        opened = f"ValueError: dataset 'acme/{name}' could not be opened ({why}"
        assert said["dataset", name].startswith(opened) and "\n" not in said["dataset", name]
