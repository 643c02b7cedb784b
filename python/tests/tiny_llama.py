"""The repository's tiny model and its text, for transformers."""
import struct

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from support import ROOT

DATA = ROOT / "examples" / "data"
# Fixed-size values of GGUF: struct's letters by their number.
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
TYPES = {0: np.float32, 1: np.float16}
TENSORS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
PARTS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
         "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
         "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}


class Reader:
    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, letter):
        value, = struct.unpack_from("<" + letter, self.data, self.at)
        self.at += struct.calcsize("<" + letter)
        return value

    def string(self):
        n = self.take("Q")
        self.at += n
        return self.data[self.at - n:self.at].decode(errors="replace")

    def value(self, kind):
        if kind == STRING:
            return self.string()
        if kind == ARRAY:
            kind, n = self.take("I"), self.take("Q")
            return [self.value(kind) for _ in range(n)]
        return self.take(SCALARS[kind])


def read_gguf(path):
    """Metadata and tensors of a GGUF file in f32 and f16."""
    r = Reader(path.read_bytes())
    r.at = 8  # Behind the magic and the version.
    n_tensors, n_values = r.take("Q"), r.take("Q")
    meta = {}
    for _ in range(n_values):
        name = r.string()
        meta[name] = r.value(r.take("I"))
    entries = [(r.string(), [r.take("Q") for _ in range(r.take("I"))], r.take("I"), r.take("Q"))
               for _ in range(n_tensors)]
    align = meta.get("general.alignment", 32)
    begin = -(-r.at // align) * align
    tensors = {}
    for name, shape, kind, offset in entries:
        values = np.frombuffer(r.data, TYPES[kind], int(np.prod(shape)), begin + offset).reshape(shape[::-1])
        tensors[name.removesuffix(".weight")] = torch.from_numpy(values.astype(np.float32))
    return meta, tensors


def load(dtype=torch.float32):
    """The model, in the attention implementation that transformers chooses."""
    meta, tensors = read_gguf(DATA / "tiny-llama-bytes.gguf")

    def of(key, default=None):
        return meta.get("llama." + key, default)

    heads, kv_heads = of("attention.head_count"), of("attention.head_count_kv")
    vocabulary, width = tensors["token_embd"].shape
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=of("feed_forward_length"),
        num_hidden_layers=of("block_count"), num_attention_heads=heads, num_key_value_heads=kv_heads,
        max_position_embeddings=of("context_length"), rms_norm_eps=of("attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": of("rope.freq_base", 10000.0)},
        tie_word_embeddings="output" not in tensors, bos_token_id=1, eos_token_id=None, pad_token_id=0)
    state = {}
    for name, value in tensors.items():
        if name in TENSORS:
            state[f"{TENSORS[name]}.weight"] = value
            continue
        _, layer, part = name.split(".")
        if part in ("attn_q", "attn_k"):
            # GGUF has pairs of dims side by side, transformers half a head apart.
            n = heads if part == "attn_q" else kv_heads
            value = value.view(n, -1, 2, value.shape[1]).transpose(1, 2).reshape(value.shape)
        state[f"model.layers.{layer}.{PARTS[part]}.weight"] = value
    model = LlamaForCausalLM(config)
    left = model.load_state_dict(state, strict=False)
    if left.unexpected_keys or set(left.missing_keys) - {"lm_head.weight"}:
        raise ValueError(f"the model has other tensors: {left}")
    model.tie_weights()
    model = model.to(dtype).eval()
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0
    return model


def ids(count, at=0):
    """Tokens of the text: its bytes, after the token that begins a text."""
    text = (DATA / "stream.txt").read_bytes()[at:at + count - 1]
    return torch.tensor([[1] + [byte + 3 for byte in text]])
