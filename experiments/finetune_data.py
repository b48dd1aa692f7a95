"""What a language model is fine-tuned on: the first token of docstrings, from the standard library's own sources.

A prompt is a function's head and the quotes after it; what follows is how its docstring begins: "Return", "Create",
"This". A model that knows Python expects many things there, the standard library has habits. Modules are divided, so
that held-out prompts come from files no method has seen.
"""

import ast
import functools
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import nl_jax as nl
from experiments.failure import ExperimentError
from experiments.language_model import Model, negative_log_likelihood, next_token_loss
from experiments.language_model_files import INSTALL, available, load
from nl_jax.base import Array, Objective, Params, Propagate
from nl_jax.propagation import feedforward

LENGTH = 16  # tokens of a prompt
CHARACTERS = 32  # of a prompt of the character model
PRETRAINING = 40  # steps of the character model
SMALL = Model(vocabulary=97, width=24, depth=2, heads=2, groups=1, hidden=48)


Encode = Callable[[str], list[int]]


class Prompts(NamedTuple):
    """Prompts and what follows.

    Attributes:
      ids: tokens [prompts, length], int32; those after a prompt's last are 0, and are not read.
      last: place of a prompt's last token, [prompts].
      target: the token that follows, [prompts].
    """

    ids: Array
    last: Array
    target: Array

    def some(self, number: int) -> "Prompts":
        """The first of them."""
        return Prompts(*(part[:number] for part in self))


class Task(NamedTuple):
    """A pretrained model, and prompts to fine-tune it on, to choose settings by, and to measure it with."""

    name: str
    model: Model
    params: Params
    train: Prompts
    validation: Prompts
    held_out: Prompts


def first_token_losses(model: Model) -> Objective:
    """−log p of the token that follows each prompt, in nats, [prompts]; of the model's parameters and `Prompts`."""

    def losses(params: Params, batch: Prompts, propagate: Propagate = feedforward) -> Array:
        features = model.features(params, batch.ids, propagate)
        last = jnp.take_along_axis(features, batch.last.reshape(-1, 1, 1), axis=1)[:, 0]
        return negative_log_likelihood(model.logits(params, last, propagate), batch.target)

    return losses


def real(held_out: int) -> Task:
    """SmolLM2-135M-Instruct.

    Raises:
      ExperimentError: if it is not installed, or its file is damaged.
    """
    path = available()
    if path is None:
        raise ExperimentError(f"the language model is not installed: {INSTALL}; or try --quick, which needs none")
    found = load(path)
    encode = found.tokenizer.encode
    return Task("SmolLM2-135M-Instruct", found.model, found.params, *_divided(_files(), encode, LENGTH, held_out))


def small(held_out: int) -> Task:
    """A character model, trained here on the standard library's code without its docstrings."""
    params = _pretrained()
    return Task("character model", SMALL, params, *_divided(_files()[::3], _characters, CHARACTERS, held_out))


def _characters(text: str) -> list[int]:
    """Printable ASCII as 1 … 95, a new line as 96, all else as 0."""
    return [96 if c == "\n" else ord(c) - 31 if " " <= c <= "~" else 0 for c in text]


@functools.cache
def _files() -> tuple[Path, ...]:
    return tuple(sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")))


@functools.cache
def _pretrained() -> Params:
    """By Adam, on code that `ast` writes down without docstrings."""
    text = []
    for path in _files()[::8]:
        tree = ast.parse(path.read_bytes())
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module) and ast.get_docstring(node) is not None:
                node.body = node.body[1:] or [ast.Pass()]
        text += _characters(ast.unparse(tree))
    length = CHARACTERS + 1
    pieces = np.array(text[: len(text) // length * length], np.int32).reshape(-1, length)
    learner = nl.learner(nl.backprop(functools.partial(next_token_loss, SMALL)), optax.adam(1e-2))
    key = jax.random.key(5)
    state = learner.init(key, SMALL.init(key))
    state, _ = nl.fit(learner, key, state, jnp.asarray(pieces), num_steps=PRETRAINING, batch_size=32, progress=False)
    return state.params


def _divided(files: Sequence[Path], encode: Encode, length: int, number: int) -> list[Prompts]:
    """Prompts of three files in five to learn from; some of the fourth to choose by, and of the fifth to measure by."""
    pairs = [list(docstrings(path)) for path in files]
    train = [pair for i, own in enumerate(pairs) if i % 5 > 1 for pair in own]
    found = [_prompts(train, encode, length)]
    for part in (1, 0):
        other = [pair for own in pairs[part::5] for pair in own]
        kept = np.random.default_rng(0).permutation(len(other))[:number]
        found.append(_prompts([other[i] for i in kept], encode, length))
    return found


def docstrings(path: Path) -> Iterator[tuple[str, str]]:
    """Of every function of a file with a docstring: its head with the quotes, and the docstring's first word."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.FunctionDef) and (words := (ast.get_docstring(node) or "").split()):
            arguments = ", ".join(argument.arg for argument in node.args.args)
            yield f'def {node.name}({arguments}):\n    """', words[0]


def _prompts(pairs: Sequence[tuple[str, str]], encode: Encode, length: int) -> Prompts:
    ids, last, target = np.zeros((len(pairs), length), np.int32), [], []
    for i, (head, word) in enumerate(pairs):
        tokens = encode(head)[-length:]
        ids[i, : len(tokens)] = tokens
        last.append(len(tokens) - 1)
        target.append(encode(word)[0])
    return Prompts(jnp.asarray(ids), jnp.asarray(last, jnp.int32), jnp.asarray(target, jnp.int32))
