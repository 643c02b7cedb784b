#!/usr/bin/env python3
"""Milliseconds per token of a decode in transformers, by cache, in one process and in alternation. The model is a
Llama with random weights: of 127 M parameters, with 8 KV heads for 16 query heads, or of 110 M, with 12 for 12. All
caches are full, and all attend to equally many tokens.

  python3 benches/transformers/speed.py OUT.json          needs a machine that does nothing else: ten minutes
  python3 benches/transformers/speed.py OUT.json --tiny   tries the program
"""
import argparse
import datetime
import json
import pathlib
import statistics
import time

import torch
import transformers
from perplexity import processor
from sinkcache.transformers import SinkCache, cache_argument
from torch_caches import OldSinkCache, RingSinkCache
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

SINKS = 4
SHAPE = dict(vocab_size=32000, hidden_size=1024, intermediate_size=2816, num_hidden_layers=8, num_attention_heads=16,
             num_key_value_heads=8, head_dim=64, max_position_embeddings=1 << 20, tie_word_embeddings=True,
             eos_token_id=None)
# As Llama 2, Pythia and MPT, the models of the paper.
EQUAL_HEADS = SHAPE | dict(hidden_size=768, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=12,
                           num_key_value_heads=12)
TINY = SHAPE | dict(vocab_size=256, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=2,
                    num_key_value_heads=1)


class Contender:
    """A cache that is full, and its model. `token` takes one more."""

    def __init__(self, model, cache):
        self.model, self.cache, self.name = model, cache, cache_argument(model)

    def read(self, ids):
        return self.model(ids, **{self.name: self.cache}, logits_to_keep=1)

    def token(self, ids):
        began = time.perf_counter()
        self.read(ids)
        took = time.perf_counter() - began
        # What keeps all tokens is taken back to as many as the others hold.
        if isinstance(self.cache, DynamicCache):
            self.cache.crop(-1)
        return 1000 * took


def contenders(shape, dtype, length):
    torch.manual_seed(0)
    stock = LlamaForCausalLM(LlamaConfig(**shape)).to(dtype).eval()
    # The same weights, in the attention implementation of SinkCache.
    ours = LlamaForCausalLM(LlamaConfig(**shape)).to(dtype).eval()
    ours.load_state_dict(stock.state_dict(), assign=True)
    ours.tie_weights()
    all_of_them = {
        "SinkCache": Contender(ours, SinkCache(ours, length, SINKS)),
        "DynamicCache, as long": Contender(stock, DynamicCache()),
        "the old way": Contender(stock, OldSinkCache(stock, length, SINKS)),
        "best in PyTorch": Contender(stock, RingSinkCache(stock, length, SINKS)),
    }
    ids = torch.randint(shape["vocab_size"], (1, length - 1))
    for contender in all_of_them.values():
        for piece in ids.split(256, 1):
            contender.read(piece)
    check(all_of_them, shape["vocab_size"], dtype)
    return all_of_them


def check(running, vocabulary, dtype):
    """What keeps sinks and window computes the same, also when tokens have gone."""
    ids = torch.randint(vocabulary, (1, 4))
    logits = {name: [contender.read(ids[:, i:i + 1]).logits.float() for i in range(4)][-1]
              for name, contender in running.items() if not isinstance(contender.cache, DynamicCache)}
    want = logits["best in PyTorch"]
    for name, got in logits.items():
        difference = float((got - want).norm() / want.norm())
        if not difference <= (1e-4 if dtype == torch.float32 else 5e-2):
            raise SystemExit(f"{name} differs by {difference:.1e} from the best in PyTorch")


def measure(shape, dtype, length, threads, rounds, tokens):
    torch.set_num_threads(threads)
    running = contenders(shape, dtype, length)
    names, times = list(running), {name: [] for name in running}
    for turn in range(rounds + 1):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            took = [running[name].token(torch.randint(shape["vocab_size"], (1, 1))) for _ in range(tokens)]
            # The first round warms up.
            if turn:
                times[name].append(statistics.median(took))
    # Of each round, beside the others of the same round.
    row = {"type": str(dtype).removeprefix("torch."), "length": length, "threads": threads,
           "ms": {name: round(statistics.median(x), 3) for name, x in times.items()},
           "ratio": {name: round(statistics.median(a / b for a, b in zip(x, times["SinkCache"])), 3)
                     for name, x in times.items()}}
    print(f"{row['type']:9} {length:5} held, {threads} threads: " + "; ".join(
        f"{name} {ms:.2f} ms, {row['ratio'][name]:.2f} x" for name, ms in row["ms"].items()), flush=True)
    return row


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--lengths", type=int, nargs="+", default=[2048, 4096])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--types", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--equal-heads", action="store_true",
                        help="a model with as many KV heads as query heads")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=8, help="of each contender in a round")
    parser.add_argument("--tiny", action="store_true", help="a small model and few tokens: no numbers to keep")
    options = parser.parse_args()
    if options.tiny:
        options.lengths, options.rounds, options.tokens = [64], 2, 2
    shape = TINY if options.tiny else EQUAL_HEADS if options.equal_heads else SHAPE
    with torch.no_grad():
        rows = [measure(shape, getattr(torch, kind), length, threads, options.rounds, options.tokens)
                for kind in options.types for length in options.lengths for threads in options.threads]
        parameters = sum(x.numel() for x in LlamaForCausalLM(LlamaConfig(**shape)).parameters())
    options.out.write_text(json.dumps({
        "date": datetime.date.today().isoformat(), "machine": processor(), "torch": torch.__version__,
        "transformers": transformers.__version__, "parameters": parameters,
        "query_heads": shape["num_attention_heads"], "kv_heads": shape["num_key_value_heads"],
        "rows": rows}, indent=1) + "\n")
