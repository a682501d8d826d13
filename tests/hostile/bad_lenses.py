"""What does a logit lens or a tuned lens refuse?"""

import torch
from world import QUICK, TEXT, Case

import mcr_lens as mcr

# fmt: off
CASES = [
    Case("logit_lens of nothing", lambda w: mcr.logit_lens(w.reader, [], **QUICK),
         ValueError, "no prompts were given"),
    Case("logit_lens of empty text", lambda w: mcr.logit_lens(w.reader, "", **QUICK),
         ValueError, "prompt 0 is empty; leave it out"),
    Case("logit_lens of one token", lambda w: mcr.logit_lens(w.llama, [[5]], **QUICK),
         ValueError, "text 0 has a single token and nothing to predict"),
    Case("logit_lens of a window too large", lambda w: mcr.logit_lens(w.reader, "text", window=1000, **QUICK),
         ValueError, "window=1000: pass a number of tokens in 2..64, the model's context"),
    Case("logit_lens of a stride of zero", lambda w: mcr.logit_lens(w.reader, "text", stride=0, **QUICK),
         ValueError, "stride=0: pass a number of tokens in 1..63, below the window"),
    Case("logit_lens of a stride beyond the window",
         lambda w: mcr.logit_lens(w.reader, "text", window=8, stride=9, **QUICK),
         ValueError, "stride=9: pass a number of tokens in 1..7, below the window"),
    Case("logit_lens of a folder", lambda w: mcr.logit_lens(w.reader, w.folder, **QUICK),
         FileNotFoundError, "is not a file"),
    Case("logit_lens of a lone surrogate",
         lambda w: mcr.logit_lens(w.reader, ["fine text", "\ud800"], **QUICK),
         ValueError, "prompt 1 is not valid text (a lone surrogate)"),
    Case("logit_lens of a plain model without a tokenizer", lambda w: mcr.logit_lens(w.raw, "text", **QUICK),
         ValueError, "LlamaForCausalLM has no tokenizer, so it cannot read text"),
    Case("tuned_lens of a file that is none",
         lambda w: mcr.tuned_lens(w.reader, TEXT, w.file("none.safetensors", "x"), **QUICK),
         mcr.TunedLensFileError, "cannot be read as safetensors ("),
    Case("tuned_lens of another shape",
         lambda w: mcr.tuned_lens(w.reader, TEXT, mcr.TunedLens(torch.zeros(2, 8, 8), torch.zeros(2, 8))),
         mcr.TunedLensFileError, "this tuned lens is for 2 layers of width 8, and LlamaForCausalLM has 4"),
    Case("tuned_lens of a share of NaN",
         lambda w: mcr.tuned_lens(w.reader, TEXT, train_share=float("nan"), **QUICK),
         ValueError, "train_share=nan: pass a share between 0 and 1"),
    Case("tuned_lens saved where no folder is",
         lambda w: mcr.tuned_lens(w.reader, TEXT, steps=1, window=8, save=w.folder / "none" / "l", **QUICK),
         FileNotFoundError, "is not a folder; create it first"),
    Case("fit_tuned_lens of a learning rate of NaN",
         lambda w: mcr.fit_tuned_lens(w.reader, TEXT, learning_rate=float("nan"), **QUICK),
         ValueError, "learning_rate=nan: pass a positive number"),
    Case("fit_tuned_lens of a negative seed",
         lambda w: mcr.fit_tuned_lens(w.reader, TEXT, steps=1, window=8, seed=-1, **QUICK),
         ValueError, "seed=-1: pass a whole number from 0 on"),
    Case("fit_tuned_lens of half a step", lambda w: mcr.fit_tuned_lens(w.reader, TEXT, steps=0.5, **QUICK),
         ValueError, "steps=0.5: pass a positive whole number"),
    Case("fit_tuned_lens with a negative decay",
         lambda w: mcr.fit_tuned_lens(w.reader, TEXT, weight_decay=-1.0, **QUICK),
         ValueError, "weight_decay=-1.0: pass 0 or more"),
    Case("translators of other shapes", lambda w: mcr.TunedLens(torch.zeros(2, 3, 3), torch.zeros(3, 3)),
         ValueError, "weight has shape (2, 3, 3) and bias (3, 3)"),
    Case("translators of lists", lambda w: mcr.TunedLens([[1.0]], [1.0]), TypeError, "weight came as list"),
]
# fmt: on
