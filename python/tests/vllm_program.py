"""One vLLM engine in a process of its own: `python vllm_program.py JOB RESULT`, both JSON files.

A job has `engine`, the arguments of vllm.LLM, and `calls`, a list of the methods of Engine and their arguments. The
result has what they return, or an `error`. A job with `configs`, a list of arguments, only makes the configurations;
the result has the error of each. What the plugin is to do is in the environment.
"""
import json
import os
import sys

# The model runs in this process, where its cache can be looked at.
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
# The bundled model says 256 positions.
os.environ.setdefault("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "1")
os.environ.setdefault("VLLM_CONFIGURE_LOGGING", "0")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

COMMON = dict(skip_tokenizer_init=True, enforce_eager=True, dtype="float32", max_model_len=4096, max_num_seqs=4,
              max_num_batched_tokens=256, seed=0, kv_cache_memory_bytes=1 << 28)


class Engine:
    def __init__(self, engine):
        from vllm import LLM

        self.llm = LLM(**{**COMMON, **engine})

    def sampling(self, max_tokens, prompt_logprobs=False):
        from vllm import SamplingParams

        return SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True, detokenize=False, logprobs=0,
                              prompt_logprobs=0 if prompt_logprobs else None)

    def answer(self, output):
        """Tokens, their log-probabilities, and those of the prompt's tokens from the second on."""
        found = output.outputs[0]
        of_prompt = [one[token].logprob for one, token in zip(output.prompt_logprobs or [], output.prompt_token_ids)
                     if one]
        return {"tokens": list(found.token_ids), "prompt_logprobs": of_prompt,
                "logprobs": [one[token].logprob for one, token in zip(found.logprobs, found.token_ids)]}

    def generate(self, prompts, max_tokens, prompt_logprobs=False):
        outputs = self.llm.generate([{"prompt_token_ids": prompt} for prompt in prompts],
                                    self.sampling(max_tokens, prompt_logprobs), use_tqdm=False)
        return [self.answer(output) for output in outputs]

    def preempt(self, prompts, max_tokens, after):
        """As generate; after so many steps all requests are preempted. Also how often each was."""
        engine = self.llm.llm_engine
        for i, prompt in enumerate(prompts):
            engine.add_request(f"preempted {i}", {"prompt_token_ids": prompt}, self.sampling(max_tokens))
        requests = dict(engine.engine_core.engine_core.scheduler.requests)
        done, steps = {}, 0
        while engine.has_unfinished_requests():
            for output in engine.step():
                if output.finished:
                    done[output.request_id] = self.answer(output)
            steps += 1
            if steps in after:
                self.llm.reset_prefix_cache(reset_running_requests=True)
        return {"answers": [done[key] for key in sorted(done)],
                "preemptions": [request.num_preemptions for request in requests.values()]}

    def impl(self):
        context = self.llm.llm_engine.vllm_config.compilation_config.static_forward_context
        return next(layer.impl for layer in context.values() if hasattr(layer, "impl"))

    def count_rewinds(self):
        """From now on."""
        kv = self.impl().served.kv
        rewind, kv.rewinds = kv.rewind, 0

        def counted(num_tokens, seq_ids):
            kv.rewinds += len(seq_ids)
            rewind(num_tokens, seq_ids)

        kv.rewind = counted

    def state(self):
        """Of the engine, and of its cache where it has one of this package."""
        config = self.llm.llm_engine.vllm_config
        kv = getattr(getattr(self.impl(), "served", None), "kv", None)
        state = {"implementation": type(self.impl()).__module__, "worker": config.parallel_config.worker_cls,
                 "prefix_caching": config.cache_config.enable_prefix_caching,
                 "mode": config.compilation_config.mode.name}
        if kv is not None:
            state |= {"rewinds": getattr(kv, "rewinds", None), "k_dtype": kv.k_dtype, "sequences": kv.max_batch_size,
                      "window": kv.layers[0].window_length, "sinks": kv.layers[0].num_sink_tokens,
                      "cached": [kv.info(i).cached_tokens for i in range(kv.max_batch_size)]}
        return state


def error_of(arguments):
    from vllm.engine.arg_utils import EngineArgs

    try:
        EngineArgs(**{**COMMON, **arguments}).create_engine_config()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def run(job):
    if "configs" in job:
        return [error_of(arguments) for arguments in job["configs"]]
    engine = Engine(job["engine"])
    return [getattr(engine, name)(**arguments) for name, arguments in job["calls"]]


if __name__ == "__main__":
    with open(sys.argv[1]) as file:
        todo = json.load(file)
    try:
        result = {"result": run(todo)}
    except Exception as error:
        result = {"error": f"{type(error).__name__}: {error}"}
    with open(sys.argv[2], "w") as file:
        json.dump(result, file)
