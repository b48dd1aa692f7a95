"""Lists the experiments that the gallery shows, in order."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Exhibit:
    """An experiment in the gallery; `equation` and `claim` are HTML."""

    module: str
    """The module that `python -m` runs."""
    title: str
    equation: str
    """The equation that the experiment tests; without a theory to test, the formula of what it compares."""
    claim: str
    """What the figure shows, and the source of the equation."""
    figures: Mapping[str, str]
    """Names of its figures and their alternative texts; the first figure is the thumbnail's."""

    @property
    def name(self) -> str:
        """Name of its folder and, if it judges a result, of its verdict's file."""
        return self.module.rpartition(".")[2]


EXHIBITS = (
    Exhibit(
        "experiments.compare",
        "One gradient, six estimators",
        "⟨(<i>Ẽ</i> − <i>E</i>) Ω⟩ / σ² &nbsp;≈&nbsp; ⟨(∇<i>E</i> · <i>ξ</i>) <i>ξ</i>⟩ &nbsp;≈&nbsp; "
        "∂<i>E</i>/∂<i>w</i>",
        "The same network learns the same digits by backprop, Lagrangian backprop, node and weight perturbation and "
        "forward gradients. All estimate the same gradient; they differ in the cost of an update (seed 000).",
        {
            "compare": "Training loss against updates and against objective evaluations, and the cosine of each "
            "estimate to the exact gradient, for six estimators"
        },
    ),
    Exhibit(
        "experiments.credit",
        "Credit assignment, layer by layer",
        "<i>δ<sub>k</sub></i> &nbsp;=&nbsp; (<i>ŷ<sub>k</sub></i> − <i>y<sub>k</sub></i>) <i>ŷ<sub>k</sub></i> (1 − "
        "<i>ŷ<sub>k</sub></i>), &emsp; <i>γ<sub>m</sub></i> &nbsp;=&nbsp; Σ<sub><i>k</i></sub> <i>δ<sub>k</sub> "
        "v<sub>km</sub> h<sub>m</sub></i> (1 − <i>h<sub>m</sub></i>)",
        "One step of backprop on a small network: the value and the credit of each unit (seed 001 §2). "
        "In a deeper network feedback alignment, predictive coding and node perturbation assign credit of "
        "another direction and size; the error of node perturbation follows its law.",
        {
            "credit": "A network with the values of its units, and with their credit; below, cosine and size of "
            "four estimators’ credit against backprop’s, by layer",
            "layers": "Credit of each unit on eight examples as colours, a row for each estimator, a column for each "
            "layer",
        },
    ),
    Exhibit(
        "experiments.constrained",
        "One Lagrangian, from backprop to its relatives",
        "<i>L</i> &nbsp;=&nbsp; <i>C</i>(<i>x<sub>L</sub></i>) + Σ <i>λ<sub>l</sub></i><sup>T</sup> "
        "<i>r<sub>l</sub></i> + μ/2 Σ ‖<i>r<sub>l</sub></i>‖², &emsp; <i>r<sub>l</sub></i> = <i>x<sub>l</sub></i> − "
        "<i>f</i>(<i>W<sub>l</sub> x</i><sub><i>l</i> − 1</sub> + <i>b<sub>l</sub></i>)",
        "Backprop is its stationary point by substitution. Multiplier methods reach the same point by iteration; "
        "a penalty alone, which is predictive coding, misses it by an error that falls as 1/μ and, in linear networks, "
        "agrees with theory (seed 000; LeCun 1988; Innocenti et al. 2024).",
        {
            "constrained": "Cosine and error of predictive coding’s estimate against μ, beside theory; test accuracy "
            "against μ; errors of seven solvers against iterations and evaluations; residuals of each layer",
            "members": "Test accuracies of the whole family, and the angles between feedback’s updates and backprop’s "
            "in each hidden layer through training",
        },
    ),
    Exhibit(
        "experiments.predictive_depth",
        "Predictive coding in deep networks",
        "<i>F</i> &nbsp;=&nbsp; <i>C</i> + μ/2 Σ ‖<i>e<sub>l</sub></i>‖², &emsp; <i>x<sub>l</sub></i> = "
        "<i>f</i>(<i>W<sub>l</sub> x</i><sub><i>l</i> − 1</sub>) + <i>e<sub>l</sub></i>",
        "The same equilibrium is inferred in axons, where a signal crosses one layer per step, and in errors, which "
        "the loss reaches at once, at the best rates (Goemaere et al. 2025). Networks of several depths then learn by "
        "it, with the multipliers of μPC and with standard ones (Innocenti et al. 2025).",
        {
            "predictive_depth": "‖∂F/∂x‖ and the error of the weights’ gradient against evaluations, in axons and in "
            "errors, and their ratio; below, losses against the learning rate under two scalings, and the best rate "
            "against the number of layers"
        },
    ),
    Exhibit(
        "experiments.student_teacher",
        "Learning speed of node and weight perturbation",
        "E ‖Δ′‖² &nbsp;=&nbsp; (1 − 2η + η²<i>C</i>) ‖Δ‖² + η²<i>S</i><br>"
        "<i>C</i> &nbsp;=&nbsp; <i>N</i> + 2 for backprop, &ensp; (<i>M</i> + 2)(<i>N</i> + 2) for nodes, &ensp; "
        "(<i>MN</i> + 2)(<i>N</i> + 2) for weights",
        "A linear student of M outputs and N inputs learns from a linear teacher. Every learning curve is known, and "
        "so is the best rate, 1/C: node perturbation is about M times slower than backprop, weight perturbation "
        "about MN times (seed 000; Werfel, Xie &amp; Seung 2004). The loss is ½‖<i>y</i> − <i>y</i>*‖²; without the "
        "½, as in seed 000, every rate is half as large.",
        {
            "student_teacher": "Learning curves of backprop, node and weight perturbation on those of theory; the "
            "contraction per step against the rate; and best rates against N and M"
        },
    ),
    Exhibit(
        "experiments.variance_depth",
        "Variance of node and weight perturbation against depth",
        "E ‖<i>ĝ</i> − <i>g</i>‖² / ‖<i>g</i>‖² &nbsp;=&nbsp; <i>P</i> + 1 for weights<br>"
        "1 + Σ<sub><i>l</i></sub> ‖<i>x<sub>l</sub></i>‖² (<i>M<sub>l</sub></i> ‖<i>δ</i>‖² + "
        "‖<i>δ<sub>l</sub></i>‖²) / ‖<i>g</i>‖² − 1 for nodes",
        "Weight perturbation’s variance is the number of weights P in every network, linear or not. Node "
        "perturbation’s is the number of nodes only where axons and credit keep their norms from layer to layer. Where "
        "both shrink, it grows exponentially with depth and soon exceeds P (seed 000’s open question; mean "
        "squares of wide networks: Poole et al. 2016).",
        {
            "variance_depth": "Relative variance of weight and node perturbation against depth and against width in "
            "four kinds of networks, on their laws; node perturbation’s over the number of nodes; and cosines"
        },
    ),
    Exhibit(
        "experiments.temporal_task",
        "Node and weight perturbation in temporal tasks",
        "E ‖Δ′‖² &nbsp;=&nbsp; (1 − 2η + η²<i>K</i>) ‖Δ‖² + η² (σ²<i>F</i>/4 + 2<i>E</i><sub>opt</sub><i>H</i>)<br>"
        "<i>H</i><sub>nodes</sub> / <i>H</i><sub>weights</sub> &nbsp;=&nbsp; (<i>MT</i> + 2) / (<i>Mn</i> + 2)",
        "A trial of T steps is judged by one number, and inputs span n dimensions. With fresh inputs, node "
        "perturbation ends with the smaller error in trials shorter than n, weight perturbation in longer ones "
        "(Züge et al. 2023).",
        {
            "temporal_task": "Learning curves and final errors of node and weight perturbation against the length of a "
            "trial and the dimension of its inputs, on the curves of their laws"
        },
    ),
    Exhibit(
        "experiments.perceptron",
        "A perceptron’s mistakes are bounded",
        "mistakes &nbsp;≤&nbsp; (<i>R</i> / <i>γ</i>)²",
        "If a plane separates two classes with margin γ, a perceptron’s mistakes do not exceed Novikoff’s bound, "
        "and orthonormal inputs reach it. On the exclusive or its weights cycle, and it makes mistakes for "
        "ever; the delta rule’s sigmoid unit converges to ½; two layers learn it (seeds 000, 001; Novikoff 1962).",
        {
            "perceptron": "Mistakes of perceptrons against Novikoff’s bound; mistakes against passes; and errors of "
            "three learners on the four examples of the exclusive or"
        },
    ),
    Exhibit(
        "experiments.linear_neuron",
        "The linear neuron’s peak at N = D",
        "E ‖<i>w</i> − <i>w</i>*‖² &nbsp;=&nbsp; σ² <i>D</i> / (<i>N</i> − <i>D</i> − 1) &ensp; for "
        "<i>N</i> &gt; <i>D</i> + 1<br>"
        "E ‖<i>w</i> − <i>w</i>*‖² &nbsp;=&nbsp; (1 − <i>N</i>/<i>D</i>) ‖<i>w</i>*‖² + "
        "σ² <i>N</i> / (<i>D</i> − <i>N</i> − 1) &ensp; for <i>N</i> &lt; <i>D</i> − 1",
        "With as many examples as inputs a linear neuron fits its training data and errs most on new data; with fewer "
        "or more it errs less. The law is exact for finite N and D (seed 000; Hastie et al. 2022).",
        {
            "linear_neuron": "Test and training error against N/D: measured points on the curves of the law, which "
            "rise to infinity at N = D"
        },
    ),
    Exhibit(
        "experiments.deep_linear",
        "Deep linear networks learn mode by mode",
        "τ d<i>u</i>/d<i>t</i> &nbsp;=&nbsp; <i>L</i> <i>u</i><sup>2 − 2/<i>L</i></sup> (<i>s</i> − <i>u</i>)",
        "Each singular mode of the map to be learned, of strength s, follows a sigmoid curve of its own, the strongest "
        "first: the loss falls in steps, which are steeper in deeper networks (seed 000; Saxe et al. 2014).",
        {
            "deep_linear": "For networks of several depths, strengths of modes and the loss against time on the curves "
            "of the law, and the distance from it against the learning rate"
        },
    ),
    Exhibit(
        "experiments.hebbian_pca",
        "Principal components by Hebbian rules",
        "Hebb: &nbsp;d<i>w</i>/d<i>t</i> = <i>Cw</i><br>Oja: &nbsp;d<i>w</i>/d<i>t</i> = <i>Cw</i> − "
        "(<i>w</i>ᵀ<i>Cw</i>) <i>w</i><br>Sanger: &nbsp;<i>w<sub>j</sub></i> → ± <i>v<sub>j</sub></i>",
        "On digits, without labels: by Hebb’s rule weights diverge along every eigenvector; by Oja’s they converge to "
        "the first, by Sanger’s to the first few in order (seed 000; Oja 1982, Sanger 1989).",
        {
            "hebbian_pca": "Growth of eigen-components by Hebb’s rule and their fading by Oja’s on the curves of the "
            "flow, distances of Sanger’s units from the eigenvectors, and both as images"
        },
    ),
    Exhibit(
        "experiments.activation_equivalence",
        "One function, two networks",
        "1 / (1 + e<sup>−ν</sup>) &nbsp;=&nbsp; ½ + ½ tanh(ν/2)",
        "Sigmoid networks and the tanh networks they convert to have the same outputs, and by the chain rule the same "
        "gradients, to rounding. At the same learning rate they learn differently (seed 000).",
        {
            "activation_equivalence": "Differences of outputs and gradients in units of rounding, and learning curves "
            "of a sigmoid network, of its tanh twin, and of the twin with the sigmoid network’s gradient"
        },
    ),
    Exhibit(
        "experiments.restarts",
        "How many restarts reach each local minimum",
        "P(<i>k</i> of <i>D</i> weights in the worse minimum) &nbsp;=&nbsp; <i>D</i>! / (<i>k</i>! (<i>D</i> − "
        "<i>k</i>)!) &nbsp;<i>q</i><sup><i>k</i></sup> (1 − <i>q</i>)<sup><i>D</i> − <i>k</i></sup>",
        "A single sigmoid unit with 2<sup>D</sup> minima, trained from many random weights. Gradient descent ends in "
        "the minimum on its side of every barrier; q is the probability that a weight starts on the wrong side "
        "(Auer et al. 1996).",
        {
            "restarts": "The loss along one weight with its two minima; the fraction of restarts at each loss, beside "
            "the law; and the probability of missing the best minimum against restarts"
        },
    ),
    Exhibit(
        "experiments.universal_approximation",
        "One hidden layer approximates any continuous function",
        "<i>G</i>(<i>x</i>) = Σ<sub><i>m</i></sub> <i>v<sub>m</sub></i> σ(Σ<sub><i>j</i></sub> "
        "<i>w<sub>jm</sub></i> <i>x<sub>j</sub></i>), &emsp; max |<i>G</i> − <i>g</i>| → 0 as <i>M</i> → ∞",
        "The more sigmoid units in the one hidden layer, the smaller the largest error, for smooth, kinked and "
        "oscillating functions alike (seed 001; Hornik 1991).",
        {
            "universal_approximation": "Four functions and their approximations by 1, 2 and 4 units; below, "
            "largest and mean error falling with the number of units"
        },
    ),
    Exhibit(
        "experiments.batch_norm",
        "Batch normalisation under two learning rules",
        "<i>y</i> = γ (ν − μ<sub>B</sub>) / √(σ²<sub>B</sub> + ε) + β",
        "A deep sigmoid network that hardly learns without batch normalisation learns with it, by backprop and by node "
        "perturbation, where the loss of the whole batch must judge all noise (seed 001 §5; Ioffe &amp; Szegedy 2015).",
        {
            "batch_norm": "Training loss and test accuracy against updates, and loss against learning rate, with and "
            "without batch normalisation, by backprop and by node perturbation"
        },
    ),
    Exhibit(
        "experiments.loss_surfaces",
        "Losses on the simplex",
        "ℓ<sub><i>p</i></sub> = 1/<i>p</i> Σ |<i>x<sub>i</sub></i> − <i>x̄<sub>i</sub></i>|<sup><i>p</i></sup>, &emsp; "
        "ℓ<sub>KL</sub> = Σ <i>x<sub>i</sub></i> log <i>x<sub>i</sub></i>/<i>x̄<sub>i</sub></i>, &emsp; "
        "<i>L</i>(<i>x</i>) = ℓ(<i>x</i>/<i>X</i>) &nbsp;⇒&nbsp; Σ <i>x<sub>i</sub></i> ∂<i><sub>i</sub>L</i> = 0",
        "The library’s losses have the derivatives of the seed’s formulas, to rounding. Each is least at the targets, "
        "except the Kullback–Leibler divergence of unnormalised outputs, least at x̄/e (seed 003 eq. 13–18).",
        {
            "loss_surfaces": "Contours and negative gradients of three losses on the simplex of three outputs; of "
            "Kullback–Leibler, as it is and normalised, for two outputs of any sum; and L, L′ and L″ of one output"
        },
    ),
    Exhibit(
        "experiments.conditioning",
        "Zero mean and unit variance",
        "excess loss &nbsp;→&nbsp; ((κ − 1) / (κ + 1))² &nbsp;excess loss, &emsp; κ = "
        "<i>λ</i><sub>max</sub> / <i>λ</i><sub>min</sub> of ⟨(<i>x</i>, 1)(<i>x</i>, 1)<sup>T</sup>⟩",
        "The first reason for batch normalisation. Linear units learn from raw, centred, standardised and whitened "
        "images at the speed that their condition number κ predicts; κ is 1 only for zero mean, unit variance and "
        "no correlations. A network gains as well, but far less (seed 001 §5; LeCun, Kanter &amp; Solla 1991).",
        {
            "conditioning": "Excess losses of linear units and their steps to a small one on the law, against the "
            "condition number, the mean and the deviation of inputs; below, losses of a network with each kind of "
            "inputs, and its updates against the learning rate"
        },
    ),
    Exhibit(
        "experiments.covariate_shift",
        "Internal covariate shift",
        "<i>W</i><sub>2</sub>² &nbsp;=&nbsp; (μ′ − μ)² + (σ′ − σ)², &emsp; with batch norm (β′ − β)² + (|γ′| − |γ|)²",
        "The second reason for batch normalisation. Every update of lower layers shifts a layer’s inputs, by many "
        "standard deviations in a deep sigmoid network, and by next to nothing with batch normalisation. But a network "
        "whose γ and β are disturbed on purpose learns nearly as fast: a smaller shift is not what makes it fast "
        "(seed 001 §5; Ioffe &amp; Szegedy 2015; Santurkar et al. 2018).",
        {
            "covariate_shift": "Shift in one update against updates, layer and learning rate, without batch "
            "normalisation, with it, and with its parameters disturbed; losses of the three; and measured shifts on "
            "the law of normalised units"
        },
    ),
    Exhibit(
        "experiments.minibatch",
        "Single examples or minibatches",
        "E ‖Δ′‖² &nbsp;=&nbsp; (1 − 2<i>Bη</i> + <i>Bη</i>² (<i>B</i> + <i>N</i> + 1)) ‖Δ‖²",
        "Descent by the sum over B examples, at equal numbers of examples. The law of a linear student’s error is "
        "known: the best rate, 1/(B + N + 1), hardly depends on B below the number N of inputs, and there B examples "
        "are worth B single ones. A network behaves similarly (seed 001 §4).",
        {
            "minibatch": "Errors of a linear student against examples, its error after one step against the rate, and "
            "the examples it needs against B, on the law; below, the same of a network"
        },
    ),
    Exhibit(
        "experiments.depth_width",
        "Depth against width",
        "(<i>D</i> + 1) <i>w</i> + (<i>L</i> − 1)(<i>w</i> + 1) <i>w</i> + (<i>w</i> + 1) <i>K</i> &nbsp;=&nbsp; "
        "constant",
        "Depth or width? Networks with equal numbers of parameters and one to six hidden layers, each at its "
        "best rate, on digits and on MNIST-1D. No theory says which is best (seed 001).",
        {
            "depth_width": "Test errors and updates needed against the number of hidden layers, for two numbers of "
            "parameters, on digits and on MNIST-1D"
        },
    ),
    Exhibit(
        "experiments.optimizers",
        "Optimizers in a narrow valley",
        "<i>d<sub>n</sub></i> = −<i>g<sub>n</sub></i> + β<sub><i>n</i></sub> <i>d</i><sub><i>n</i> − 1</sub>",
        "Steepest descent zigzags; conjugate gradients reach the straight valley’s minimum in two line searches, and "
        "follow the bend of the other valley (seed 003 §3).",
        {
            "optimizers": "Paths of the optimizers over the contours of a straight valley and of Rosenbrock’s, and the "
            "function’s value against evaluations"
        },
    ),
    Exhibit(
        "experiments.decorrelation",
        "Decorrelated inputs with four estimators",
        "<i>R</i> &nbsp;←&nbsp; <i>R</i> − <i>η R</i> [(1 − <i>κ</i>) <i>C</i> + <i>κ V</i>], &emsp; <i>δ</i> = "
        "<i>N</i> (<i>Ẽ</i> − <i>E</i>) Δ<i>ν</i> / ‖Δ<i>ν</i>‖²",
        "Every layer’s inputs are decorrelated by a local rule, and the weights learn by backprop, by node "
        "perturbation, layer by layer, or from measured changes of activity. The figure counts updates and evaluations "
        "to a target loss, with and without decorrelation, all equally tuned (Dalm et al. 2023; Ahmad et al. 2022).",
        {
            "decorrelation": "Test losses of four methods against updates on three tasks, with decorrelated inputs and "
            "without; and updates and evaluations to a target loss"
        },
    ),
    Exhibit(
        "experiments.temporal_credit",
        "Credit through time",
        "<i>J<sub>t</sub></i> = <i>A J</i><sub><i>t</i> − 1</sub> + <i>D</i>: &ensp; exact · where a parameter soon "
        "reaches · <i>h̃ θ̃</i><sup>T</sup> · a trace for each weight",
        "Backpropagation through time stores all steps and goes back. Rules that go forward, or receive "
        "a single number at the end, are compared with it. RTRL has the losses of backprop to rounding "
        "(Williams and Zipser 1989).",
        {
            "temporal_credit": "Test errors of twelve rules on three tasks, each tuned by as many trials, the price of "
            "an update, compiled memory at two lengths, and what the audit says of each",
            "curves": "Training loss of each rule against updates",
        },
    ),
    Exhibit(
        "experiments.local_losses",
        "Forward gradients with local losses",
        "E ‖<i>δ̂</i> − <i>δ</i>‖² &nbsp;=&nbsp; Σ<sub><i>b</i></sub> (<i>N<sub>b</sub></i> − 1) "
        "‖<i>δ<sub>b</sub></i>‖² / <i>K</i>, &emsp; <i>N<sub>b</sub></i> units that feed a loss",
        "Forward gradients of noise in the units, with one loss at the top and with losses for each block, group of "
        "channels and position of an image. The fewer units feed a loss, the less noise is in its gradient, by law; "
        "backprop of the same losses is the reference (Ren et al. 2022).",
        {
            "local_losses": "Noise of the units’ credit beside its law, cosine to the gradient, and test accuracies of "
            "forward gradients and backprop, by the position of the losses"
        },
    ),
    Exhibit(
        "experiments.without_targets",
        "From no label to the full error",
        "Δ<i>w<sub>ji</sub></i> = <i>f</i> (<i>x<sub>i</sub></i>, <i>y<sub>j</sub></i>, <i>third</i>): &ensp; nothing "
        "· a reward, &nbsp;<i>r</i> − <i>b</i> · the error, &nbsp;<i>δ<sub>j</sub></i>",
        "One hidden layer, trained with more and more supervision. The information that each update uses is read "
        "from the program that computes it.",
        {
            "without_targets": "Test accuracies of ten ways to teach one hidden layer, what each cost, and what its "
            "update was allowed to see",
            "receptive_fields": "Incoming weights of the first hidden units as images, a row for each way to teach",
        },
    ),
    Exhibit(
        "experiments.hierarchy",
        "A hierarchy of local rules",
        "Δ<i>w<sub>j</sub></i> = ⟨<i>x</i> − <i>u<sub>j</sub> w<sub>j</sub></i>⟩ over what unit <i>j</i> wins, &emsp; "
        "Δ<i>c<sub>ij</sub></i> = ⟨<i>f<sub>i</sub> n<sub>j</sub></i> + <i>n<sub>i</sub> f<sub>j</sub></i>⟩ − "
        "<i>c<sub>ij</sub></i>",
        "Convolutions, prototypes, links and concepts learn one after another by local rules, without labels. Ten "
        "labels name the concepts; prototypes complete half-hidden images and detect rotated ones. "
        "It is compared with hierarchies of random weights and of fewer convolutions.",
        {
            "hierarchy": "Accuracy on whole images and on upper halves, hidden variance explained, and detection of "
            "rotated images, for five hierarchies",
            "completion": "Upper halves of images, their completions, and the whole images",
        },
    ),
    Exhibit(
        "experiments.identify",
        "Identifying the learning rule",
        "<i>P</i>(rule | <i>d</i>) &nbsp;∝&nbsp; ∫ Π<sub><i>t</i></sub> <i>p</i>(<i>d<sub>t</sub></i> | "
        "−<i>η ĝ<sub>t</sub></i>, <i>σ</i>) d<i>A</i>, &emsp; <i>A</i>² = <i>η</i>² Σ E‖<i>ĝ<sub>t</sub></i>‖²",
        "Each network is trained by one of several rules; weight changes are observed with noise, and some hidden "
        "units are not observed. Bayes’ rule gives the posterior over rules, stochastic ones included; it is "
        "calibrated (after Nayebi et al. 2020; Portes et al. 2022).",
        {
            "identify": "Mean posterior of each rule by the rule that trained, stated probabilities against how many "
            "came true, and the posterior of the true rule against the strength of learning"
        },
    ),
    Exhibit(
        "experiments.finetune",
        "A language model, fine-tuned without gradients",
        "<i>W</i> &nbsp;←&nbsp; <i>W</i> − <i>η</i> (<i>ℓ</i><sub>+</sub> − <i>ℓ</i><sub>−</sub>)/2<i>σ</i> "
        "&nbsp;<i>ξ</i>, &emsp; FZOO: Σ (<i>ℓ<sub>k</sub></i> − <i>ℓ</i><sub>0</sub>) <i>ξ<sub>k</sub></i> / "
        "(<i>K</i> std <i>ℓ</i>)",
        "A language model learns how docstrings begin by forward passes alone, with all its weights or, in the full "
        "form, with adapters; a run is a list of numbers, and the fine-tuned model is rebuilt from it to the last bit "
        "(Malladi et al. 2023; Dang et al. 2025).",
        {
            "finetune": "Held-out loss against evaluations and against seconds for several estimators; in the full "
            "form also the memory of a step beyond the parameters"
        },
    ),
    Exhibit(
        "experiments.zeroth_order",
        "Forward passes of zeroth-order methods, claimed and measured",
        "AGZO: <i>W</i> + <i>σ Q G</i>, &nbsp;<i>Q</i> spans the inputs of <i>W</i>; &emsp; ZO-Muon: "
        "<i>W</i> &nbsp;←&nbsp; <i>W</i> − <i>η Q</i> msign ⟨(<i>ℓ<sub>k</sub></i> − <i>ℓ</i><sub>0</sub>) "
        "<i>G<sub>k</sub></i>⟩/<i>σ</i>",
        "How many forward passes zeroth-order methods take to fine-tune a language model to a given loss, beside what "
        "their papers claim (Dang et al. 2025; Lang et al. 2026; Lin et al. 2026). Learning rates are chosen on "
        "validation prompts, in the full form also for ZO-Muon.",
        {
            "zeroth_order": "Held-out loss against evaluations for MeZO and the methods that are compared with it, and "
            "the evaluations until each reaches the target loss"
        },
    ),
    Exhibit(
        "experiments.atlas",
        "Which rule for which network",
        "<i>η</i>* = argmin<sub><i>η</i></sub> ⟨<i>E</i><sub>validation</sub>(<i>η</i>)⟩, &emsp; reported: "
        "<i>E</i><sub>test</sub>(<i>η</i>*) ± its standard error",
        "Every estimator on every network, all given the same trials of Adam’s rate: each one’s error, its cost "
        "and what its updates may see. atlas.html has a table to sort and filter; each of its cells links to "
        "its data and to the command that makes it.",
        {"atlas": "Test errors of all methods against evaluations spent, by task, marked by what an update may see"},
    ),
    Exhibit(
        "experiments.hardware",
        "Hardware in the loop",
        "<i>δ<sup>l</sup></i> = <i>N</i> ⟨(<i>Ẽ</i> − <i>E</i>) Δ<i>ν<sup>l</sup></i> / ‖Δ<i>ν</i>‖²⟩, &emsp; "
        "Δ<i>ν</i> = <i>ν̃</i> − <i>ν</i> as measured on the circuit",
        "A simulated analogue circuit with mismatch, drift, coarse weights and noise of its own learns 5,000 MNIST "
        "images. Node perturbation by measured activity uses the circuit’s noise without a model of it (Dalm et al. "
        "2023); the others are backprop in software, its weights written to the circuit, and backprop through a model "
        "of the circuit (Wright et al. 2022).",
        {"hardware": "Test accuracies of a circuit trained in the loop or by its model, and of a faultless network"},
    ),
)
