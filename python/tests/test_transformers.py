"""SinkCache in transformers: the repository's tiny model, and models of many families with random weights."""
import copy
import math
import os
import unittest

try:
    import torch
    import transformers
    from transformers import (Cohere2Config, Cohere2ForCausalLM, DeepseekV3Config, DeepseekV3ForCausalLM, DynamicCache,
                              Gemma2Config, Gemma2ForCausalLM, Gemma3ForCausalLM, Gemma3TextConfig, GlmConfig,
                              GlmForCausalLM, GPT2Config, GPT2LMHeadModel, GptOssConfig, GptOssForCausalLM,
                              Llama4ForCausalLM, Llama4TextConfig, LlamaConfig, LlamaForCausalLM, MistralConfig,
                              MistralForCausalLM, Phi3Config, Phi3ForCausalLM, Qwen2Config, Qwen2ForCausalLM,
                              Qwen3Config, Qwen3ForCausalLM, SmolLM3Config, SmolLM3ForCausalLM)
except ImportError as reason:
    raise unittest.SkipTest(f"skipped: no PyTorch with transformers ({reason})") from reason

import sinkcache
from sinkcache import _probe
from sinkcache.transformers import SinkCache, cache_argument, stream
from support import CacheTest
from tiny_llama import ids, load

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
SMALL = dict(vocab_size=259, hidden_size=128, intermediate_size=256, num_attention_heads=8, num_key_value_heads=2,
             head_dim=32, max_position_embeddings=128, pad_token_id=0, bos_token_id=1, eos_token_id=2)
ONE = dict(SMALL, num_hidden_layers=1)
# Of some configurations it is not an argument.
NO_DIM = {key: value for key, value in ONE.items() if key != "head_dim"}
YARN = dict(rope_type="yarn", rope_theta=1e4, factor=4.0, original_max_position_embeddings=64)
LLAMA3 = dict(rope_type="llama3", rope_theta=5e5, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=64)
FULL, SLIDING = ["full_attention"], ["sliding_attention"]
FAMILIES = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**ONE)),
    "llama with yarn": lambda: LlamaForCausalLM(LlamaConfig(**ONE, rope_parameters=YARN)),
    "llama 3": lambda: LlamaForCausalLM(LlamaConfig(**ONE, rope_parameters=LLAMA3)),
    "qwen 2": lambda: Qwen2ForCausalLM(Qwen2Config(**NO_DIM)),
    "qwen 3": lambda: Qwen3ForCausalLM(Qwen3Config(**ONE)),
    "gemma 2": lambda: Gemma2ForCausalLM(Gemma2Config(**ONE, sliding_window=32, layer_types=FULL,
                                                      query_pre_attn_scalar=48, attn_logit_softcapping=5.0)),
    "gemma 3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**ONE, sliding_window=32, layer_types=FULL,
                                                          query_pre_attn_scalar=48)),
    "gpt-oss": lambda: GptOssForCausalLM(GptOssConfig(**ONE, sliding_window=32, num_local_experts=4,
                                                      num_experts_per_tok=2, layer_types=FULL)),
    "phi 3, partial": lambda: Phi3ForCausalLM(Phi3Config(**NO_DIM, partial_rotary_factor=0.5)),
    "glm, interleaved and partial": lambda: GlmForCausalLM(GlmConfig(**ONE, partial_rotary_factor=0.5)),
    "smollm 3 without rope": lambda: SmolLM3ForCausalLM(SmolLM3Config(**NO_DIM, no_rope_layers=[0])),
    "cohere 2 without rope": lambda: Cohere2ForCausalLM(Cohere2Config(**ONE, sliding_window=32, layer_types=FULL)),
    "cohere 2, interleaved, sliding": lambda: Cohere2ForCausalLM(Cohere2Config(**ONE, sliding_window=36,
                                                                               layer_types=SLIDING)),
    "mistral, sliding": lambda: MistralForCausalLM(MistralConfig(**ONE, sliding_window=36)),
}
DYNAMIC = dict(rope_type="dynamic", rope_theta=1e4, factor=4.0)
REFUSED = {
    "rope of type 'dynamic'": lambda: LlamaForCausalLM(LlamaConfig(**ONE, rope_parameters=DYNAMIC)),
    "llama4_text: layer 0 is of type chunked_attention": lambda: Llama4ForCausalLM(Llama4TextConfig(
        **ONE, num_local_experts=2, intermediate_size_mlp=256)),
    "gpt2: layer 0 turns its keys or queries in a way that is not known": lambda: GPT2LMHeadModel(GPT2Config(
        vocab_size=259, n_embd=128, n_layer=1, n_head=4)),
    "deepseek_v3: layer 0 .*MLA": lambda: DeepseekV3ForCausalLM(DeepseekV3Config(
        vocab_size=259, hidden_size=128, intermediate_size=256, moe_intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=4, n_routed_experts=8, n_group=2, topk_group=1,
        num_experts_per_tok=2, kv_lora_rank=32, q_lora_rank=32, qk_rope_head_dim=16, qk_nope_head_dim=16,
        v_head_dim=32)),
}


# Perplexity of the text's tokens from 512 on, by tokens read:
# cargo run --release --example stream -- --skip 0 --tokens N --mode sink --stride 1 --kv-dtype f32 --threads 1 --json
STREAM = {3000: 2.929583, 20000: 3.275241}


def random_weights(model):
    for name, parameter in model.named_parameters():
        if name.endswith("sinks"):
            torch.nn.init.normal_(parameter, std=2)
        elif parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    return model.eval()


def logits(model, x, cache=None, cut=10**9):
    """Of all tokens of x, passed in pieces."""
    named = {} if cache is None else {cache_argument(model): cache}
    return torch.cat([model(piece, **named).logits for piece in x.split(min(cut, x.shape[1]), 1)], 1)


def perplexity(model, cache, x, since):
    out = torch.cat([logits(model, piece, cache) for piece in x[:, :-1].split(64, 1)], 1)[0].double()
    loss = torch.nn.functional.cross_entropy(out[since:], x[0, since + 1:])
    return math.exp(loss)


class Plain:
    """StreamingLLM by its definition, for a Llama: keys are kept as they are before RoPE, and for each token all that
    are held then are rotated to their places in the cache. In the type of the model."""

    def __init__(self, model, sinks, window):
        self.model, self.sinks, self.length = model, sinks, sinks + window
        dim = model.model.layers[0].self_attn.head_dim
        base = model.config.rope_parameters["rope_theta"]
        self.frequencies = base ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)

    def rotate(self, x, places):
        """x is [..., places, heads, dims]."""
        angle = places[:, None, None].double() * self.frequencies
        cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        low, high = x.chunk(2, -1)
        return torch.cat((low * cos - high * sin, high * cos + low * sin), -1)

    def held(self, count):
        """The tokens that each of `count` tokens attends to, in order, and which of these columns are there."""
        token, place = torch.arange(count)[:, None], torch.arange(self.length)[None]
        evicted = (token - self.length + 1).clamp(min=0)
        held = torch.where(place < self.sinks, place, place + evicted)
        return held.clamp(max=count - 1), held <= token

    def logits(self, tokens):
        held, there = self.held(len(tokens))
        places = torch.arange(self.length)
        x = self.model.model.embed_tokens(tokens)
        for layer in self.model.model.layers:
            h, attention = layer.input_layernorm(x), layer.self_attn
            projections = (attention.q_proj, attention.k_proj, attention.v_proj)
            q, k, v = (project(h).view(len(h), -1, attention.head_dim) for project in projections)
            group = q.shape[1] // k.shape[1]
            keys, values = self.rotate(k[held], places), v[held]
            q = self.rotate(q, torch.arange(len(tokens)).clamp(max=self.length - 1))
            q = q.unflatten(1, (-1, group))
            scores = torch.einsum("tkgd,tnkd->tkgn", q, keys) / attention.head_dim**0.5
            scores.masked_fill_(~there[:, None, None], -torch.inf)
            out = torch.einsum("tkgn,tnkd->tkgd", scores.softmax(-1), values)
            x = x + attention.o_proj(out.flatten(1))
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        return self.model.lm_head(self.model.model.norm(x))


@torch.no_grad()
def setUpModule():
    global STOCK, MODEL
    # The models are small: two teams of threads would wait for each other most of the time.
    torch.set_num_threads(1)
    STOCK, MODEL = load(), load()
    SinkCache(MODEL)


class WithoutGradients(CacheTest):
    def run(self, result=None):
        with torch.no_grad():
            return super().run(result)


class Logits(WithoutGradients):
    def test_below_the_window_they_are_those_of_the_model(self):
        x = ids(150)
        want = STOCK(x).logits
        for cut in (1000, 33, 1):
            cache = SinkCache(MODEL, window_length=160)
            self.assertLessEqual(float((logits(MODEL, x, cache, cut) - want).abs().max()), 5e-5, cut)
            self.assertEqual((cache.get_seq_length(), cache.info().cached_tokens), (150, 150))

    def test_past_the_window_they_are_streaming_llm(self):
        """In f32, PyTorch's own rounding in the rest of the model is most of the difference."""
        x = ids(1200)
        want = Plain(load(torch.float64), 4, 60).logits(x[0])

        def differences(got):
            return float((got - want).norm() / want.norm()), float((got - want).abs().max() / want.abs().max())

        for rope, bounds, cuts in (("cache", (1e-6, 1.5e-6), (1200, 100, 7)), ("applied", (1e-5, 2e-5), (1200, 33))):
            for cut in cuts:
                found = differences(logits(MODEL, x, SinkCache(MODEL, 64, rope=rope), cut)[0])
                self.assertLessEqual(found[0], bounds[0], (rope, cut))
                self.assertLessEqual(found[1], bounds[1], (rope, cut))
        # Token by token it is slow: until all that is held has been replaced twice.
        want = want[:200]
        found = differences(logits(MODEL, x[:, :200], SinkCache(MODEL, 64), 1)[0])
        self.assertLessEqual(found[0], 1e-6)

    def test_a_text_from_any_position(self):
        """As the program stream computes it, and the cache stays as large as it was: STREAM says by which command."""
        tokens = min(STREAM, key=lambda n: abs(n - int(os.environ.get("SKC_TOKENS", 3000))))
        cache, found, x = SinkCache(MODEL, 256), [], ids(tokens + 1)
        for start in (0, 2**24, 2**40):
            logits(MODEL, ids(2), cache)
            cache.reset()
            cache.kv.reset(start_positions=start)
            bytes_held = cache.kv.nbytes
            found.append(perplexity(MODEL, cache, x, 512))
            self.assertEqual((cache.kv.nbytes, cache.info().cached_tokens), (bytes_held, 256))
        print(f"perplexity of {tokens} tokens: {found[0]:.4f}, of stream {STREAM[tokens]:.4f}")
        self.assertLess(abs(found[0] / STREAM[tokens] - 1), 1e-3)
        self.assertLess(max(found) / min(found) - 1, 1e-4)

    def test_half_types(self):
        x = ids(500)
        want = perplexity(MODEL, SinkCache(MODEL, 128), x, 200)
        model = load(torch.bfloat16)
        self.assertLess(abs(perplexity(model, SinkCache(model, 128), x, 200) / want - 1), 0.01)
        self.assertLess(abs(perplexity(model, SinkCache(model, 128, kv_dtype="q8"), x, 200) / want - 1), 0.02)

    def test_families_past_the_window(self):
        """In one layer, sinks and window are attention over the text of sinks and window."""
        sinks, length = 4, 40
        for name, make in FAMILIES.items():
            for rope in ("cache", "applied"):
                with self.subTest(name, rope=rope):
                    torch.manual_seed(0)
                    model = random_weights(make())
                    model.set_attn_implementation("eager")
                    x, places = torch.randint(3, 259, (1, 130)), range(60, 130, 7)
                    window = 36 if "sliding" in name else length - sinks
                    first = 0 if "sliding" in name else sinks
                    want = torch.stack([logits(model, torch.cat(
                        (x[:, :first], x[:, t - window + 1:t + 1]), 1))[0, -1] for t in places])
                    got = logits(model, x, SinkCache(model, length, sinks, rope=rope), 13)[0, list(places)]
                    self.assertLessEqual(float((got - want).abs().max() / want.abs().max()), 1e-5)

    def test_models_that_are_refused(self):
        for text, make in REFUSED.items():
            with self.subTest(text):
                torch.manual_seed(0)
                model = random_weights(make())
                with self.assertRaisesRegex(ValueError, f"(?i){text}"):
                    SinkCache(model)

    def test_other_caches_and_none(self):
        x = ids(100)
        want = STOCK(x).logits
        for cache in (None, DynamicCache()):
            self.assertLessEqual(float((logits(MODEL, x, cache) - want).abs().max()), 5e-5)
        plain = STOCK.generate(ids(60), max_new_tokens=20, do_sample=False)
        self.assertTrue(torch.equal(MODEL.generate(ids(60), max_new_tokens=20, do_sample=False), plain))


class Wrong(WithoutGradients):
    def test_another_attention_implementation(self):
        model = load()
        cache = SinkCache(model, 64)
        model.set_attn_implementation("sdpa")
        with self.assertRaisesRegex(RuntimeError, "layer 0 gave its keys to the cache and did not attend"):
            logits(model, ids(10), cache)

    def test_settings(self):
        for text, settings in (("rope is 'none'", {"rope": "none"}), ("window_length is 4", {"window_length": 4}),
                               ("num_sink_tokens", {"num_sink_tokens": -1})):
            with self.assertRaisesRegex(ValueError, text):
                SinkCache(MODEL, **settings)

    def test_another_batch(self):
        cache = SinkCache(MODEL, 64)
        logits(MODEL, ids(10), cache)
        with self.assertRaisesRegex(ValueError, "a batch of 2, and the cache has 1 rows"):
            logits(MODEL, ids(10).repeat(2, 1), cache)

    def test_a_forward_that_did_not_reach_its_end(self):
        """Ctrl-C in any layer, before or after its attention: the cache goes on as if nothing had been passed."""
        x = ids(120)
        want = logits(MODEL, x, SinkCache(MODEL, 64))[:, 100:110]

        def stop(*_):
            raise KeyboardInterrupt

        layers = MODEL.model.layers
        for module in (layers[0].self_attn.q_proj, layers[0].mlp, layers[2], layers[-1].self_attn.o_proj,
                       layers[-1].mlp, MODEL.model.norm):
            cache = SinkCache(MODEL, 64)
            logits(MODEL, x[:, :100], cache)
            hook = module.register_forward_pre_hook(stop)
            with self.assertRaises(KeyboardInterrupt):
                logits(MODEL, x[:, 100:110], cache)
            hook.remove()
            passed = cache.get_seq_length()
            # The forward of the cache has ended before the last layer's own is at its end.
            if passed == 110:
                self.assertIn(module, (layers[-1].self_attn.o_proj, layers[-1].mlp, MODEL.model.norm))
                cache.crop(10)
            self.assertEqual(cache.get_seq_length(), 100)
            got = logits(MODEL, x[:, 100:110], cache)
            self.assertLessEqual(float((got - want).abs().max()), 1e-4)
            self.assertEqual((cache.info().length_min, cache.info().length_max), (110, 110))


    def test_an_interruption_right_after_the_library_s_work(self):
        """The library has the tokens of a layer, and nobody has noted it."""
        x = ids(110)
        want = logits(MODEL, x, SinkCache(MODEL, 64))[:, 100:]
        for layer in (0, 2, len(MODEL.model.layers) - 1):
            cache = SinkCache(MODEL, 64)
            logits(MODEL, x[:, :100], cache)
            step = cache.kv.step

            def interrupted(index, *arguments, **named):
                out = step(index, *arguments, **named)
                if index == layer:
                    raise KeyboardInterrupt
                return out

            cache.kv.step = interrupted
            with self.assertRaises(KeyboardInterrupt):
                logits(MODEL, x[:, 100:], cache)
            del cache._skc_kv.step
            self.assertEqual(cache.get_seq_length(), 100)
            got = logits(MODEL, x[:, 100:], cache)
            self.assertLessEqual(float((got - want).abs().max()), 1e-4)
            self.assertEqual((cache.info().length_min, cache.info().length_max), (110, 110))

    def test_queries_that_turn_otherwise_than_keys(self):
        torch.manual_seed(0)
        row = torch.randn(1, 2, 1, 32)
        seen = _probe._Seen()
        seen.k, seen.q = row.expand(1, 2, 2, 32), row.expand(1, 2, 2, 32)
        self.assertIsNone(_probe._rope(seen, []))
        # A temperature that grows with the position.
        seen.q = torch.cat((row, 1.1 * row), 2)
        with self.assertRaisesRegex(ValueError, "not known"):
            _probe._rope(seen, [])


class Generate(WithoutGradients):
    def generate(self, x, cache, new=40, model=None, **settings):
        model = model or MODEL
        named = {} if cache is None else {cache_argument(model): cache}
        settings.setdefault("do_sample", False)
        return model.generate(x, max_new_tokens=new, **named, **settings)

    def same(self, *results):
        for other in results[1:]:
            self.assertEqual(results[0].tolist(), other.tolist())

    def test_greedy_and_sampled_below_the_window(self):
        for settings in ({}, {"do_sample": True, "top_k": 20}, {"do_sample": True, "num_return_sequences": 3}):
            torch.manual_seed(3)
            want = self.generate(ids(100), None, model=STOCK, **settings)
            torch.manual_seed(3)
            self.same(want, self.generate(ids(100), SinkCache(MODEL, 256), **settings))

    def test_the_older_name_of_the_argument(self):
        want = self.generate(ids(50), SinkCache(MODEL, 64))
        self.same(want, MODEL.generate(ids(50), max_new_tokens=40, do_sample=False,
                                       past_key_values=SinkCache(MODEL, 64)))

    def test_left_padding(self):
        lengths = (60, 130, 97)
        x, mask = torch.zeros(3, 130, dtype=torch.long), torch.zeros(3, 130, dtype=torch.long)
        for row, n in enumerate(lengths):
            x[row, -n:], mask[row, -n:] = ids(n, 1000 * row)[0], 1
        self.same(self.generate(x, None, model=STOCK, attention_mask=mask),
                  self.generate(x, SinkCache(MODEL, 256), attention_mask=mask))
        # Past the window each row is as if alone.
        cache = SinkCache(MODEL, 64)
        got = self.generate(x, cache, attention_mask=mask)
        for row, n in enumerate(lengths):
            self.same(got[row, -40:], self.generate(ids(n, 1000 * row), SinkCache(MODEL, 64))[0, -40:])
            self.assertEqual(cache.info(row).length_min, n + 39)

    def test_beams(self):
        x = torch.cat((ids(80), ids(80, 5000)))
        settings = dict(num_beams=4, num_return_sequences=2)
        self.same(self.generate(x, None, model=STOCK, **settings), self.generate(x, SinkCache(MODEL, 256), **settings))
        cache = SinkCache(MODEL, 64)
        self.generate(x, cache, num_beams=4)
        self.assertEqual([cache.info(row).length_min for row in range(8)], [119] * 8)

    def test_drafts(self):
        want = self.generate(ids(150), SinkCache(MODEL, 64))
        self.same(want, self.generate(ids(150), SinkCache(MODEL, 64), prompt_lookup_num_tokens=5),
                  self.generate(ids(150), SinkCache(MODEL, 64), assistant_model=STOCK))

    def test_prefill_in_chunks(self):
        self.same(self.generate(ids(300), SinkCache(MODEL, 64)),
                  self.generate(ids(300), SinkCache(MODEL, 64), prefill_chunk_size=50))

    def test_a_chat(self):
        """The whole conversation is passed at each round, as transformers' recipe does; each token goes in once."""
        cache, text = SinkCache(MODEL, 64), ids(1)
        for n in range(30):
            text = self.generate(torch.cat((text, ids(30, 3000 * n)[:, 1:]), 1), cache, 10)
        self.assertEqual(cache.info().length_min, text.shape[1] - 1)
        self.assertEqual(logits(MODEL, text[:, :-1], SinkCache(MODEL, 64))[0, -1].argmax(), text[0, -1])

    def test_a_prefix_for_several_prompts(self):
        prefix = SinkCache(MODEL, 64)
        logits(MODEL, ids(100), prefix)
        for at in (500, 900):
            text = torch.cat((ids(100), ids(30, at)[:, 1:]), 1)
            self.same(self.generate(text, copy.deepcopy(prefix)), self.generate(text, SinkCache(MODEL, 64)))
        self.assertEqual(prefix.get_seq_length(), 100)

    def test_a_batch_that_grows(self):
        cache = SinkCache(MODEL, 64)
        logits(MODEL, ids(100), cache)
        cache.batch_repeat_interleave(3)
        rest = torch.cat([ids(9, at)[:, 1:] for at in (100, 200, 300)])
        got = logits(MODEL, rest, cache)
        for row in range(3):
            alone = SinkCache(MODEL, 64)
            logits(MODEL, ids(100), alone)
            self.assertLessEqual(float((logits(MODEL, rest[row:row + 1], alone) - got[row]).abs().max()), 1e-4)

    def test_a_stream(self):
        want = self.generate(ids(150), SinkCache(MODEL, 64), 60)[0, 150:].tolist()
        cache = SinkCache(MODEL, 64)
        tokens = stream(MODEL, ids(150), cache, chunk=40)
        self.assertEqual([next(tokens) for _ in range(60)], want)
        self.assertEqual(cache.info().cached_tokens, 64)
        rows = []
        tokens = stream(MODEL, ids(10), SinkCache(MODEL, 64), sample=lambda row: rows.append(row.shape) or 7)
        self.assertEqual([next(tokens) for _ in range(3)], [7, 7, 7])
        self.assertEqual(rows, [(259,)] * 3)
        with self.assertRaisesRegex(ValueError, r"input_ids has the shape \[2, 4\]"):
            next(stream(MODEL, torch.ones(2, 4, dtype=torch.long), SinkCache(MODEL, 64)))

    def test_pins(self):
        cache = SinkCache(MODEL, 64, max_pinned=16, max_segments=4)
        logits(MODEL, ids(50), cache)
        cache.kv.pin(4, 16, cache.row())
        logits(MODEL, ids(100, 50)[:, 1:], cache)
        self.assertEqual((cache.info().pinned_tokens, cache.info().cached_tokens), (16, 80))
        with self.assertRaises(sinkcache.NoRoomError):
            cache.kv.pin(140, 1, cache.row())


if __name__ == "__main__":
    unittest.main()
