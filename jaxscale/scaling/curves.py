"""Smooth laws as functions of their parameters, with the analytic Jacobian. No data's noise, no fitting here.

A curve's parameters *inside* are logarithms, so that a step of a fit keeps their signs; sizes are divided by their
geometric mean, so that a coefficient and its exponent are nearly independent. Dims: S problems side by side, n runs,
p parameters, m sizes.
"""

from dataclasses import dataclass

import numpy as np

Array = np.ndarray
LEAST = 1e-4  # of the smallest loss: a start's coefficient that is 0 begins here, as it is a logarithm inside
COEFFICIENT, EXPONENT, RATE = (-60.0, 60.0), (-9.0, 3.0), (-5.0, 12.0)  # bounds of these logarithms inside
NOTHING = 1e-9  # nats, below which E is 0
MOST = 300.0  # of what is raised to a power of e


@dataclass(frozen=True)
class PowerSum:
    """log L = log(E + sum over sizes of A_j x_j^-alpha_j).

    Inside: log E, log A_1 .. log A_m (at the sizes' means), log alpha_1 .. log alpha_m.

    Attributes:
        logs: log x_j of each run [n, m], `centre` their means [m].
    """

    logs: Array
    centre: Array

    @classmethod
    def of(cls, *sizes: Array) -> "PowerSum":
        logs = np.log(np.stack(sizes, -1))
        return cls(logs, logs.mean(0))

    @property
    def exponents(self) -> int:
        return self.logs.shape[1]

    @property
    def bounds(self) -> Array:
        """Lowest and highest of the parameters inside [2, p]."""
        m = self.exponents
        return np.array([COEFFICIENT] * (1 + m) + [EXPONENT] * m).T

    def __call__(self, inside: Array) -> tuple[Array, Array]:
        """(log L [S, n], its derivatives [S, n, p]) at parameters inside [S, p]."""
        m, z = self.exponents, self.logs - self.centre
        alpha = np.exp(inside[:, None, 1 + m :])
        terms = np.exp(np.minimum(inside[:, None, 1 : 1 + m] - alpha * z, MOST))
        constant = np.broadcast_to(np.exp(inside[:, :1]), terms.shape[:2])
        total = constant + terms.sum(-1)
        shares = terms / total[..., None]
        return np.log(total), np.concatenate([(constant / total)[..., None], shares, -shares * alpha * z], -1)

    def terms(self, alphas: Array) -> Array:
        """The columns [n, 1 + m] of which L is a sum with positive coefficients, for given exponents [m]."""
        powers = np.exp(np.minimum(-alphas * (self.logs - self.centre), MOST))
        return np.concatenate([np.ones((len(powers), 1)), powers], 1)

    def start(self, coefficients: Array, alphas: Array, least: float) -> Array:
        """Parameters inside [p]; `least`: the smallest coefficient that is taken."""
        return np.log(np.concatenate([np.maximum(coefficients, least), alphas]))

    def outside(self, inside: Array) -> Array:
        """E, A_1, alpha_1, A_2, alpha_2, ... [S, p], of sizes as they are."""
        m = self.exponents
        alpha = np.exp(inside[:, 1 + m :])
        A = np.exp(inside[:, 1 : 1 + m] + alpha * self.centre)
        pairs = np.stack([A, alpha], -1).reshape(len(inside), 2 * m)
        return np.concatenate([floor_of(inside[:, :1]), pairs], 1)


def floor_of(log_E: Array) -> Array:
    """E; 0 where its logarithm has gone where nothing changes any more."""
    E = np.exp(log_E)
    return np.where(E < NOTHING, 0.0, E)


def power_sum(parameters: Array, *sizes: Array | float) -> Array:
    """E + sum of A_j x_j^-alpha_j, of parameters [..., p] as `PowerSum.outside` has them."""
    E, pairs = parameters[..., 0], parameters[..., 1:]
    with np.errstate(over="ignore"):
        return E + sum(pairs[..., 2 * j] * x ** -pairs[..., 2 * j + 1] for j, x in enumerate(sizes))


# --- data that is repeated ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Repeated:
    """Muennighoff et al. (arXiv:2305.16264, eq. 5): a `PowerSum` of what parameters and tokens are worth.

    With U unique tokens (all of them, where no token is seen twice), RD = D/U - 1 and RN = N/UN - 1:
    D' = U + U rD (1 - exp(-RD/rD)), N' = UN + UN rN (1 - exp(-RN/rN)); UN = min(N, (U G)^(beta/alpha) G) is the size
    for which U tokens are the best number, G = (alpha A / (beta B))^(1/(alpha+beta)).

    Inside: log E, log A, log B (at the means), log alpha, log beta, log rD, log rN.
    """

    log_N: Array
    log_U: Array
    repeats: Array  # RD
    centre: Array

    @classmethod
    def of(cls, N: Array, D: Array, U: Array) -> "Repeated":
        U = np.minimum(D, np.where(np.isnan(U), D, U))
        log_N, log_D = np.log(N), np.log(D)
        return cls(log_N, np.log(U), D / U - 1, np.array([log_N.mean(), log_D.mean()]))

    @property
    def bounds(self) -> Array:
        return np.array([COEFFICIENT] * 3 + [EXPONENT] * 2 + [RATE] * 2).T

    def __call__(self, inside: Array) -> tuple[Array, Array]:
        e, a, b = (inside[:, i, None] for i in range(3))
        alpha, beta, rD, rN = (np.exp(inside[:, i, None]) for i in range(3, 7))
        n, slope_n = self.worth_of_parameters(a, b, alpha, beta, rN)
        d, by_rD = saturated(self.repeats, rD)
        d = self.log_U + d - self.centre[1]
        constant, A, B = np.broadcast_arrays(
            np.exp(e), np.exp(np.minimum(a - alpha * n, MOST)), np.exp(np.minimum(b - beta * d, MOST))
        )
        total = constant + A + B
        zero = np.zeros_like(total)
        by = [  # d log L by each that is inside: alpha's and the others' own slopes, then what they do to N'
            constant / total,
            A * (1 - alpha * slope_n[0]) / total,
            (B - A * alpha * slope_n[1]) / total,
            -A * (n + alpha * slope_n[2]) * alpha / total,
            -(B * d + A * alpha * slope_n[3]) * beta / total,
            -B * beta * by_rD * rD / total,
            -A * alpha * slope_n[4] * rN / total,
        ]
        return np.log(total), np.stack([zero + one for one in by], -1)

    def worth_of_parameters(
        self, a: Array, b: Array, alpha: Array, beta: Array, rN: Array
    ) -> tuple[Array, tuple[Array, ...]]:
        """log N' - centre [S, n], and its derivatives by a, b, alpha, beta and rN."""
        mean_n, mean_d = self.centre
        log_A, log_B = a + alpha * mean_n, b + beta * mean_d
        both, ratio = alpha + beta, beta / alpha
        G = (np.log(alpha) + log_A - np.log(beta) - log_B) / both
        least = np.minimum(self.log_N, ratio * (self.log_U + G) + G)
        reached = (least < self.log_N).astype(float)
        excess = np.expm1(np.clip(self.log_N - least, 0, 300))
        n, by_rN = saturated(excess, rN)
        # d log N' / d log UN: UN itself, less what is no longer in excess of it
        by_least = 1 - np.exp(-np.minimum(excess / rN, 700)) * (excess + 1) / np.exp(n)
        G_by = (1 / both, -1 / both, (1 / alpha + mean_n - G) / both, (-1 / beta - mean_d - G) / both)
        ratio_by = (0.0, 0.0, -beta / alpha**2, 1 / alpha)
        chain = [
            reached * by_least * ((1 + ratio) * g + r * (self.log_U + G)) for g, r in zip(G_by, ratio_by, strict=True)
        ]
        return least + n - mean_n, (*chain, by_rN)

    def outside(self, inside: Array) -> Array:
        """E, A, alpha, B, beta, rD, rN [S, 7], of sizes as they are."""
        alpha, beta = np.exp(inside[:, 3]), np.exp(inside[:, 4])
        A, B = np.exp(inside[:, 1] + alpha * self.centre[0]), np.exp(inside[:, 2] + beta * self.centre[1])
        return np.stack([floor_of(inside[:, 0]), A, alpha, B, beta, np.exp(inside[:, 5]), np.exp(inside[:, 6])], -1)


def saturated(excess: Array, r: Array) -> tuple[Array, Array]:
    """log(1 + r (1 - exp(-excess/r))), and its derivative by r."""
    x = excess / r
    gone = -np.expm1(-np.minimum(x, 700))
    worth = 1 + r * gone
    return np.log(worth), (gone - x * np.exp(-np.minimum(x, 700))) / worth


def repeated(parameters: Array, N: Array | float, D: Array | float, U: Array | float) -> Array:
    """The law of `Repeated`, of parameters [..., 7] as its `outside` has them."""
    E, A, alpha, B, beta, rD, rN = np.moveaxis(parameters, -1, 0)
    inside = np.stack([np.log(np.maximum(E, 1e-300)), *map(np.log, (A, B, alpha, beta, rD, rN))], -1).reshape(-1, 7)
    at = np.atleast_1d(np.asarray(N, float)), np.atleast_1d(np.asarray(D, float)), np.atleast_1d(np.asarray(U, float))
    unique = np.minimum(at[1], np.where(np.isnan(at[2]), at[1], at[2]))
    curve = Repeated(np.log(at[0]), np.log(unique), at[1] / unique - 1, np.zeros(2))
    losses = np.exp(curve(inside)[0])
    return losses.reshape(*parameters.shape[:-1], *np.shape(N)) if np.ndim(N) else losses[:, 0].reshape(E.shape)


# --- a task's accuracy -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sigmoid:
    """accuracy = a / (1 + exp(-k (x - x0))) + b, of a task's loss x (OLMo's ladder, arXiv:2412.04403, eq. 2).

    Inside: a, b, log k, (x0 - mean)/spread. Accuracy falls with x where a is below 0.
    """

    x: Array
    mean: float
    spread: float

    @classmethod
    def of(cls, x: Array) -> "Sigmoid":
        return cls(x, float(x.mean()), float(x.std()) or 1.0)

    @property
    def bounds(self) -> Array:
        """a within 0 and -20: accuracy falls with the loss, by more than 1 only where a plateau is not seen."""
        return np.array([(-20.0, 0.0), (-20.0, 20.0), (-6.0, 6.0), (-50.0, 50.0)]).T

    def __call__(self, inside: Array) -> tuple[Array, Array]:
        a, b = inside[:, 0, None], inside[:, 1, None]
        k = np.exp(inside[:, 2, None])
        z = (self.x - self.mean) / self.spread - inside[:, 3, None]
        s = logistic(k * z)
        slope = a * s * (1 - s)
        return a * s + b, np.stack([s, np.ones_like(s), slope * k * z, -slope * k], -1)

    def outside(self, inside: Array) -> Array:
        """a, k, x0, b [S, 4], of x as it is."""
        k = np.exp(inside[:, 2]) / self.spread
        return np.stack([inside[:, 0], k, self.mean + self.spread * inside[:, 3], inside[:, 1]], -1)


def logistic(x: Array) -> Array:
    return 1 / (1 + np.exp(-np.clip(x, -500, 500)))


def sigmoid(parameters: Array, x: Array) -> Array:
    """Accuracy of parameters [..., 4] as `Sigmoid.outside` has them."""
    a, k, x0, b = np.moveaxis(parameters, -1, 0)
    return a * logistic(k * (x - x0)) + b
