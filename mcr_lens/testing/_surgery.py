"""How is a direction written into weights so that exactly the wanted rows carry it, and as much as wanted?

Some directions of the residual stream are reserved: nothing random reads or writes them, so a row has a
component there if and only if it was planted, and what was planted changes nothing else (except through
the norms). What a norm makes of a row depends on the prompt, so amounts are measured on probe prompts:
what a neuron writes is linear in its output column.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mcr_lens.testing._weights import Block, Reader, Weights, Writer

LOGITS, ATTENTION, MLP, POSITIONS = 0.4, 0.1, 0.25, 0.3
"""The background: standard deviation of attention logits, and what attention (averaging 16 keys), an MLP and
the position embedding add to a row, over the norm of a token's embedding, which is √d."""

CONSTANT, FLAG = 0.35, 0.9
"""The components that every embedding has, and that a planted token's has, over the embedding's norm."""

Direction = Float[Tensor, "d_model"]
Rows = Float[Tensor, "prompt pos d_model"]


def reserve(names: Sequence[Hashable], width: int, generator: torch.Generator) -> dict[Any, Direction]:
    """One reserved direction per name, (e_i − e_j)/√2: two coordinates each, as massive activations have.

    Their entries sum to zero, so LayerNorm, which subtracts the mean, leaves them as they are.

    Raises:
        ValueError: more than half of the coordinates would be reserved.
    """
    if 4 * len(names) > width:
        raise ValueError(
            f"width={width}: these plants need {len(names)} directions of two coordinates each, and half of "
            f"the coordinates stay free; pass at least {4 * len(names)}"
        )
    found = torch.zeros(len(names), width)
    pairs = torch.randperm(width, generator=generator)[: 2 * len(names)].view(-1, 2)
    found.scatter_(1, pairs, torch.tensor([0.5**0.5, -(0.5**0.5)]).expand(len(names), 2))
    return dict(zip(names, found, strict=True))


def prepare(
    weights: Weights, reserved: Mapping[Any, Direction], constant: Direction, flags: Mapping[int, Direction]
) -> None:
    """Scale the random weights to a moderate background that neither reads nor writes what is reserved."""
    basis = torch.stack(list(reserved.values()))
    width = basis.shape[1]

    def free(rows: Tensor) -> Tensor:
        return rows - rows @ basis.T @ basis

    def reader(what: Reader, spread: float) -> None:
        gain = what.norm.get_parameter("weight").data
        what.weight.copy_(_scaled(free(what.weight * gain) / gain, spread / width**0.5))
        if what.bias is not None:
            what.bias.copy_(_scaled(what.bias, 0.1))

    def writer(what: Writer, spread: float) -> None:
        what.weight.copy_(_scaled(free(what.weight.T).T, spread / what.weight.shape[1] ** 0.5))
        if what.bias is not None:
            what.bias.copy_(_scaled(free(what.bias), 0.05 * spread))

    for block in weights.blocks:
        reader(block.query, LOGITS**0.5)
        reader(block.key, LOGITS**0.5)
        reader(block.value, 1.0)
        writer(block.attn_out, 4 * ATTENTION)  # 16 keys averaged
        for matrix in block.neurons:
            reader(matrix, 1.0)
        writer(block.mlp_out, 2 * MLP)  # activations of about one half
    content = nn.functional.normalize(free(weights.tokens), dim=-1)
    share = torch.full((len(content),), 1 - CONSTANT**2)
    share[list(flags)] -= FLAG**2
    rows = share.sqrt()[:, None] * content + CONSTANT * constant
    for token, flag in flags.items():
        rows[token] += FLAG * flag
    weights.tokens.copy_(rows * width**0.5)
    if weights.positions is not None:
        positions = nn.functional.normalize(free(weights.positions), dim=-1)
        weights.positions.copy_(positions * POSITIONS * width**0.5)


def _scaled(x: Tensor, rms: float) -> Tensor:
    now = x.square().mean().sqrt()
    return x * rms / now if now > 0 else x


class Surgeon:
    """Writes into the weights of one model, and runs it on probe prompts to see how much that gives."""

    def __init__(self, model: Any, weights: Weights, probes: Int[Tensor, "prompt pos"]) -> None:
        self.probes = probes
        self._model, self._weights = model, weights
        self._used = [0] * len(weights.blocks)  # neurons taken, by block

    def sink(
        self, block: int, heads: Sequence[int], slot: int, source: Direction, query: Direction, logit: float,
        rows: Bool[Tensor, "prompt pos"],
    ) -> None:  # fmt: skip
        """Give the keys of `rows`, known by their component along `source`, this logit in some heads.

        Every query has a component along `query`. One dimension of the heads is used, counted by `slot`
        from the end: under RoPE the last ones turn slowest, and do not turn where the rotary part ends.
        """
        of = self._weights.blocks[block]
        seen = _normed(self._inputs(of.attn_norm)[0], of.attn_norm)
        # The sink's own rows are left out of the typical query: they attend to themselves.
        product = (seen @ source)[rows].mean() * (seen @ query)[~rows].mean()
        gain = float((logit * of.query.weight.shape[1] ** 0.5 / product).sqrt())
        group = len(of.query.weight) // len(of.key.weight)
        shared = {head // group for head in heads}
        for kv in shared:
            _aim(of.key, (kv, -1 - slot), source, gain)
        for head in range(len(of.query.weight)):
            if head // group in shared:  # heads that share the key, but were not chosen, must not see it
                _aim(of.query, (head, -1 - slot), query, gain if head in heads else 0.0)

    def write(
        self, block: int, source: Direction, target: Direction, amount: Callable[[Rows], float],
        rows: Bool[Tensor, "prompt pos"],
    ) -> None:  # fmt: skip
        """Let one neuron add to `rows`, known by their component along `source`, an amount along `target`.

        `amount` is given the residual stream behind the block as it is without this write. The neuron works
        where its activation has a turning point, so what it writes hardly depends on how the norm scales
        the row, and on a row without the component it writes exactly nothing.
        """
        of, neuron = self._weights.blocks[block], self._used[block]
        self._used[block] += 1
        column = of.mlp_out.weight[:, neuron]
        column.zero_()  # the neuron is silent, so this is how the block is without it
        seen, before = self._inputs(of.mlp_norm, self._behind(block))
        strength = float((_normed(seen, of.mlp_norm) @ source)[rows].median())
        turn = _turning_point(of)
        for matrix, level in zip(of.neurons, (-turn, 1.0), strict=False):  # an ungated MLP has no second
            _aim(matrix, (neuron,), source, level / strength)
        column.copy_(target)
        (after,) = self._inputs(self._behind(block))
        response = ((after - before) @ target)[rows].median()
        column.copy_(target * float(amount(before) / response))

    def _behind(self, block: int) -> nn.Module:
        """The norm that reads the residual stream behind a block."""
        following = self._weights.blocks[block + 1 :]
        return following[0].attn_norm if following else self._weights.final_norm

    def _inputs(self, *norms: nn.Module) -> list[Rows]:
        """The residual stream of the probes where some norms read it."""
        seen: list[Tensor] = []
        hooks = [norm.register_forward_pre_hook(lambda _, given: seen.append(given[0])) for norm in norms]
        try:
            with torch.no_grad():
                self._model(input_ids=self.probes, use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()
        return seen


def _normed(x: Rows, norm: nn.Module) -> Rows:
    """What the norm makes of the stream in front of its gain and bias, x̂."""
    centred = x - x.mean(-1, keepdim=True) if isinstance(norm, nn.LayerNorm) else x
    return centred / centred.square().mean(-1, keepdim=True).sqrt()


def _aim(reader: Reader, row: tuple[int, ...], direction: Direction, gain: float) -> None:
    """Let one row of a matrix read `gain` × the component of x̂ along a direction, and nothing else."""
    norm = reader.norm
    reader.weight[row] = gain * direction / norm.get_parameter("weight").data
    if reader.bias is not None:
        shift = norm.get_parameter("bias").data if getattr(norm, "bias", None) is not None else None
        reader.bias[row] = 0.0 if shift is None else -(reader.weight[row] @ shift)


def _turning_point(block: Block) -> float:
    """The z > 0 where f(−z), or z f(−z) for a gated MLP, is largest in magnitude: flat there, 0 at z = 0.

    GELU and SiLU have one, on their negative side; ReLU has none.
    """
    z = torch.linspace(0, 6, 6001)
    response = block.activation(-z) * (z if len(block.neurons) == 2 else 1)
    return float(z[response.abs().argmax()])
