"""sinkcache in vLLM: the repository's tiny model, and small models with random weights. Each engine is a process."""
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest
from types import SimpleNamespace

try:
    import torch
    import transformers
    from transformers import (BloomConfig, DeepseekV3Config, Gemma2Config, Glm4Config, Glm4ForCausalLM, GPT2Config,
                              LlamaConfig, LlamaForCausalLM, MambaConfig, MistralConfig, Phi3Config, Phi3ForCausalLM,
                              Qwen3Config, Qwen3ForCausalLM, SmolLM3Config)
    from vllm.v1.attention.backend import AttentionType
except ImportError as reason:
    raise unittest.SkipTest(f"skipped: no vLLM ({reason})") from reason

from sinkcache._vllm_backend import Impl
from sinkcache._vllm_config import refused
from sinkcache.transformers import SinkCache, cache_argument
from sinkcache.vllm import PREFIX, settings
from support import ROOT
from tiny_llama import ids, load

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
PROGRAM = pathlib.Path(__file__).with_name("vllm_program.py")
WINDOW = {PREFIX + "WINDOW_LENGTH": "256"}
SMALL = dict(vocab_size=259, hidden_size=128, intermediate_size=256, num_attention_heads=8, num_key_value_heads=2,
             num_hidden_layers=1, max_position_embeddings=128, pad_token_id=0, bos_token_id=1, eos_token_id=2)
YARN = dict(rope_type="yarn", rope_theta=1e4, factor=4.0, original_max_position_embeddings=64)
LLAMA3 = dict(rope_type="llama3", rope_theta=5e5, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=64)
LONGROPE = dict(rope_type="longrope", rope_theta=1e4, short_factor=[1.0] * 8, long_factor=[2.0] * 8,
                original_max_position_embeddings=64)
# Of different lengths, some of several windows.
PROMPTS = [ids(length, 5000 * i)[0].tolist() for i, length in enumerate((900, 300, 1200, 50))]
# Largest difference of a log-probability between runs that compute the same in another order, in f32. The largest that
# was seen is 8e-6.
BOUND = 1e-4


def run(job, environment=WINDOW):
    """What a vllm_program prints, or the text of its error."""
    with tempfile.TemporaryDirectory() as folder:
        names = [os.path.join(folder, name) for name in ("job", "result")]
        with open(names[0], "w") as file:
            json.dump(job, file)
        done = subprocess.run([sys.executable, PROGRAM, *names], capture_output=True, text=True,
                              env={**os.environ, **environment})
        if done.returncode:
            raise AssertionError(done.stdout + done.stderr)
        with open(names[1]) as file:
            return json.load(file)


def engine(model, *calls, environment=WINDOW, **arguments):
    """Results of the calls."""
    answer = run({"engine": {"model": str(model), **arguments}, "calls": calls}, environment)
    if "error" in answer:
        raise AssertionError(answer["error"])
    return answer["result"]


def generate(prompts, max_tokens, **arguments):
    return ["generate", dict(prompts=prompts, max_tokens=max_tokens, **arguments)]


def greedy(model, prompt, count, window, sinks=4):
    """By transformers and SinkCache."""
    cache = SinkCache(model, window_length=window, num_sink_tokens=sinks)
    found = model.generate(torch.tensor([prompt]), **{cache_argument(model): cache}, max_new_tokens=count,
                           do_sample=False, pad_token_id=0, eos_token_id=None)
    return found[0, len(prompt):].tolist()


@torch.no_grad()
def log_probabilities(model, prompt, window, sinks=4):
    """Of the prompt's tokens from the second on, by transformers and SinkCache."""
    cache = SinkCache(model, window_length=window, num_sink_tokens=sinks)
    x = torch.tensor([prompt])
    logits = torch.cat([model(piece, **{cache_argument(model): cache}).logits for piece in x.split(64, 1)], 1)[0, :-1]
    return logits.float().log_softmax(-1).gather(1, x[0, 1:, None])[:, 0]


def random_weights(model):
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    return model.eval()


def setUpModule():
    global FOLDER, TINY, MODEL
    torch.set_num_threads(1)
    folder = tempfile.TemporaryDirectory()
    unittest.addModuleCleanup(folder.cleanup)
    FOLDER = pathlib.Path(folder.name)
    TINY, MODEL = FOLDER / "tiny", load()
    MODEL.save_pretrained(TINY)


class Vllm(unittest.TestCase):
    def tokens(self, answers):
        return [answer["tokens"] for answer in answers]

    def close(self, got, wanted, bound=BOUND):
        self.assertEqual(len(got), len(wanted))
        difference = (torch.tensor(got, dtype=torch.float64) - torch.tensor(wanted, dtype=torch.float64)).abs().max()
        self.assertLessEqual(float(difference), bound)

    def refuses(self, text, environment=WINDOW, **arguments):
        answer = run({"engine": arguments, "calls": []}, environment)
        self.assertIn(text, answer.get("error", "served"))


class Text(Vllm):
    @classmethod
    def setUpClass(cls):
        # By transformers.
        cls.wanted = [greedy(MODEL, prompt, 60, 256) for prompt in PROMPTS]

    def test_a_ragged_batch_equals_each_alone_and_transformers(self):
        together, *alone, state = engine(TINY, generate(PROMPTS, 60),
                                         *(generate([prompt], 60) for prompt in PROMPTS), ["state", {}])
        self.assertEqual(self.tokens(together), self.wanted)
        for one, (other,) in zip(together, alone):
            self.assertEqual(one["tokens"], other["tokens"])
            self.close(one["logprobs"], other["logprobs"])
        self.assertEqual((state["implementation"], state["prefix_caching"]), ("sinkcache._vllm_backend", False))
        self.assertEqual((state["window"], state["sinks"], state["sequences"]), (256, 4, 4))
        # All that a request has is a window.
        self.assertEqual(max(state["cached"]), 256)

    def test_more_requests_than_sequences(self):
        # Each sequence is used three times, by requests that begin and end at different times.
        many = [prompt[at:at + 100 + 37 * at] for at in (0, 1, 2) for prompt in PROMPTS]
        got, = engine(TINY, generate(many, 20), max_num_seqs=2)
        for prompt, answer in zip(many, got):
            self.assertEqual(answer["tokens"], greedy(MODEL, prompt, 20, 256), len(prompt))

    def test_a_text_of_47_windows(self):
        text = ids(3000)[0].tolist()
        (answer,), = engine(TINY, generate([text], 1, prompt_logprobs=True),
                            environment={PREFIX + "WINDOW_LENGTH": "64", PREFIX + "NUM_SINK_TOKENS": "2"})
        self.close(answer["prompt_logprobs"], log_probabilities(MODEL, text, 64, 2).tolist())

    def test_tokens_of_four_windows_are_generated(self):
        (answer,), = engine(TINY, generate([PROMPTS[3]], 1000))
        self.assertEqual(answer["tokens"], greedy(MODEL, PROMPTS[3], 1000, 256))

    def test_drafts_change_nothing(self):
        drafts = {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 3, "prompt_lookup_min": 1}
        _, got, state = engine(TINY, ["count_rewinds", {}], generate(PROMPTS, 60), ["state", {}],
                               speculative_config=drafts)
        self.assertEqual(self.tokens(got), self.wanted)
        # Some were rejected.
        self.assertGreater(state["rewinds"], 20)

    def test_preempted_requests_start_over(self):
        # After the first chunk of the first prompt, in the middle of another, and when all generate.
        got, = engine(TINY, ["preempt", dict(prompts=PROMPTS, max_tokens=60, after=[1, 9, 40])])
        self.assertEqual(self.tokens(got["answers"]), self.wanted)
        self.assertGreaterEqual(max(got["preemptions"]), 3)

    def test_as_users_run_it(self):
        # With its engine and its worker in other processes, which have no more than the environment.
        got, = engine(TINY, generate(PROMPTS, 60),
                      environment={**WINDOW, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"})
        self.assertEqual(self.tokens(got), self.wanted)

    def test_compiled(self):
        got, state = engine(TINY, generate(PROMPTS, 60), ["state", {}], enforce_eager=False)
        self.assertEqual(self.tokens(got), self.wanted)
        self.assertEqual(state["mode"], "DYNAMO_TRACE_ONCE")

    def test_half_types(self):
        text = ids(1000)[0].tolist()
        # The mean difference was 0.0083 and 0.0011.
        for dtype, bound in (torch.bfloat16, 0.02), (torch.float16, 0.003):
            name = str(dtype).removeprefix("torch.")
            (answer,), state = engine(TINY, generate([text], 1, prompt_logprobs=True), ["state", {}], dtype=name)
            self.assertEqual(state["k_dtype"], name)
            difference = (torch.tensor(answer["prompt_logprobs"]) - log_probabilities(load(dtype), text, 256)).abs()
            self.assertLess(float(difference.mean()), bound)

    def test_a_request_ends_at_the_length_of_the_engine(self):
        (answer,), = engine(TINY, generate([PROMPTS[1]], 1000), max_model_len=512)
        self.assertEqual(answer["tokens"], greedy(MODEL, PROMPTS[1], 512 - len(PROMPTS[1]), 256))

    def test_storage_in_8_bits(self):
        text = ids(1000)[0].tolist()
        (answer,), state = engine(TINY, generate([text], 1, prompt_logprobs=True), ["state", {}],
                                  environment={**WINDOW, PREFIX + "KV_DTYPE": "q8"})
        self.assertEqual(state["k_dtype"], "q8")
        difference = (torch.tensor(answer["prompt_logprobs"]) - log_probabilities(MODEL, text, 256)).abs()
        self.assertLess(float(difference.mean()), 0.02)

    def test_families(self):
        models = {
            "llama": LlamaForCausalLM(LlamaConfig(**SMALL)),
            "llama with yarn": LlamaForCausalLM(LlamaConfig(**SMALL, rope_parameters=YARN)),
            "llama 3": LlamaForCausalLM(LlamaConfig(**SMALL, rope_parameters=LLAMA3)),
            "qwen 3": Qwen3ForCausalLM(Qwen3Config(**SMALL, head_dim=32)),
            "phi 3, partial": Phi3ForCausalLM(Phi3Config(**SMALL, partial_rotary_factor=0.5)),
            "glm 4, interleaved and partial": Glm4ForCausalLM(
                Glm4Config(**SMALL, head_dim=16, partial_rotary_factor=0.5)),
        }
        text = ids(400)[0].tolist()
        for name, model in models.items():
            with self.subTest(name):
                folder = FOLDER / name.replace(" ", "_")
                random_weights(model).save_pretrained(folder)
                (answer,), = engine(folder, generate([text], 1, prompt_logprobs=True),
                                    environment={PREFIX + "WINDOW_LENGTH": "36"})
                self.close(answer["prompt_logprobs"], log_probabilities(model, text, 36).tolist())


class Document(Vllm):
    def test_its_program(self):
        text = (ROOT / "docs" / "vllm.md").read_text()
        program, = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
        self.assertEqual(len(program.splitlines()), 10)
        # The tests' own variables are not those of a user.
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("VLLM", PREFIX))}
        with tempfile.TemporaryDirectory() as folder:
            MODEL.save_pretrained(pathlib.Path(folder) / "model")
            path = pathlib.Path(folder) / "program.py"
            path.write_text(program)
            done = subprocess.run([sys.executable, path], cwd=folder, capture_output=True, text=True, env=environment)
        self.assertEqual(done.returncode, 0, done.stderr)
        # vLLM writes its log between.
        self.assertIn("1000", done.stdout.splitlines())


class Without(Vllm):
    def test_without_a_setting_vllm_is_stock(self):
        short = [prompt[:40] for prompt in PROMPTS]
        _, state = engine(TINY, generate(short, 5), ["state", {}], environment={})
        self.assertEqual(state, {"implementation": "vllm.v1.attention.backends.cpu_attn", "prefix_caching": True,
                                 "worker": "vllm.v1.worker.cpu_worker.CPUWorker", "mode": "NONE"})

    def test_below_the_window_it_is_stock(self):
        short = [prompt[:40] for prompt in PROMPTS]
        stock, = engine(TINY, generate(short, 100), environment={})
        got, = engine(TINY, generate(short, 100))
        self.assertEqual(self.tokens(got), self.tokens(stock))
        for one, other in zip(got, stock):
            self.close(one["logprobs"], other["logprobs"])


class Refused(Vllm):
    def test_configurations(self):
        tiny = str(TINY)
        not_served = {
            "tensor_parallel_size=2": dict(tensor_parallel_size=2),
            "pipeline_parallel_size=2": dict(pipeline_parallel_size=2),
            "data_parallel_size=2": dict(data_parallel_size=2),
            "kv_cache_dtype='fp8'": dict(kv_cache_dtype="fp8"),
            "kv_cache_dtype='float16': SINKCACHE_VLLM_KV_DTYPE": dict(kv_cache_dtype="float16"),
            "LoRA": dict(enable_lora=True),
            "worker_cls='a.Worker'": dict(worker_cls="a.Worker"),
            "runner='pooling'": dict(runner="pooling"),
            "kv_sharing_fast_prefill": dict(kv_sharing_fast_prefill=True),
            "kv_offloading_size": dict(kv_offloading_size=1.0),
            "kv_transfer_config": dict(kv_transfer_config={"kv_connector": "ExampleConnector", "kv_role": "kv_both"}),
            "kv_events_config": dict(kv_events_config={"enable_kv_cache_events": True, "publisher": "null"}),
            "speculative method 'draft_model'": dict(speculative_config={
                "method": "draft_model", "model": tiny, "num_speculative_tokens": 2}),
            "num_gpu_blocks_override is 1": dict(num_gpu_blocks_override=1),
        }
        served = [dict(), dict(enable_prefix_caching=True), dict(speculative_config={
            "method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 3})]
        configs = [dict(model=tiny, **arguments) for arguments in [*not_served.values(), *served]]
        errors = run({"configs": configs})["result"]
        for text, error in zip(not_served, errors):
            self.assertIn(text, error or "served")
        self.assertEqual(errors[len(not_served):], [None] * len(served))

    def test_models(self):
        models = {
            "latent attention (MLA)": DeepseekV3Config(
                **{**SMALL, "num_attention_heads": 4, "num_key_value_heads": 4}, kv_lora_rank=32, q_lora_rank=None,
                qk_rope_head_dim=16, qk_nope_head_dim=16, v_head_dim=16, n_routed_experts=4, num_experts_per_tok=2,
                n_group=1, topk_group=1, moe_intermediate_size=64, first_k_dense_replace=2,
                architectures=["DeepseekV3ForCausalLM"]),
            "ALiBi": BloomConfig(vocab_size=259, hidden_size=128, n_layer=1, n_head=4,
                                 architectures=["BloomForCausalLM"]),
            "a sliding window (36)": MistralConfig(**SMALL, sliding_window=36, architectures=["MistralForCausalLM"]),
            "a soft cap of logits": Gemma2Config(**SMALL, head_dim=32, layer_types=["full_attention"],
                                                 architectures=["Gemma2ForCausalLM"]),
            "states beside attention": MambaConfig(vocab_size=259, hidden_size=64, num_hidden_layers=1,
                                                   architectures=["MambaForCausalLM"]),
            "gpt2: it has no rotary embedding": GPT2Config(vocab_size=259, n_embd=128, n_layer=1, n_head=4,
                                                           architectures=["GPT2LMHeadModel"]),
            "phi3: it has no rotary embedding": Phi3Config(
                **SMALL, original_max_position_embeddings=64, rope_parameters=LONGROPE,
                architectures=["Phi3ForCausalLM"]),
            "smollm3: it has no rotary embedding": SmolLM3Config(**SMALL, architectures=["SmolLM3ForCausalLM"]),
        }
        for number, (text, config) in enumerate(models.items()):
            with self.subTest(text):
                folder = FOLDER / f"refused-{number}"
                config.save_pretrained(folder)
                self.refuses(text, model=str(folder), load_format="dummy", max_model_len=512)

    def test_what_vllm_for_the_cpu_refuses_itself(self):
        def config(**changed):
            of = dict(model_config=dict(runner_type="generate", is_encoder_decoder=False, is_multimodal_model=False,
                                        use_mla=False, is_attention_free=False, is_hybrid=False,
                                        enable_sleep_mode=False),
                      parallel_config=dict(tensor_parallel_size=1, pipeline_parallel_size=1, data_parallel_size=1,
                                           decode_context_parallel_size=1, prefill_context_parallel_size=1,
                                           enable_dbo=False, ubatch_size=0, worker_cls="auto"),
                      cache_config=dict(cache_dtype="auto", kv_sharing_fast_prefill=False, kv_offloading_size=None))
            rest = dict.fromkeys(("kv_transfer_config", "kv_events_config", "ec_transfer_config", "lora_config",
                                  "speculative_config"))
            parts = {name: SimpleNamespace(**{key: changed.get(key, value) for key, value in values.items()})
                     for name, values in of.items()}
            return SimpleNamespace(**parts, **{name: changed.get(name) for name in rest})

        self.assertIsNone(refused(config()))
        for text, changed in {
            "an encoder and cross attention": dict(is_encoder_decoder=True),
            "multimodal": dict(is_multimodal_model=True),
            "states beside attention": dict(is_hybrid=True),
            "enable_sleep_mode": dict(enable_sleep_mode=True),
            "decode_context_parallel_size=2": dict(decode_context_parallel_size=2),
            "prefill_context_parallel_size=2": dict(prefill_context_parallel_size=2),
            "microbatches": dict(enable_dbo=True),
            "microbatches ": dict(ubatch_size=2),
            "ec_transfer_config": dict(ec_transfer_config=object()),
            "'eagle3'; only ngram": dict(speculative_config=SimpleNamespace(method="eagle3")),
        }.items():
            self.assertIn(text, refused(config(**changed)) or "served")

    def test_layers(self):
        # Of models that other reasons refuse before, or that vLLM for the CPU does not run.
        for text, arguments in {
            "learned sink logits": dict(sinks=torch.zeros(4)),
            "attention of type encoder_decoder": dict(attn_type=AttentionType.ENCODER_DECODER),
            "attention of type encoder_only": dict(attn_type=AttentionType.ENCODER_ONLY),
            "share keys with another": dict(kv_sharing_target_layer_name="model.layers.0.self_attn.attn"),
            "kv_cache_dtype='fp8_e4m3'": dict(kv_cache_dtype="fp8_e4m3"),
            "mla_dims of a layer": dict(mla_dims=3),
        }.items():
            with self.assertRaisesRegex(ValueError, f"^sinkcache.vllm does not serve .*{text}"):
                Impl(4, 64, 0.125, 2, **arguments)
        Impl(4, 64, 0.125, 2, sinks=None, use_alibi_sqrt=False)

    def test_memory(self):
        self.refuses("the sinkcache of 4 requests (max_num_seqs) has", model=str(TINY),
                     kv_cache_memory_bytes=1 << 20)

    def test_a_wrong_setting_ends_the_program(self):
        self.refuses("SINKCACHE_VLLM_WINDOW_LENGTH is '4'", {PREFIX + "WINDOW_LENGTH": "4"}, model=str(TINY))


class Settings(unittest.TestCase):
    def of(self, **values):
        return settings({PREFIX + name: value for name, value in values.items()} | {"HOME": "/root"})

    def test_none(self):
        self.assertIsNone(self.of())

    def test_defaults_and_all(self):
        found = self.of(WINDOW_LENGTH="1024")
        self.assertEqual((found.window_length, found.num_sink_tokens, found.kv_dtype, found.num_threads),
                         (1024, 4, None, None))
        found = self.of(WINDOW_LENGTH="64", NUM_SINK_TOKENS="0", KV_DTYPE="q4", NUM_THREADS="2")
        self.assertEqual((found.window_length, found.num_sink_tokens, found.kv_dtype, found.num_threads),
                         (64, 0, "q4", 2))

    def test_wrong_ones(self):
        for text, values in {
            "WINDOW_LENGTH is '-1'; numbers from 1 to 2147483647": dict(WINDOW_LENGTH="-1"),
            "WINDOW_LENGTH is ''": dict(WINDOW_LENGTH=""),
            "WINDOW_LENGTH is ' 1_0'": dict(WINDOW_LENGTH=" 1_0"),
            "WINDOW_LENGTH is '2147483648'": dict(WINDOW_LENGTH="2147483648"),
            "WINDOW_LENGTH is '4'; .* exceed .*NUM_SINK_TOKENS, which is 4": dict(WINDOW_LENGTH="4"),
            "NUM_SINK_TOKENS is 'four'": dict(WINDOW_LENGTH="64", NUM_SINK_TOKENS="four"),
            "KV_DTYPE is 'fp8'; allowed are float32, .*q8, q4": dict(WINDOW_LENGTH="64", KV_DTYPE="fp8"),
            "NUM_THREADS is '0'; numbers from 1": dict(WINDOW_LENGTH="64", NUM_THREADS="0"),
            "WINDOW is '64'; the settings are .*WINDOW_LENGTH": dict(WINDOW="64"),
            "WINDOW_LENGTH is not set; SINKCACHE_VLLM_KV_DTYPE needs it": dict(KV_DTYPE="q8"),
        }.items():
            with self.assertRaisesRegex(ValueError, text):
                self.of(**values)


if __name__ == "__main__":
    unittest.main()
