"""Fine-tuning data for a language model: the first token of docstrings in the standard library's sources.

A prompt is a function's header and the opening quotes of its docstring. The target is the docstring's first token, as
in "Return", "Create", "This". A model that knows Python expects many tokens there; the standard library prefers some.
Sets are divided by module, so held-out prompts come from files that no method has seen.
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
from experiments.harness.failure import ExperimentError
from experiments.harness.language_model import Model, negative_log_likelihood, next_token_loss
from experiments.harness.language_model_files import INSTALL, available, load
from nl_jax.base import Array, Objective, Params, Propagate
from nl_jax.propagation import feedforward

LENGTH = 16  # tokens of a prompt
CHARACTERS = 32  # characters of a prompt of the character model
PRETRAINING = 40  # training steps of the character model
SMALL = Model(vocabulary=97, width=24, depth=2, heads=2, groups=1, hidden=48)


Encode = Callable[[str], list[int]]


class Prompts(NamedTuple):
    """Prompts and their next tokens.

    Attributes:
      ids: tokens [prompts, length], int32, padded with 0 after a prompt's last token; the padding is not read.
      last: index of a prompt's last token, [prompts].
      target: the token that follows, [prompts].
    """

    ids: Array
    last: Array
    target: Array

    def some(self, number: int) -> "Prompts":
        """Returns the first `number` prompts."""
        return Prompts(*(part[:number] for part in self))


class Task(NamedTuple):
    """A pretrained model with training, validation and held-out prompts."""

    name: str
    model: Model
    params: Params
    train: Prompts
    validation: Prompts
    held_out: Prompts


def first_token_losses(model: Model) -> Objective:
    """Returns the objective −log p of the token that follows each prompt, in nats, [prompts]; batches are `Prompts`."""

    def losses(params: Params, batch: Prompts, propagate: Propagate = feedforward) -> Array:
        features = model.features(params, batch.ids, propagate)
        last = jnp.take_along_axis(features, batch.last.reshape(-1, 1, 1), axis=1)[:, 0]
        return negative_log_likelihood(model.logits(params, last, propagate), batch.target)

    return losses


def real(held_out: int) -> Task:
    """Loads SmolLM2-135M-Instruct with its prompts.

    Raises:
      ExperimentError: if the model is not installed, or its file is damaged.
    """
    path = available()
    if path is None:
        raise ExperimentError(f"the language model is not installed: {INSTALL}; or try --quick, which needs none")
    found = load(path)
    encode = found.tokenizer.encode
    return Task("SmolLM2-135M-Instruct", found.model, found.params, *_divided(_files(), encode, LENGTH, held_out))


def small(held_out: int) -> Task:
    """Trains a character model on the standard library's code without docstrings, and returns it with its prompts."""
    params = _pretrained()
    return Task("character model", SMALL, params, *_divided(_files()[::3], _characters, CHARACTERS, held_out))


def _characters(text: str) -> list[int]:
    """Encodes printable ASCII as 1 … 95, a newline as 96, all else as 0."""
    return [96 if c == "\n" else ord(c) - 31 if " " <= c <= "~" else 0 for c in text]


@functools.cache
def _files() -> tuple[Path, ...]:
    return tuple(sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")))


@functools.cache
def _pretrained() -> Params:
    """Trains by Adam on code that `ast` prints without docstrings."""
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
    """Divides files 3:1:1 into training, validation and held-out prompts; the last two are random subsets."""
    pairs = [list(docstrings(path)) for path in files]
    train = [pair for i, own in enumerate(pairs) if i % 5 > 1 for pair in own]
    found = [_prompts(train, encode, length)]
    for part in (1, 0):
        other = [pair for own in pairs[part::5] for pair in own]
        kept = np.random.default_rng(0).permutation(len(other))[:number]
        found.append(_prompts([other[i] for i in kept], encode, length))
    return found


def docstrings(path: Path) -> Iterator[tuple[str, str]]:
    """Yields, for every function with a docstring, its header with the quotes, and the docstring's first word."""
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
