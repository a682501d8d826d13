"""Which faults must the tests notice? Each is one small change of the library, plausible and wrong."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """What is wrong, in which file, and the text that becomes another one; it stands there exactly once."""

    name: str
    file: str
    right: str
    wrong: str


METRICS = (
    Fault(
        "matrix entropy in bits",
        "metrics/spectral.py",
        "entr(share).sum(-1).clamp_min(0)",
        "entr(share).sum(-1).div(0.6931471805599453).clamp_min(0)",
    ),
    Fault(
        "anisotropy of singular values, not of their squares",
        "metrics/spectral.py",
        "return spectrum[:, 0] / spectrum.sum(-1)",
        "return spectrum[:, 0].sqrt() / spectrum.sqrt().sum(-1)",
    ),
    Fault(
        "mixing score without its normalisation",
        "metrics/attention.py",
        "return mean_over(row_entropy / most, choice)",
        "return mean_over(row_entropy, choice)",
    ),
    Fault(
        "column sums taken for shares, though a sink logit takes mass",
        "metrics/attention.py",
        "share = column_sums / column_sums.sum(-1, keepdim=True)",
        "share = column_sums / column_sums.shape[-1]",
    ),
    Fault(
        "sink score over all queries, not over those that see BOS",
        "metrics/sinks.py",
        "return sink_column.sum(-1) / seen",
        "return sink_column.sum(-1) / sink_column.shape[-1]",
    ),
    Fault(
        "a key's attention to itself counts as a sink",
        "metrics/sinks.py",
        "score = (column_sums - diagonal) / (seen - 1)",
        "score = column_sums / seen",
    ),
    Fault(
        "the norm of the second token for that of BOS",
        "metrics/norms.py",
        "    return token_norms[:, position]\n",
        "    return token_norms[:, position + 1]\n",
    ),
    Fault(
        "BOS among the other tokens",
        "metrics/norms.py",
        "return torch.cat([x[:, :position], x[:, position + 1 :]], 1)",
        "return x",
    ),
    Fault(
        "the energy of the rest holds that of BOS",
        "metrics/theory.py",
        "return _others(row_energies, position).sum(-1)",
        "return row_energies.sum(-1)",
    ),
    Fault(
        "the loss of the token that was just read",
        "metrics/loss.py",
        "tokens[:, 1:].flatten()",
        "tokens[:, :-1].flatten()",
    ),
)

HOOKS_AND_MASKS = (
    Fault(
        "the stream before the block for that behind it",
        "hookpoints.py",
        '"blocks.{layer}.hook_resid_post"',
        '"blocks.{layer}.hook_resid_pre"',
    ),
    Fault(
        "what the attention writes for what the MLP writes",
        "hookpoints.py",
        '"blocks.{layer}.hook_mlp_out"',
        '"blocks.{layer}.hook_attn_out"',
    ),
    Fault(
        "a padded token counts",
        "rows.py",
        "slice(self.start, self.start + self.length)",
        "slice(self.start, self.start + self.length + 1)",
    ),
    Fault(
        "padding on the left is taken for the prompt",
        "rows.py",
        "slice(self.start, self.start + self.length)",
        "slice(0, self.length)",
    ),
    Fault(
        "the causal mask shows the next token",
        "visibility.py",
        "seen = key <= query if self.causal",
        "seen = key <= query + 1 if self.causal",
    ),
    Fault(
        "a window of one key more",
        "visibility.py",
        "return first.maximum(at - self.window + 1) if self.window else first",
        "return first.maximum(at - self.window) if self.window else first",
    ),
    Fault(
        "prompts in the order of their lengths",
        "passes.py",
        "return torch.cat(stacked)[order.to(stacked[0].device)]",
        "return torch.cat(stacked)",
    ),
)

LABELS_AND_READING = (
    Fault(
        "depths are counted from 1",
        "results.py",
        "{a: np.arange(n) for a, n in axes.items()",
        '{a: np.arange(n) + (a == "depth") for a, n in axes.items()',
    ),
    Fault(
        "an edit goes to the layer before",
        "interventions.py",
        "(names[layer], _Callback(",
        "(names[max(layer - 1, 0)], _Callback(",
    ),
    Fault(
        "an interval with one tail too much",
        "resampling.py",
        "np.quantile(ratio, [(1 - level) / 2, (1 + level) / 2], axis=0)",
        "np.quantile(ratio, [1 - level, level], axis=0)",
    ),
    Fault(
        "the normal quantile for Student's",
        "resampling.py",
        "reach = math.sqrt(n / (n - 1)) * student_quantile((1 + level) / 2, n - 1)",
        "reach = math.sqrt(n / (n - 1)) * NormalDist().inv_cdf((1 + level) / 2)",
    ),
    Fault(
        "the bound on the anisotropy turned round",
        "theorem.py",
        '"anisotropy_slack": first - share',
        '"anisotropy_slack": share - first',
    ),
    Fault(
        "entropy over the logarithm of the larger side",
        "summaries.py",
        '"rank": np.minimum(tokens, width)',
        '"rank": np.maximum(tokens, width)',
    ),
    Fault(
        "a head at the threshold is no sink",
        "summaries.py",
        "else scores >= threshold",
        "else scores > threshold",
    ),
)

FAULTS = (*METRICS, *HOOKS_AND_MASKS, *LABELS_AND_READING)
