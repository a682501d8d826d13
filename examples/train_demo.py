"""Train the bundled demo model from a seed: a 112k-parameter Llama that grows a sink by itself.

Nothing is planted. The model learns one task, "echo": English text in which a digit k (1 to 8) is
now and then inserted, after which the character standing k places before the digit is repeated.
Heads that wait for a digit need somewhere to look the rest of the time, and they settle on `<bos>`.

Stage 1 trains on text drawn from a Markov chain with the bigram statistics of the real text, against
the generator's exact next-token distribution; stage 2 on the real text, against the next token.

    python examples/train_demo.py --seed 201 --out demo-201
"""

import argparse
import hashlib
import json
import math
import time
from collections import Counter
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

BOS, PAD, UNK = 0, 1, 2
DIGITS = "12345678"
FIRST_DIGIT = 3
FIRST_LETTER = FIRST_DIGIT + len(DIGITS)
HELD_OUT = 20_000  # last characters of the text, never trained on


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights, apart from the text and the version of torch."""

    seed: int = 201
    blocks: int = 8
    width: int = 32
    heads: int = 4
    feed_forward: int = 96
    letters: int = 70
    context: int = 128
    length: int = 96  # tokens of a row in training
    echo_rate: float = 0.12
    warmup: int = 100
    markov_steps: int = 6000
    markov_batch: int = 16
    markov_lr: float = 1e-2
    markov_decay: float = 0.1
    text_steps: int = 10000
    text_batch: int = 32
    text_lr: float = 4e-3
    embedding_decay: float = 0.1  # weight decay in the second stage, of embedding and unembedding only


def read_text() -> str:
    """The standard library's own documentation: ASCII, no digits, white space folded."""
    joined = " ".join(topics[key] for key in sorted(topics))
    kept = "".join(c for c in joined if c.isascii() and not c.isdigit())
    return " ".join(kept.split())


def build_tokenizer(text: str, letters: int, context: int) -> PreTrainedTokenizerFast:
    """One token a character; `<bos>` in front of every prompt; the rare become `<unk>`."""
    common = [c for c, _ in sorted(Counter(text).items(), key=lambda kv: (-kv[1], kv[0]))][:letters]
    symbols = ["<bos>", "<pad>", "<unk>", *DIGITS, *common]
    core = Tokenizer(models.WordLevel({s: i for i, s in enumerate(symbols)}, unk_token="<unk>"))
    core.normalizer = normalizers.Sequence(
        [normalizers.NFKD(), normalizers.StripAccents(), normalizers.Replace(Regex(r"\s+"), " ")]
    )
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    core.decoder = decoders.Fuse()
    core.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", BOS)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<bos>",
        pad_token="<pad>",
        unk_token="<unk>",
        padding_side="right",
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )


def bigram_table(ids: np.ndarray, vocab: int) -> np.ndarray:
    """Row c: the distribution of the character that follows c in the text (float64, rows sum to 1)."""
    counts = np.zeros((vocab, vocab))
    np.add.at(counts, (ids[:-1], ids[1:]), 1.0)
    empty = counts.sum(1) == 0
    counts[empty] = counts.sum(0)
    return counts / counts.sum(1, keepdims=True)


def markov_batch(
    rng: np.random.Generator, table: np.ndarray, recipe: Recipe
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens [batch, length] of the Markov chain with echoes, and the exact target distributions."""
    rows, vocab = recipe.markov_batch, table.shape[0]
    every = np.arange(rows)
    tokens = np.full((rows, recipe.length), BOS)
    targets = np.zeros((rows, recipe.length - 1, vocab))
    letter = np.full(rows, FIRST_LETTER)  # last ordinary character of each row
    digits = slice(FIRST_DIGIT, FIRST_LETTER)
    for t in range(1, recipe.length):
        before = tokens[:, t - 1]
        is_digit = (before >= FIRST_DIGIT) & (before < FIRST_LETTER)
        source = t - 1 - (before - FIRST_DIGIT + 1)
        echoed = tokens[every, np.clip(source, 0, None)]
        echoes = is_digit & (source >= 1) & ((echoed >= FIRST_LETTER) | (echoed == UNK))
        target = table[letter] * (1 - recipe.echo_rate)
        target[:, digits] = recipe.echo_rate / len(DIGITS)
        target[is_digit] = table[letter[is_digit]]
        target[echoes] = np.eye(vocab)[echoed[echoes]]
        draw = (target.cumsum(1) > rng.random((rows, 1))).argmax(1)
        tokens[:, t], targets[:, t - 1] = draw, target
        ordinary = ~((draw >= FIRST_DIGIT) & (draw < FIRST_LETTER))
        letter = np.where(ordinary, draw, letter)
    return tokens, targets


def text_batch(rng: np.random.Generator, ids: np.ndarray, recipe: Recipe) -> tuple[np.ndarray, np.ndarray]:
    """Rows of real text with `<bos>` in front and echoes inserted, and the tokens that come next."""
    tokens = np.stack([text_row(rng, ids, recipe) for _ in range(recipe.text_batch)])
    return tokens, tokens[:, 1:]


def text_row(rng: np.random.Generator, ids: np.ndarray, recipe: Recipe) -> np.ndarray:
    """One row of real text with `<bos>` in front and echoes inserted."""
    start = rng.integers(0, len(ids) - recipe.length)
    row = [BOS]
    for token in ids[start : start + recipe.length]:
        if len(row) > 1 and rng.random() < recipe.echo_rate:
            k = int(rng.integers(1, len(DIGITS) + 1))
            source = len(row) - k
            if source >= 1 and not FIRST_DIGIT <= row[source] < FIRST_LETTER:
                row += [FIRST_DIGIT + k - 1, row[source]]
        row.append(int(token))
    return np.array(row[: recipe.length])


def build_model(vocab: int, recipe: Recipe) -> LlamaForCausalLM:
    """A Llama with random weights, as Hugging Face makes them."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab,
            hidden_size=recipe.width,
            intermediate_size=recipe.feed_forward,
            num_hidden_layers=recipe.blocks,
            num_attention_heads=recipe.heads,
            max_position_embeddings=recipe.context,
            tie_word_embeddings=False,
            bos_token_id=BOS,
            pad_token_id=PAD,
            eos_token_id=None,
            attn_implementation="eager",  # the patterns are looked at while it trains
        )
    )


def train(recipe: Recipe, out: Path, checkpoint_every: int = 0) -> dict[str, Any]:
    """Train one model, save it as a Hugging Face folder, and return the record of the training.

    With `checkpoint_every`, the model at every so many steps stays too, as out/checkpoints/step0, ...
    """
    torch.manual_seed(recipe.seed)
    rng = np.random.default_rng(recipe.seed)
    text = read_text()
    tokenizer = build_tokenizer(text, recipe.letters, recipe.context)
    ids = np.array(tokenizer(text, add_special_tokens=False, verbose=False).input_ids)
    ids, held_out = ids[:-HELD_OUT], ids[-HELD_OUT:]
    watched = torch.from_numpy(np.stack([[BOS, *held_out[i : i + 95]] for i in range(0, 9500, 95)]))
    table = bigram_table(ids, len(tokenizer))
    model = build_model(len(tokenizer), recipe)
    embeddings = [model.model.embed_tokens.weight, model.lm_head.weight]
    inside = [p for p in model.parameters() if all(p is not e for e in embeddings)]
    groups = [{"params": inside}, {"params": embeddings}]
    optimiser = torch.optim.AdamW(
        groups, lr=recipe.markov_lr, betas=(0.9, 0.98), weight_decay=recipe.markov_decay, fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: rate(step, recipe))
    losses: dict[str, float] = {}
    growth: list[str] = []
    steps = tqdm(range(recipe.markov_steps + recipe.text_steps), unit="step", mininterval=5)
    for step in steps:
        if checkpoint_every and step % checkpoint_every == 0:
            save(model, tokenizer, out / "checkpoints" / f"step{step}")
        stage = "markov" if step < recipe.markov_steps else "text"
        if step == recipe.markov_steps:
            optimiser.param_groups[0]["weight_decay"] = 0.0
            optimiser.param_groups[1]["weight_decay"] = recipe.embedding_decay
        tokens, target = (
            markov_batch(rng, table, recipe) if stage == "markov" else text_batch(rng, ids, recipe)
        )
        logits = model(torch.from_numpy(tokens[:, :-1])).logits
        loss = torch.nn.functional.cross_entropy(logits.transpose(1, 2), class_second(target))
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        losses[stage] = 0.99 * losses.get(stage, loss.item()) + 0.01 * loss.item()
        if step % 100 == 0:
            steps.set_postfix_str(f"{stage} loss {losses[stage]:.3f}")
        if (step + 1) % 500 == 0:
            growth.append(json.dumps({"step": step + 1, "stage": stage, **snapshot(model, watched)}))
            print(growth[-1], flush=True)
    if checkpoint_every:
        save(model, tokenizer, out / "checkpoints" / f"step{recipe.markov_steps + recipe.text_steps}")
    save(model.eval(), tokenizer, out)
    record = {
        "recipe": asdict(recipe),
        "text_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "text_characters": len(text),
        "torch": torch.__version__,
        "loss": losses,
    }
    (out / "training.json").write_text(json.dumps(record, indent=2) + "\n")
    (out / "growth.jsonl").write_text("".join(f"{line}\n" for line in growth))
    return record


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a Hugging Face folder."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def rate(step: int, recipe: Recipe) -> float:
    """Learning rate relative to the first stage's: a short warm-up, then constant in each stage."""
    if step < recipe.warmup:
        return (step + 1) / recipe.warmup
    return 1.0 if step < recipe.markov_steps else recipe.text_lr / recipe.markov_lr


@torch.no_grad()
def snapshot(model: LlamaForCausalLM, tokens: torch.Tensor) -> dict[str, list[float]]:
    """BOS ratio and entropy over ln(width) by depth, sink rate by block, on text never trained on.

    The last hidden state that transformers returns is behind the final norm; it is left out.
    """
    seen = model(tokens, output_hidden_states=True, output_attentions=True)
    ratio, entropy = [], []
    for state in seen.hidden_states[:-1]:
        norm = state.norm(dim=-1)
        share = torch.linalg.svdvals(state.double()).square()
        share = share / share.sum(-1, keepdim=True)
        ratio.append((norm[:, 0] / norm[:, 1:].median(1).values).mean().item())
        entropy.append(torch.special.entr(share).sum(-1).mean().item() / math.log(state.shape[-1]))
    sinks = [(a[..., 0].mean(-1) >= 0.3).float().mean().item() for a in seen.attentions]
    found = {"ratio": ratio, "entropy": entropy, "sink_rate": sinks}
    return {name: [round(v, 3) for v in values] for name, values in found.items()}


def class_second(target: np.ndarray) -> torch.Tensor:
    """Cross-entropy wants distributions as float32 [batch, class, pos]; token ids stay [batch, pos]."""
    tensor = torch.from_numpy(target)
    return tensor.float().transpose(1, 2) if tensor.is_floating_point() else tensor


def main() -> None:
    """Read the command line: every number of the recipe is an option."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1, help="1 keeps the run reproducible")
    parser.add_argument("--checkpoint-every", type=int, default=0, help="steps; 0 keeps the last model only")
    for option in fields(Recipe):
        name = f"--{option.name.replace('_', '-')}"
        parser.add_argument(name, type=type(option.default), default=option.default)
    given = vars(parser.parse_args())
    out, threads, every = given.pop("out"), given.pop("threads"), given.pop("checkpoint_every")
    torch.set_num_threads(threads)
    began = time.perf_counter()
    record = train(Recipe(**given), out, every)
    print(json.dumps(record["loss"]))
    print(f"{out}: {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
