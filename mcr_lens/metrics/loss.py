"""How well does the model predict the prompt, and how far is it from what it predicts unedited?"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mcr_lens.metrics._registry import derived, metric


@derived
def token_losses(
    logits: Float[Tensor, "batch pos vocab"], tokens: Int[Tensor, "batch pos"]
) -> Float[Tensor, "batch predicted"]:
    """Cross-entropy of every next token, −ln P(token_{t+1} | tokens ≤ t), in nats."""
    losses = torch.nn.functional.cross_entropy(
        logits[:, :-1].float().flatten(0, 1), tokens[:, 1:].flatten(), reduction="none"
    )
    return losses.view(tokens.shape[0], -1)


@metric(units="nats/token", source="standard", default=False)
def next_token_loss(token_losses: Float[Tensor, "batch predicted"]) -> Float[Tensor, "batch"]:
    """Mean cross-entropy of the next token, (1/(T−1)) Σ_t −ln P(token_{t+1} | tokens ≤ t).

    In nats per token; NaN for a prompt of one token. Measured only when asked for, because it needs the
    unembedding.

    Misleads when models with different tokenizers are compared: a token is not the same amount of text.

    >>> next_token_loss(token_losses(torch.zeros(1, 3, 4), torch.tensor([[0, 1, 2]])))  # ln 4
    tensor([1.3863])
    """
    return token_losses.mean(-1)


@metric(units="1", source="standard", default=False)
def perplexity(token_losses: Float[Tensor, "batch predicted"]) -> Float[Tensor, "batch"]:
    """Perplexity of a prompt, exp of its mean next-token cross-entropy.

    A pure number, 1 for certainty and the vocabulary's size for an even guess; NaN for a prompt of one token.
    The perplexity of a set of prompts is the exponential of the mean loss, not the mean of this.

    Misleads when models with different tokenizers are compared, or it is averaged over prompts, where one
    bad prompt outweighs all others.

    >>> perplexity(token_losses(torch.zeros(1, 3, 4), torch.tensor([[0, 1, 2]])))
    tensor([4.])
    """
    return token_losses.mean(-1).exp()


@metric(units="nats/token", source="standard", default=False)
def kl_divergence(
    clean_logits: Float[Tensor, "batch pos vocab"], logits: Float[Tensor, "batch pos vocab"]
) -> Float[Tensor, "batch"]:
    """Mean KL divergence of the prediction from the unedited model's, (1/T) Σ_t KL(P_clean,t ‖ P_t).

    In nats per token, over all positions; 0 without interventions. It costs the unembedding and, with
    interventions, a second forward pass.

    Misleads when it is read as harm: it says how different predictions are, and an edit can change them
    for the better.

    >>> even, sure = torch.zeros(1, 1, 2), torch.tensor([[[0.0, -20.0]]])
    >>> kl_divergence(even, sure)
    tensor([9.3069])
    """
    found = []
    for clean, edited in zip(clean_logits, logits, strict=True):  # by prompt: [pos, vocab] is large
        before, after = clean.float().log_softmax(-1), edited.float().log_softmax(-1)
        found.append(torch.nn.functional.kl_div(after, before, reduction="sum", log_target=True) / len(clean))
    return torch.stack(found).clamp_min(0)  # rounding leaves a hair less than nothing
