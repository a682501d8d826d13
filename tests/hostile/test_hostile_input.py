"""Is every bad input answered with one clear sentence, and does it leave model and folder as they were?"""

import traceback
import warnings
from importlib import import_module

import pytest
from world import Case, World, state_of

TABLES = (
    "prompts", "ids_and_masks", "metrics_functions", "models", "observe", "interventions", "experiments",
    "results_files", "lens_files", "reading", "statistics", "plots_and_report", "sweep_plans", "choices",
    "labelled_texts", "lenses", "probes_and_tasks",
)  # fmt: skip
"""Areas; the cases of each stand in `bad_<area>.py`."""

CASES = [
    pytest.param(case, id=f"{area}: {case.what}")
    for area in TABLES
    for case in import_module(f"bad_{area}").CASES
]

pytestmark = pytest.mark.once


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """What the calls are made with; made once, and the same afterwards."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of making it; what a call warns of is another matter
        yield World(tmp_path_factory.mktemp("world"))


@pytest.mark.parametrize("case", CASES)
def test_one_sentence(world: World, case: Case):
    """The kind of error, what it says, on one line, raised by the library; nothing else has changed."""
    models = [getattr(world, name) for name in case.call.__code__.co_names if name in world.MODELS]
    before = [state_of(model) for model in models]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # many cases warn before they are refused
        with pytest.raises(case.error) as seen:
            case.call(world)
    said = str(seen.value)
    assert type(seen.value) is case.error
    assert case.says in said
    assert "\n" not in said and len(said) < 1200
    last = traceback.extract_tb(seen.value.__traceback__)[-1]
    assert "/mcr_lens/" in last.filename and (last.line or "").startswith("raise"), last
    assert [state_of(model) for model in models] == before
    assert not list(world.folder.rglob("*.part"))


def test_the_cases_are_many_and_distinct():
    """By name, and by what is called."""
    names = [param.id for param in CASES]
    calls = [
        (param.values[0].call.__code__.co_code, repr(param.values[0].call.__code__.co_consts),
         param.values[0].call.__code__.co_names, repr(param.values[0].call.__defaults__))
        for param in CASES
    ]  # fmt: skip
    assert len(set(names)) == len(names) >= 200
    assert len(set(calls)) == len(calls)
