"""Is a plan read as it is written, and every mistake in it answered with one sentence?"""

from pathlib import Path

import pytest

import mcr_lens as mcr
from mcr_lens import UnknownMetricError
from mcr_lens.intervention_tables import KINDS, read_intervention
from mcr_lens.metrics._registry import select
from mcr_lens.sweep_plan import read_plan

EXAMPLE = Path(__file__).parents[2] / "examples" / "sweep_plan.toml"

MADE = [
    mcr.zero_ablation("mlp_out", layers=[0, 2], positions=None),
    mcr.zero_ablation("z", layers=1, positions=[0, 3], heads=[1]),
    mcr.zero_ablation("mlp_out", layers=1, positions=slice(1, None)),
    mcr.zero_ablation("attn_out", layers=1, positions=slice(2, 9, 3)),
    mcr.zero_ablation("resid", layers=1, positions=mcr.at_tokens(".", 5)),
    mcr.scale("mlp_out", 0.25, layers=1),
    mcr.clamp_norm("resid", 12, layers=[3], positions=0),
    mcr.inject("mlp_out", layers=0, positions=4, norm=100),
    mcr.random_direction("mlp_out", layers=0, seed=7),
]


def given(**changes) -> dict:
    plan = {"out": "o", "models": [{"name": "demo"}], "prompts": [{"name": "p", "texts": ["one", "two"]}]}
    return {k: v for k, v in (plan | changes).items() if v is not ...}


@pytest.mark.parametrize("made", MADE, ids=lambda made: f"{made.edit.kind} {made.describe()['positions']}")
def test_what_describe_writes_can_be_read(made):
    """An intervention and its table are the same thing."""
    assert read_intervention(made.describe()) == made


def test_interventions_of_a_plan_file(tmp_path):
    """TOML has no null: "all" is everywhere, and what is left out is the first token."""
    file = tmp_path / "p.toml"
    file.write_text(
        'out = "o"\nmodels = ["demo"]\n[[prompts]]\nname = "p"\nfile = "demo"\n[conditions]\nclean = []\n'
        'all = [{kind = "zero_ablation", site = "mlp_out", layers = 1, positions = "all"}]\n'
        'two = [{kind = "scale", factor = 2, site = "z", layers = [0, 1], heads = 3},'
        ' {kind = "zero_ablation", site = "resid", layers = [1], positions = {tokens = ["."]}}]\n'
    )
    assert read_plan(file).conditions == {
        "clean": (),
        "all": (mcr.zero_ablation("mlp_out", layers=1, positions=None),),
        "two": (
            mcr.scale("z", 2, layers=[0, 1], heads=3),
            mcr.zero_ablation("resid", layers=1, positions=mcr.at_tokens(".")),
        ),
    }


def test_every_kind_is_tried():
    """The law above covers every kind there is."""
    assert {made.edit.kind for made in MADE} == set(KINDS)


def test_the_example():
    plan = read_plan(EXAMPLE)
    assert plan.out == EXAMPLE.parent / "sweep-demo" and plan.chunk == 8 and plan.engine == "local"
    assert [m.title for m in plan.models] == ["demo"] and len(list(plan.prompts[0].source)) == 16
    assert list(plan.conditions) == ["clean", "cut"]


def test_defaults_and_paths(tmp_path, monkeypatch):
    """Paths of a file are relative to it, from wherever it is read; folders of models too."""
    (tmp_path / "ckpt").mkdir()
    (tmp_path / "p.txt").write_text("a\n")
    file = tmp_path / "plan.toml"
    file.write_text(
        '\ufeffout = "sub/out"\nmodels = ["ckpt", "acme/tiny"]\n[[prompts]]\nname = "p"\nfile = "p.txt"\n',
        encoding="utf-8",
    )
    monkeypatch.chdir("/")
    plan = read_plan(file, {"chunk": 3})
    assert plan.out == tmp_path / "sub/out" and plan.chunk == 3
    assert [(m.label, m.name) for m in plan.models] == [
        ("ckpt", str((tmp_path / "ckpt").resolve())),
        ("acme/tiny", "acme/tiny"),
    ]
    assert list(plan.prompts[0].source) == ["a"] and plan.conditions == {}
    assert plan.metrics == tuple(m.name for m in select(None))
    assert read_plan(file, {"out": "here"}).out == Path("/here")


def test_revisions():
    """One model for each revision, told apart by name."""
    models = [{"name": "acme/tiny", "revisions": ["step1", "main"], "dtype": "bfloat16"}, "other"]
    plan = read_plan(given(models=models))
    assert [(m.title, m.dtype) for m in plan.models] == [
        ("acme/tiny@step1", "bfloat16"),
        ("acme/tiny@main", "bfloat16"),
        ("other", "float32"),
    ]


def test_the_model_as_it_is_alone_is_no_condition():
    assert read_plan(given(conditions={"clean": []})).conditions == {}


CUT = {"kind": "zero_ablation", "site": "mlp_out", "layers": [0]}
PROMPT = {"name": "p", "texts": ["one"]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"out": ...}, 'plan: out is missing; write out = "..."'),
        ({"out": ""}, "plan: out='': pass a text"),
        ({"chunks": 3}, "unknown key 'chunks'; did you mean 'chunk'\\? its keys are out, models"),
        ({"models": ...}, r"plan: models is missing; write one or more tables \[\[models\]\]"),
        ({"models": []}, "plan: models is empty; write one or more"),
        ({"models": "demo"}, "plan: models is a str; write one or more"),
        ({"models": {"name": "demo"}}, "plan: models is a dict; write one or more"),
        ({"models": [3]}, r"plan: models\[0\] is a int"),
        ({"models": [{"nam": "demo"}]}, r"models\[0\]: unknown key 'nam'; did you mean 'name'\?"),
        ({"models": [{"label": "x"}]}, r"models\[0\]: name is missing"),
        ({"models": ["demo", "demo"]}, "two of the models are called 'demo'; give one of them a label"),
        (
            {"models": [{"name": "a/b", "revisions": "main"}]},
            r'pass a list of one or more names, such as \["st',
        ),
        ({"models": [{"name": "a/b", "revisions": []}]}, r"revisions=\[\]: pass a list"),
        ({"models": [{"name": "a/b", "revisions": ["x", "x"]}]}, "two of the models are called 'a/b@x'"),
        ({"models": [{"name": "demo", "revisions": ["x"]}]}, "'demo' is no hub model, so it has none"),
        (
            {"models": [{"name": "a/b", "dtype": "float8"}]},
            r"did you mean 'float32'\? pass one of float32, bf",
        ),
        (
            {"models": [{"name": "a", "device": "cpu", "device_map": "auto"}]},
            "pass device or device_map, not both",
        ),
        ({"models": [{"name": "a", "device_map": 3}]}, 'device_map=3: pass "auto" or a table'),
        (
            {"models": [{"name": "a", "model": print, "dtype": "float32"}]},
            "in memory is loaded already; leave dtype, device",
        ),
        ({"models": [{"name": "a", "served": 1}]}, "served=1: pass true or false"),
        ({"models": [{"name": "a", "attention": "sdpa"}]}, "it is for models as they are served; say served"),
        ({"prompts": []}, r"plan: prompts is empty; write one or more tables \[\[prompts\]\]"),
        ({"prompts": ["text"]}, r"prompts\[0\] is a str"),
        ({"prompts": [{"name": "p"}]}, "pass one of file, dataset and texts, got none"),
        ({"prompts": [PROMPT | {"file": "x"}]}, "pass one of file, dataset and texts, got file and texts"),
        ({"prompts": [PROMPT | {"split": "x"}]}, "split='x': it has no meaning for texts; leave it out"),
        ({"prompts": [PROMPT | {"field": "x"}]}, "field='x': it has no meaning for texts"),
        ({"prompts": [PROMPT | {"limit": 0}]}, "limit=0: pass a whole number from 1 on"),
        ({"prompts": [PROMPT, PROMPT]}, "two of the prompts are called 'p'; give one of them another name"),
        (
            {"models": ["a", {"name": "a/b"}], "prompts": [PROMPT | {"name": "b/c"}, PROMPT | {"name": "c"}]},
            "two of the results are called 'a/b/c'; give a model or its prompts another name",
        ),
        ({"prompts": [PROMPT | {"texts": []}]}, "texts is empty; pass a list of texts, or a function"),
        ({"prompts": [PROMPT | {"texts": "one"}]}, "texts is a str; pass a list"),
        (
            {"prompts": [PROMPT | {"texts": iter(["a"])}]},
            "or a function that makes them anew for each reading",
        ),
        ({"prompts": [PROMPT | {"texts": ["a", ""]}]}, r"prompts\[0\]: prompt 1 is an empty string"),
        ({"prompts": [{"name": "d", "dataset": "a/b", "streaming": 1}]}, "streaming=1: pass true or false"),
        ({"conditions": {}}, r"conditions is empty; write a table \[conditions\]"),
        ({"conditions": {"cut": 3}}, "condition 'cut' is a int; write a list of interventions"),
        ({"conditions": {"": []}}, "condition '': a condition needs a name"),
        ({"conditions": {"cut": [3]}}, "condition 'cut': got a int; an intervention is a table such as"),
        ({"conditions": {"cut": [CUT | {"kind": "zero"}]}}, "kind='zero': pass one of zero_ablation, scale"),
        ({"conditions": {"cut": [CUT | {"kind": "scal"}]}}, r"did you mean 'scale'\?"),
        (
            {"conditions": {"cut": [CUT | {"kind": "mean_ablation"}]}},
            "mean_ablation needs vectors or prompts",
        ),
        (
            {"conditions": {"cut": [CUT | {"kind": "inject", "vector": [1.0]}]}},
            "inject needs vectors or prompts",
        ),
        ({"conditions": {"cut": [CUT | {"kind": "scale"}]}}, "scale needs factor; write a table"),
        (
            {"conditions": {"cut": [CUT | {"layer": 1}]}},
            r"no key 'layer'; did you mean 'layers'\? its keys are",
        ),
        (
            {"conditions": {"cut": [CUT | {"layers": [-1]}]}},
            r"condition 'cut': layers=\[-1\]: pass one or more",
        ),
        ({"conditions": {"cut": [CUT | {"site": "mlp"}]}}, "condition 'cut': "),
        ({"conditions": {"cut": [CUT | {"positions": "last"}]}}, "the only name is 'bos'"),
        ({"conditions": {"cut": [CUT | {"positions": "1:x"}]}}, "a range counts from 0, such as '2:8'"),
        ({"conditions": {"cut": [CUT | {"positions": {"token": ["."]}}]}}, r"the only table is \{tokens"),
        (
            {"conditions": {"cut": [CUT | {"kind": "random_direction", "seed": "a"}]}},
            "seed='a': pass a whole",
        ),
        ({"metrics": []}, r"metrics=\[\]: pass at least one name or group"),
        ({"metrics": [print]}, "pass a list of names or groups; functions need a name"),
        ({"metrics": 3}, "metrics=3: pass a list of names"),
        ({"batch_size": 0}, 'batch_size=0: pass a whole number from 1 on, or "auto"'),
        ({"batch_size": "large"}, "batch_size='large': pass a whole number"),
        ({"max_length": True}, "max_length=True: pass a whole number from 1 on"),
        ({"prepend_bos": 1}, 'prepend_bos=1: pass "auto", true or false'),
        ({"position": -1}, "position=-1: pass a whole number from 0 on"),
        ({"keep": "moment"}, r"keep='moment': did you mean 'moments'\? pass one of prompts, moments"),
        ({"chunk": 0}, "chunk=0: pass a whole number from 1 on"),
        ({"chunk": 2.5}, "chunk=2.5: pass a whole number"),
        ({"engine": "rya"}, r"engine='rya': did you mean 'ray'\? pass one of local, ray"),
        ({"workers": 2}, 'workers=2: it is for the engine ray; say engine = "ray" or leave it out'),
        ({"engine": "ray", "workers": 0}, "workers=0: pass a whole number from 1 on"),
        ({"engine": "ray", "gpus_per_worker": -1}, "gpus_per_worker=-1: pass a number from 0 on"),
        (
            {"engine": "ray", "models": [{"name": "a", "model": print}]},
            "a model in memory cannot be sent to Ray",
        ),
    ],
)
def test_refusals(changes, message):
    """One sentence: where, what came, what is allowed."""
    with pytest.raises(ValueError, match=message) as seen:
        read_plan(given(**changes))
    assert "\n" not in str(seen.value)


def test_unknown_metric():
    with pytest.raises(UnknownMetricError, match="did you mean 'bos_norm'"):
        read_plan(given(metrics=["bos_nrm"]))


def test_metrics_that_workers_do_not_know():
    """A metric of one's own is measured here, and refused where nobody else knows it."""
    from jaxtyping import Float
    from torch import Tensor

    @mcr.metric(units="1", source="test")
    def my_own(token_norms: Float[Tensor, "batch pos"]) -> Float[Tensor, "batch"]:
        """Mine."""
        return token_norms.sum(-1)

    assert read_plan(given(metrics=["my_own"])).metrics == ("my_own",)
    with pytest.raises(ValueError, match=r"the metric 'my_own' is not part of mcr_lens, so Ray workers"):
        read_plan(given(metrics=["my_own"], engine="ray"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"out = \n", r"plan\.toml is not TOML: .*line 1"),
        (b"out = 'a'\nout = 'b'\n", "is not TOML"),
        (b"out = 'caf\xe9'\n", r"is not UTF-8 text \(byte 10\)"),
        (b"", r"plan\.toml: models is missing"),
    ],
)
def test_bad_files(tmp_path, content, message):
    file = tmp_path / "plan.toml"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=message) as seen:
        read_plan(file)
    assert "\n" not in str(seen.value)


def test_the_bundled_prompts_and_a_file_of_their_name(tmp_path):
    """One of the two is meant, and the plan must say which."""
    (tmp_path / "demo").write_text("mine\n")
    file = tmp_path / "plan.toml"
    text = 'out = "o"\nmodels = ["demo"]\n[[prompts]]\nname = "p"\nfile = "demo"\n'
    file.write_text(text)
    with pytest.raises(ValueError, match=r"it names the bundled prompts; for .*demo write \./demo"):
        read_plan(file)
    file.write_text(text.replace('file = "demo"', 'file = "./demo"'))
    assert list(read_plan(file).prompts[0].source) == ["mine"]


def test_what_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"is not a file; name a plan file such as sweep\.toml"):
        read_plan(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"prompts\[0\]: .*no\.txt is not a file"):
        read_plan(given(prompts=[{"name": "p", "file": str(tmp_path / "no.txt")}]))
    with pytest.raises(TypeError, match="a plan is the path of a TOML file or a mapping, got int"):
        read_plan(3)  # type: ignore[arg-type]
