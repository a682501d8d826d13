"""Do the workflows of GitHub run what `.ci/run` runs, with no more rights than they need?"""

import re
from pathlib import Path

import pytest

yaml = pytest.importorskip("yaml", reason="PyYAML, which transformers brings, reads the workflows")

pytestmark = pytest.mark.once

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
EVERY = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
USED = {
    "actions/checkout@v4", "actions/setup-python@v5", "actions/upload-artifact@v4",
    "actions/download-artifact@v4", "pypa/gh-action-pypi-publish@release/v1",
}  # fmt: skip
"""Actions by their publishers alone, each at one major version."""


def jobs(name: str) -> dict:
    return yaml.safe_load((ROOT / ".github" / "workflows" / f"{name}.yml").read_text("utf-8"))["jobs"]


def commands(job: dict) -> list[str]:
    return [step["run"] for step in job["steps"] if "run" in step]


def test_these_are_all():
    assert [file.stem for file in FILES] == ["ci", "nightly", "release"]


def test_ci_runs_the_script_and_nothing_beside_it():
    """What passes here passes there: no step of its own that could differ."""
    assert commands(jobs("ci")["everything"]) == ["bash .ci/run"]


def test_every_night_everything_runs():
    """What `make test` leaves out is not forgotten."""
    assert commands(jobs("nightly")["repetition"]) == ["make test-all"]


def test_newer_pythons_run_the_tests_that_the_lowest_versions_run():
    """The same selection as in the script, on the Python versions that the package claims beside 3.11."""
    job = jobs("ci")["newer-pythons"]
    (command,) = commands(job)
    script = (ROOT / ".ci" / "run").read_text("utf-8")
    selection = re.search(r'SELECT="([^"]+)"', script)[1]
    assert command == f'make test TEST_GROUPS=test SELECT="{selection}"'
    claimed = re.findall(r"Python :: (3\.\d+)", (ROOT / "pyproject.toml").read_text("utf-8"))
    assert ["3.11", *job["strategy"]["matrix"]["python-version"]] == claimed


def test_a_release_is_what_make_dist_builds_and_checks():
    """And its tag is its version."""
    first, second = commands(jobs("release")["build"])
    assert first == "make dist" and second.startswith('test "$GITHUB_REF_NAME" = "v$(')
    assert commands(jobs("release")["publish"]) == []


@EVERY
def test_rights_are_the_least(file):
    """Reading the repository; the one job that publishes may prove who it is, and nothing else."""
    whole = yaml.safe_load(file.read_text("utf-8"))
    assert whole["permissions"] == {"contents": "read"}
    for name, job in whole["jobs"].items():
        assert job.get("permissions") == ({"id-token": "write"} if name == "publish" else None)
        assert job["timeout-minutes"] <= 90


@EVERY
def test_only_known_actions_and_no_credentials_left_behind(file):
    for job in yaml.safe_load(file.read_text("utf-8"))["jobs"].values():
        for step in job["steps"]:
            assert step.get("uses", "actions/checkout@v4") in USED
            if step.get("uses", "").startswith("actions/checkout"):
                assert step["with"] == {"persist-credentials": False}
