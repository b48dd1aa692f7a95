"""Every estimator, optimizer and local rule, once: how to make it, and what it claims."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

import nl_jax as nl
from nl_jax import rules

rademacher = nl.directions.rademacher()

EVERYTHING = "reads other axons, weight transport, sees the target"
NO_TRANSPORT = "reads other axons, sees the target"
TARGET = "sees the target"
"""Verdicts of the audit."""


class Entry(NamedTuple):
    """An estimator and its claims, each of which the tests check.

    Attributes:
      make: `make(objective, **chunk) -> estimator`.
      layers: needs an objective that takes `propagate`.
      derivative: needs derivatives of activations and losses.
      calibrated: its mean is the gradient; it is the gradient, if not random.
      random: an estimate depends on its key.
      evaluations: what one estimate costs.
      verdicts: the audit's, of the weights of a hidden layer and of the last one. By default those of noise judged by
        the loss: (Ẽ − E) ξ, with the layer's own input if the noise is in its nodes.
    """

    make: Callable[..., nl.GradientEstimator]
    layers: bool = False
    derivative: bool = False
    calibrated: bool = True
    random: bool = True
    evaluations: int = 0
    verdicts: tuple[str, str] = ("three-factor", "three-factor")


K = 4
UNEVEN = 3
"""Samples: chunks of two, which the certificate tries, leave none over; of one estimator a family they leave one."""


def _part(f, **settings) -> Callable[..., nl.GradientEstimator]:
    return functools.partial(f, **settings)


def _mixture(objective: Any, chunk: int | None = None) -> nl.GradientEstimator:
    noisy = nl.forward_gradient(objective, num_samples=K, directions=rademacher, chunk=chunk)
    return nl.mix([nl.backprop(objective), noisy], [0.75, 0.25])


def _partition(objective: Any, chunk: int | None = None) -> nl.GradientEstimator:
    hidden = _part(nl.node_perturbation, num_samples=K, directions=rademacher, chunk=chunk)
    return nl.partition(objective, {"output/*": nl.backprop, "*": hidden})


def _average(objective: Any, chunk: int | None = None) -> nl.GradientEstimator:
    return nl.average(nl.node_perturbation(objective, num_samples=K, directions=rademacher, chunk=chunk), 2)


def _random_subspace(objective: Any, chunk: int | None = None) -> nl.GradientEstimator:
    """Its samples share a subspace, so that its variance does not fall as 1/K: it has no setting of that name."""
    antithetic, basis = nl.baselines.antithetic(), nl.bases.random(2)
    return nl.subspace_perturbation(
        objective, num_samples=K, basis=basis, directions=rademacher, baseline=antithetic, chunk=chunk
    )


DOWN = EVERYTHING, TARGET
"""δ = Wᵀ(p − p̄) f': the weights and axons of the layers above, and the target in their error; at the top (p − p̄) x."""

BESIDE = NO_TRANSPORT, TARGET
"""δ = B (p − p̄) f': the same without the weights, unless B was made of them."""

SETTLED = EVERYTHING, NO_TRANSPORT
"""Axons that all other layers and their weights have moved; the last layer's weights are the only ones on its way."""


def _fixed(
    make: Callable[..., nl.GradientEstimator],
    evaluations: int,
    exact: bool = False,
    verdicts: tuple[str, str] = DOWN,
) -> Entry:
    """Of estimators that draw nothing, and derive layer by layer; unless exact, biased."""
    return Entry(
        make, layers=True, derivative=True, calibrated=exact, random=False, evaluations=evaluations, verdicts=verdicts
    )


def _feedback(feedback: nl.feedback.Feedback, evaluations: int = 3, verdicts: tuple[str, str] = BESIDE) -> Entry:
    return _fixed(_part(nl.feedback_alignment, feedback=feedback), evaluations, verdicts=verdicts)


INFERENCE = {"num_steps": 3, "tolerance": 0.0}
nodes, weights = nl.spaces.nodes, nl.spaces.weights

ESTIMATORS: dict[str, Entry] = {
    "backprop": Entry(nl.backprop, derivative=True, random=False, evaluations=3, verdicts=DOWN),
    "backprop_recursion": _fixed(nl.backprop_recursion, evaluations=3, exact=True),
    "lagrangian_backprop": _fixed(nl.lagrangian_backprop, evaluations=3, exact=True),
    "fixed_prediction": _fixed(nl.fixed_prediction, evaluations=3 + 2, exact=True),
    "zero_divergence": _fixed(nl.zero_divergence, evaluations=2 + 2 * 2, exact=True),
    # Four steps or fewer: what they tend to has tests of its own.
    "predictive_coding": _fixed(_part(nl.predictive_coding, **INFERENCE), evaluations=3 + 2 * 3),
    "error_predictive_coding": _fixed(_part(nl.error_predictive_coding, **INFERENCE), evaluations=3 + 2 * 3),
    "auxiliary_coordinates": _fixed(
        _part(nl.auxiliary_coordinates, penalties=(1, 10), **INFERENCE), evaluations=3 + 2 * 2 * 3
    ),
    "primal_dual": _fixed(_part(nl.primal_dual, num_steps=4, tolerance=0.0), evaluations=2 + 4 * 2, verdicts=SETTLED),
    "extragradient": _fixed(
        _part(nl.extragradient, num_steps=4, tolerance=0.0), evaluations=2 + 4 * 4, verdicts=SETTLED
    ),
    "augmented_lagrangian": _fixed(
        _part(nl.augmented_lagrangian, num_outer=4, num_inner=3, tolerance=0.0),
        evaluations=2 + 4 * (2 * 3 + 3),
        verdicts=SETTLED,
    ),
    "admm": _fixed(
        _part(nl.admm, num_steps=4, solve=nl.layer_solves.gauss_newton(3), tolerance=0.0),
        evaluations=2 + 4 * (2 * 3 + 3 + 3),
        verdicts=SETTLED,
    ),
    # Feedback so weak that the loss at rest, which it reports, is close to the network's own.
    "equilibrium_propagation": _fixed(
        _part(nl.equilibrium_propagation, feedback_strength=0.1, num_steps=4, tolerance=0.0),
        evaluations=1 + 2 * 4 + 2 * 2 * 4 + 3,
        verdicts=SETTLED,  # x̂_l x̂_{l−1} − x_l x_{l−1}: Hebb's rule
    ),
    "contrastive_hebbian": _fixed(
        _part(nl.contrastive_hebbian, rate=0.5, num_steps=4), evaluations=1 + 2 * 4 + 2 * 4 + 2, verdicts=SETTLED
    ),
    "dual_propagation": _fixed(_part(nl.dual_propagation, num_steps=3), evaluations=3 + 2 * 2),
    "feedback_random": _feedback(nl.feedback.random()),
    "feedback_sign_symmetric": _feedback(nl.feedback.sign_symmetric(), verdicts=DOWN),
    "feedback_sign_concordant": _feedback(nl.feedback.sign_concordant(), verdicts=DOWN),
    "feedback_kolen_pollack": _feedback(nl.feedback.kolen_pollack(optax.sgd(0.1))),
    "feedback_weight_mirror": _feedback(nl.feedback.weight_mirror(optax.sgd(0.1)), evaluations=6),
    "direct_feedback": _fixed(nl.direct_feedback_alignment, evaluations=3, verdicts=BESIDE),
    "target_propagation": _fixed(
        _part(nl.difference_target_propagation, optimizer=optax.sgd(0.1)), evaluations=7, verdicts=BESIDE
    ),
    "weight_clean": Entry(_part(nl.weight_perturbation, num_samples=UNEVEN), evaluations=UNEVEN + 1),
    "weight_none": Entry(
        _part(nl.weight_perturbation, num_samples=K, baseline=nl.baselines.none(), directions=rademacher, sigma=0.1),
        evaluations=K,
    ),
    "weight_antithetic": Entry(
        _part(nl.weight_perturbation, num_samples=K, baseline=nl.baselines.antithetic(), directions=rademacher),
        evaluations=2 * K,
    ),
    "weight_running_mean": Entry(
        _part(
            nl.weight_perturbation,
            num_samples=K,
            baseline=nl.baselines.running_mean(),
            directions=rademacher,
            sigma=0.1,
        ),
        evaluations=K,
    ),
    "weight_rank_one": Entry(
        _part(nl.weight_perturbation, num_samples=K, directions=nl.directions.rank_one()), evaluations=K + 1
    ),
    "weight_flipout_antithetic": Entry(
        _part(
            nl.weight_perturbation,
            num_samples=K,
            directions=nl.directions.flipout(),
            baseline=nl.baselines.antithetic(),
        ),
        evaluations=2 * K,
    ),
    "subspace_inputs": Entry(_part(nl.subspace_perturbation, num_samples=K), layers=True, evaluations=K + 2),
    "subspace_random_antithetic": Entry(_random_subspace, evaluations=2 * K),
    "node_orthogonal": Entry(
        _part(nl.node_perturbation, num_samples=UNEVEN, directions=nl.directions.orthogonal()),
        layers=True,
        evaluations=UNEVEN + 2,
    ),
    "evolution_strategy": Entry(_part(nl.evolution_strategy, num_samples=K), calibrated=False, evaluations=2 * K),
    "normalised": Entry(
        lambda objective: nl.normalised(nl.weight_perturbation(objective, num_samples=K, directions=rademacher)),
        calibrated=False,
        evaluations=K + 1,
    ),
    "node_clean": Entry(_part(nl.node_perturbation, num_samples=UNEVEN), layers=True, evaluations=UNEVEN + 2),
    "node_none": Entry(
        _part(nl.node_perturbation, num_samples=K, baseline=nl.baselines.none(), directions=rademacher, sigma=0.1),
        layers=True,
        evaluations=K + 2,
    ),
    "node_antithetic": Entry(
        _part(nl.node_perturbation, num_samples=K, baseline=nl.baselines.antithetic(), directions=rademacher),
        layers=True,
        evaluations=2 * K + 2,
    ),
    "node_batch_credit": Entry(
        _part(nl.node_perturbation, num_samples=K, credit=nl.spaces.per_batch_credit(), directions=rademacher),
        layers=True,
        evaluations=K + 2,
    ),
    "node_iterative": Entry(_part(nl.iterative_node_perturbation, num_samples=K), layers=True, evaluations=2 * K + 2),
    "node_activity": Entry(
        _part(nl.activity_node_perturbation, num_samples=K),
        layers=True,
        calibrated=False,
        evaluations=K + 2,
        # (Ẽ − E) Δν x/‖Δν‖²: one more number for all, the squared length of the change of every layer's activity.
        verdicts=("reads other axons",) * 2,
    ),
    "forward_weights": Entry(_part(nl.forward_gradient, num_samples=K), derivative=True, evaluations=2 * K + 1),
    "forward_low_rank": Entry(
        _part(nl.forward_gradient, num_samples=K, directions=nl.directions.low_rank(2)),
        derivative=True,
        evaluations=2 * K + 1,
    ),
    "forward_nodes": Entry(
        _part(nl.forward_gradient, num_samples=K, space=nodes), layers=True, derivative=True, evaluations=K + 2
    ),
    "reinforce": Entry(
        _part(nl.reinforce, units=nl.units.gaussian(sigma=0.01), num_samples=K),
        layers=True,
        evaluations=2 * K,
    ),
    "average": Entry(_average, layers=True, evaluations=2 * (K + 2)),
    "mix": Entry(_mixture, derivative=True, evaluations=3 + 2 * K + 1, verdicts=DOWN),
    "partition": Entry(
        _partition, layers=True, derivative=True, evaluations=3 + K + 2, verdicts=("three-factor", TARGET)
    ),
}


def _halves() -> optax.GradientTransformation:
    """Weights by conjugate directions, biases by Adam."""

    def kind(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key, params)

    return optax.multi_transform({"weight": _directions(), "bias": optax.adam(1e-2)}, kind)


def _directions(**settings: Any) -> optax.GradientTransformation:
    return optax.chain(nl.optimizers.scale_by_conjugate_gradient(**settings), optax.scale_by_learning_rate(1e-2))


OPTIMIZERS: dict[str, Callable[[], optax.GradientTransformation]] = {
    "sgd": _part(optax.sgd, learning_rate=1e-2),
    "adam": _part(optax.adam, learning_rate=1e-2),
    **{
        beta.__name__: _part(_directions, beta=beta)
        for beta in (
            nl.optimizers.fletcher_reeves,
            nl.optimizers.polak_ribiere,
            nl.optimizers.hestenes_stiefel,
            nl.optimizers.dai_yuan,
        )
    },
    "one_evaluation": _part(nl.optimizers.one_evaluation_conjugate_gradient, learning_rate=1e-2, renew_every=2),
    "chain": lambda: optax.chain(optax.clip_by_global_norm(1.0), _directions(), optax.add_decayed_weights(-1e-4)),
    "multi_transform": _halves,
    "inject_hyperparams": lambda: optax.inject_hyperparams(
        nl.optimizers.one_evaluation_conjugate_gradient, static_args=("clip", "renew_every")
    )(1e-2),
}

LINE_SEARCHES: dict[str, Callable[[], optax.GradientTransformation]] = {
    "conjugate_gradient": nl.optimizers.conjugate_gradient,
    "inject_hyperparams": lambda: optax.inject_hyperparams(
        nl.optimizers.conjugate_gradient, static_args=("beta", "nonneg", "restart_every", "max_linesearch_steps")
    )(curv_rtol=0.1),
}
"""Optimizers that evaluate again, as often as they need."""

PARAMETRIC = {(1, 1, 0): 1.0, (0, 2, 1): -1.0, (2, 1, 2): 0.3, (0, 0, 0): -0.1, (1, 0, 1): 0.2}
"""Coefficients for `rules.parametric`: Oja's and more of all powers."""

RULES: dict[str, Callable[[], rules.Rule]] = {
    "hebb": rules.hebb,
    "oja": rules.oja,
    "subspace": rules.subspace,
    "sanger": rules.sanger,
    "apex": rules.apex,
    "bcm": rules.bcm,
    "instar": rules.instar,
    "competitive": rules.competitive,
    "spherical": rules.spherical,
    "competitive_hebbian": _part(rules.competitive_hebbian, neighbours=2),
    "soft_hebb": rules.soft_hebb,
    "soft_hebb_anti_hebbian": _part(rules.soft_hebb, anti_hebbian=True, temperature=0.5),
    "parametric": _part(rules.parametric, theta=PARAMETRIC),
    "perceptron": rules.perceptron,
    "delta": rules.delta,
    "delta_tanh": _part(rules.delta, derivative=nl.activations.tanh().derivative),
}
