"""What is refused where a model is looked at: observers, activations, close-ups?"""

from odd_things import no_logits, observe, observed
from world import ROWS, Case

import mcr_lens as mcr

# fmt: off
CASES = [
    Case("a plain model to observe", lambda w: observe(w.raw),
         TypeError, "expected a TransformerLens model, got LlamaForCausalLM"),
    Case("a number to observe", lambda w: observe(5),
         TypeError, "expected a TransformerLens model, got int"),
    Case("a position to observe beyond", lambda w: observed(w, None, position=5),
         ValueError, "position=5, but a prompt has 3 tokens"),
    Case("a float position to observe", lambda w: observe(w.llama, position=0.0),
         ValueError, "position=0.0: pass the index of the token to take for BOS, counted from 0 at the"),
    Case("a bool position to observe", lambda w: observe(w.llama, position=False),
         ValueError, "position=False: pass the index of the token to take for BOS, counted from 0 at the"),
    Case("logits that were not handed over", lambda w: no_logits(w),
         ValueError, "metric 'next_token_loss' reads logits, which only `measure` hands over"),
    Case("record_activations at an unknown site",
         lambda w: mcr.record_activations(w.llama, ROWS, "mlp", layers=1),
         ValueError, "site 'mlp' cannot be edited"),
    Case("record_activations of a layer too many",
         lambda w: mcr.record_activations(w.llama, ROWS, "mlp_out", layers=4),
         ValueError, "layer 4 does not exist: the model has layers 0..3"),
    Case("record_activations of no prompts",
         lambda w: mcr.record_activations(w.llama, [], "mlp_out", layers=1),
         ValueError, "no prompts were given"),
    Case("record_activations of a plain model",
         lambda w: mcr.record_activations(w.raw, ROWS, "mlp_out", layers=1),
         TypeError, "expected a TransformerLens model, got LlamaForCausalLM"),
    Case("close_up of empty text", lambda w: mcr.close_up(w.reader, ""),
         ValueError, "prompt 0 is empty; leave it out"),
    Case("close_up of a head as a number", lambda w: mcr.close_up(w.reader, "text", [3]),
         ValueError, "heads=[3]: pass pairs (layer, head) counted from 0, such as [(0, 1), (2, 3)], or None"),
    Case("attention_view of a layer too many", lambda w: mcr.attention_view(w.reader, "text", 4),
         ValueError, "layer 4 does not exist: the model has layers 0..3"),
    Case("attention_view of a layer as text", lambda w: mcr.attention_view(w.reader, "text", "0"),
         ValueError, "layer='0': pass the number of a block, counted from 0"),
    Case("attention_view of a bool layer", lambda w: mcr.attention_view(w.reader, "text", True),
         ValueError, "layer=True: pass the number of a block, counted from 0"),
]
# fmt: on
