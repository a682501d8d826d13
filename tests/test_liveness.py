"""Is an edit that goes nowhere found out before it passes for "no effect"?"""

import warnings
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from models import bridge
from transformer_lens.hook_points import HookPoint

from mcr_lens import (
    IndirectEditWarning,
    SwallowedEditError,
    check_edit,
    measure,
    observe,
    zero_ablation,
    zero_bos_mlp,
)
from mcr_lens.hookpoints import HookDidNotFireError


class Toy(torch.nn.Module):
    """Two blocks of one linear "MLP" each; what becomes of a hook's output is up to `kind`."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.cfg = SimpleNamespace(n_layers=2, n_heads=1, d_model=8, device="cpu", model_name=f"toy-{kind}")
        self.embed = torch.nn.Embedding(5, 8)
        self.mlps = torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(2))
        self.points = {"blocks.0.hook_resid_pre": HookPoint()}
        for layer in range(2):
            for name in ("hook_attn_out", "hook_mlp_out", "hook_resid_post"):
                self.points[f"blocks.{layer}.{name}"] = HookPoint()
        for name, point in self.points.items():
            point.name = name

    @property
    def hook_dict(self):
        return self.points

    @contextmanager
    def hooks(self, fwd_hooks=(), bwd_hooks=()):
        handles = []
        for name, function in fwd_hooks:
            call = lambda module, args, out, function=function: function(out, hook=module)  # noqa: E731
            handles.append(self.points[name].register_forward_hook(call))
        try:
            yield self
        finally:
            for handle in handles:
                handle.remove()

    def forward(self, tokens, return_type=None):
        x = self.points["blocks.0.hook_resid_pre"](self.embed(tokens))
        for layer, mlp in enumerate(self.mlps):
            attended = self.points[f"blocks.{layer}.hook_attn_out"](x.cumsum(1) / 2)
            x = x + attended
            written = mlp(x)
            if self.kind == "silent" and layer == 1:
                hooked = written
            else:
                hooked = self.points[f"blocks.{layer}.hook_mlp_out"](written)
            x = x + (written if self.kind == "swallows" and layer == 1 else hooked)
            if self.kind == "post-norm":
                x = torch.nn.functional.layer_norm(x, (8,))
            x = self.points[f"blocks.{layer}.hook_resid_post"](x)
        return x


def test_a_live_hook_point_is_exact():
    """Both sites, every layer, the attention's edit answered by the MLP behind it."""
    model = Toy("plain")
    assert check_edit(model, "mlp_out", [0, 1]) == "exact"
    assert check_edit(model, "attn_out", [0, 1]) == "exact"


def test_a_swallowed_edit_is_refused():
    """Never "no effect": the layer, the hook point and what to do are named."""
    model = Toy("swallows")
    assert check_edit(model, "mlp_out", 0) == "exact"
    with pytest.raises(SwallowedEditError, match=r"toy-swallows drops .* at 'blocks.1.hook_mlp_out'"):
        check_edit(model, "mlp_out", 1)
    with pytest.raises(SwallowedEditError, match=r"changes nothing there; use another site"):
        zero_bos_mlp([0, 1]).fwd_hooks(model)


def test_a_hook_point_that_is_never_reached_is_refused():
    """Present, registered, silent."""
    with pytest.raises(HookDidNotFireError, match=r"never reaches 'blocks.1.hook_mlp_out'"):
        check_edit(Toy("silent"), "mlp_out", 1)


def test_behind_a_norm_the_user_is_told():
    """Live, but the stream does not change by the edited vector."""
    model = Toy("post-norm")
    assert check_edit(model, "mlp_out", 0) == "through a norm"
    with pytest.warns(IndirectEditWarning, match="normalises behind 'mlp_out'"):
        zero_bos_mlp(0).fwd_hooks(model)


def test_zero_writes_are_still_live():
    """A model that writes nothing at all is edited all the same: the trial adds, it does not zero."""
    model = Toy("plain")
    with torch.no_grad():
        for parameter in model.mlps.parameters():
            parameter.zero_()
    assert check_edit(model, "mlp_out", 0) == "exact"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_massive_rows_do_not_hide_an_exact_edit(dtype):
    """A stream 10⁴ times the write rounds the change away in its last digits, and still passes."""
    model = Toy("plain").to(dtype)
    with torch.no_grad():
        model.embed.weight.mul_(1e4)
        for mlp in model.mlps:
            mlp.weight.mul_(1e-4)
    assert check_edit(model, "mlp_out", [0, 1]) == "exact"


def test_each_hook_point_is_tried_once_per_model():
    """No cost from the second time on; another model is tried again."""
    model, calls = Toy("plain"), []
    model.register_forward_hook(lambda *_: calls.append(1))
    check_edit(model, "mlp_out", [0, 1])
    first = len(calls)
    check_edit(model, "mlp_out", [0, 1])
    assert first > 0 and len(calls) == first


def test_the_trial_is_not_measured(tokens):
    """Inside a block that observes, trying out an edit adds no prompts."""
    model = bridge("llama")
    with observe(model, ["bos_norm"]) as watch, warnings.catch_warnings():
        warnings.simplefilter("error")
        model.run_with_hooks(tokens, fwd_hooks=zero_bos_mlp(1).fwd_hooks(model))
    ds = watch.result()
    assert ds.sizes["prompt"] == len(tokens)
    wanted = measure(bridge("llama"), tokens, ["bos_norm"], interventions=[zero_bos_mlp(1)], progress=False)
    assert (ds.bos_norm.values == wanted.bos_norm.values).all()


def test_both_sites_of_a_real_model():
    """Every layer of a bridge."""
    model = bridge("llama")
    for site in ("mlp_out", "attn_out"):
        assert check_edit(model, site, range(4)) == "exact"
        zero_ablation(site, layers=[0, 3]).fwd_hooks(model)
