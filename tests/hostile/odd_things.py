"""What odd things do the tables hand over: models, tokenizers, metrics, files?"""

import models as tiny
import numpy as np
import torch
import transformers as tf
from jaxtyping import Float
from safetensors.torch import save_file
from tokenizers import Tokenizer, normalizers, pre_tokenizers
from tokenizers import models as kinds
from torch import Tensor
from world import QUICK, ROWS

import mcr_lens as mcr
from mcr_lens.sweep_plan import read_plan


def bigger():
    """A tokenizer whose ids go beyond the vocabulary of the tiny models."""
    core = Tokenizer(kinds.WordLevel({"<unk>": 5000}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return tf.PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")


def silent():
    """A tokenizer that makes nothing of the word text."""
    core = Tokenizer(kinds.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    core.normalizer = normalizers.Replace("text", "")
    return tf.PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")


def observe(model, *args, **options):
    with mcr.observe(model, *args, **options):
        pass


def observed(w, mask, **options):
    with mcr.observe(w.llama, attention_mask=mask, **options) as watch:
        w.llama(torch.tensor(ROWS), return_type=None)
    return watch.result()


def nothing_run(w):
    with mcr.observe(w.llama) as watch:
        pass
    return watch.result()


def no_logits(w):
    watch = mcr.Observer(w.llama, ["next_token_loss"])
    w.llama.run_with_hooks(torch.tensor(ROWS), fwd_hooks=watch.fwd_hooks)
    return watch.result()


def intervene(model, *edits):
    with mcr.intervene(model, *edits):
        pass


def reads_nothing(x=1) -> Float[Tensor, "batch"]:
    return x


def mixes(resid, pattern) -> Float[Tensor, "batch"]:
    return resid


def other_shape(resid) -> Float[Tensor, "batch"]:
    return resid


def returns_number(resid) -> Float[Tensor, "batch"]:
    return 3.0


def returns_none(resid) -> Float[Tensor, "batch"]:
    return None


def fewer_rows(resid) -> Float[Tensor, "batch"]:
    return resid[:1, 0, 0]


def reads_pattern(pattern) -> Float[Tensor, "batch"]:
    return pattern[:, 0, 0, 0]


def named_like_ours():
    """A metric of the name of one of the library's."""

    def bos_norm(resid) -> Float[Tensor, "batch"]:
        return resid[:, 0, 0]

    return bos_norm


def model_folder(w, name, config):
    folder = w.folder / name
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(config)
    return folder


def folder(w, name):
    folder = w.folder / name
    folder.mkdir(exist_ok=True)
    return folder


def meta():
    return tiny.hugging_face("llama").to("meta")


def no_layers():
    return tiny.hugging_face("llama", num_hidden_layers=0)


def shared_block():
    model = tiny.hugging_face("llama")
    model.model.layers[2] = model.model.layers[1]
    return model


def one_block_less():
    model = tiny.hugging_face("llama")
    del model.model.layers[2]
    return model


class Nothing(torch.nn.Module):
    def forward(self, x, *args, **kwargs):
        return x


def identity_block():
    model = tiny.hugging_face("llama")
    model.model.layers[2] = Nothing()
    return model


def quantised():
    model = tiny.hugging_face("llama")
    for name, p in model.named_parameters():
        if "proj" in name:
            p.requires_grad_(False)
            p.data = p.data.to(torch.int8)
    return model


def training():
    return tiny.bridge("llama").train()


def boom(*args, **kwargs):
    raise RuntimeError("in the model\nsecond line")


def failing():
    model = tiny.hugging_face("llama")
    model.model.layers[1].register_forward_pre_hook(boom)
    return model


def zeroed(raw):
    return raw[: len(raw) // 3] + bytes(len(raw) // 3) + raw[2 * len(raw) // 3 :]


def netcdf(w, name, ds):
    path = w.folder / name
    ds.drop_encoding().to_netcdf(path, engine="h5netcdf")
    return path


def without(ds, name):
    ds = ds.copy()
    ds.attrs = {k: v for k, v in ds.attrs.items() if k != name}
    return ds


def tensors(w, name, held, training):
    """A file of tensors; with a note on training, one that says it is a tuned lens."""
    about = None if training is None else {"format": "mcr_lens tuned lens 1", "training": training}
    path = w.folder / f"{name}.safetensors"
    save_file(held, path, metadata=about)
    return path


def edited(model, edit, prompts=ROWS):
    return mcr.measure(model, prompts, interventions=edit, **QUICK)


def edit_in_plan(w, **edit):
    about = {"kind": "zero_ablation", "site": "mlp_out", "layers": [1]} | edit
    return read_plan(w.plan(conditions={"a": [about]}))


def arc(texts, labels, key):
    return [{"question": "q", "choices": {"text": texts, "label": labels}, "answerKey": key}]


def measured(raw, *metrics):
    return mcr.measure(mcr.load_model(raw, verbose=False), ROWS, *metrics, **QUICK)


def lens_file(w, name, note="{}", weight=None, bias=None):
    """The file of a tuned lens of one depth and width 2, with something else for one of its parts."""
    held = {"weight": torch.zeros(1, 2, 2), "bias": torch.zeros(1, 2)}
    given = {"weight": weight, "bias": bias}
    return tensors(w, name, held | {k: v for k, v in given.items() if v is not None}, note)


def surrogate_plan(w):
    return w.plan(prompts=[{"name": "p", "texts": ["\ud800"]}], models=[{"name": "m", "model": w.reader}])


def half_of(path):
    raw = path.read_bytes()
    return raw[: len(raw) // 2]


def objects():
    return "prompt", np.array([{}, {}, {}], dtype=object)
