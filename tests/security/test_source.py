"""Does the code, as it stands, never run what a file holds?"""

import ast
from pathlib import Path

import pytest

pytestmark = pytest.mark.once

ROOT = Path(__file__).parents[2]
FILES = sorted(
    file for folder in ("mcr_lens", "examples", "benchmarks") for file in (ROOT / folder).rglob("*.py")
)

MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "jsonpickle"}
"""Reading with these runs what the file says."""

CALLS = {"eval", "exec", "compile", "__import__"}
"""Built-in functions that run text."""

METHODS = {
    "yaml.load", "yaml.unsafe_load", "yaml.full_load", "os.system", "os.popen", "torch.hub.load",
    "pd.read_pickle", "pandas.read_pickle", "torch.jit.load", "torch.package.PackageImporter",
}  # fmt: skip


def faults(tree: ast.AST) -> list[str]:
    """What in a module would run what a file or a text holds."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [name.name for name in node.names if name.name.split(".")[0] in MODULES]
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            found.append(str(node.module))
        if isinstance(node, ast.Call):
            found += _faults_of_call(node)
    return found


def _faults_of_call(node: ast.Call) -> list[str]:
    name = ast.unparse(node.func)
    given = {k.arg: k.value for k in node.keywords}
    found = [name] if name in CALLS | METHODS else []

    def is_true(key: str) -> bool:
        return isinstance(given.get(key), ast.Constant) and given[key].value is True

    if name == "torch.load" and not is_true("weights_only"):
        found.append("torch.load without weights_only=True")
    return found + [key for key in ("allow_pickle", "trust_remote_code", "shell") if is_true(key)]


def test_there_is_something_to_look_at():
    assert len(FILES) > 100 and {f.parent.name for f in FILES} >= {"mcr_lens", "examples", "benchmarks"}


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_nothing_that_is_read_is_run(file):
    assert faults(ast.parse(file.read_text("utf-8"))) == []


@pytest.mark.parametrize(
    "bad",
    [
        "import pickle", "from pickle import loads", "import joblib as j", "eval('1')", "exec(text)",
        "torch.load(p)", "torch.load(p, weights_only=False)", "np.load(p, allow_pickle=True)",
        "yaml.load(text)", "subprocess.run(c, shell=True)", "load(n, trust_remote_code=True)",
        "__import__(name)", "compile(text, 'f', 'exec')", "pd.read_pickle(p)", "os.system(c)",
    ],
)  # fmt: skip
def test_the_scan_sees(bad):
    assert len(faults(ast.parse(bad))) == 1


@pytest.mark.parametrize("fine", ["model.eval()", "re.compile('a')", "torch.load(p, weights_only=True)"])
def test_the_scan_leaves_alone(fine):
    assert faults(ast.parse(fine)) == []
