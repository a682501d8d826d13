"""How well does the model predict the prompt?"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mcr_lens.metrics._registry import metric


@metric(units="nats/token", source="standard", default=False)
def next_token_loss(
    logits: Float[Tensor, "batch pos vocab"], tokens: Int[Tensor, "batch pos"]
) -> Float[Tensor, "batch"]:
    """Mean cross-entropy of the next token, (1/(T−1)) Σ_t −ln P(token_{t+1} | tokens ≤ t).

    In nats per token; NaN for a prompt of one token. Measured only when asked for, because it needs the
    unembedding.

    >>> next_token_loss(torch.zeros(1, 3, 4), torch.tensor([[0, 1, 2]]))  # ln 4
    tensor([1.3863])
    """
    losses = torch.nn.functional.cross_entropy(
        logits[:, :-1].float().flatten(0, 1), tokens[:, 1:].flatten(), reduction="none"
    )
    return losses.view(tokens.shape[0], -1).mean(-1)
