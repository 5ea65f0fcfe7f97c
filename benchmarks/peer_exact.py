"""The exact zero-inflated log-normal in plain Python floats, which every system is compared with."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist


@dataclass(frozen=True)
class Exact:
    """P(X = 0) = sigmoid(zi_logits); else log X ~ Normal(mu, scale)."""

    mu: float
    scale: float
    zi_logits: float

    @property
    def gate(self) -> float:
        return 0.5 * (1 + math.tanh(self.zi_logits / 2))

    @property
    def _normal(self) -> NormalDist:
        return NormalDist(self.mu, self.scale)

    def log_prob(self, x: float) -> float:
        if math.isnan(x):
            return math.nan
        if x < 0 or x == math.inf:
            return -math.inf
        if x == 0:
            return math.log(self.gate)
        z = (math.log(x) - self.mu) / self.scale
        return math.log1p(-self.gate) - math.log(x * self.scale) - math.log(2 * math.pi) / 2 - z * z / 2

    def cdf(self, x: float) -> float:
        return self.gate + (1 - self.gate) * (self._normal.cdf(math.log(x)) if x > 0 else 0.0)

    def icdf(self, q: float) -> float:
        return math.exp(self._normal.inv_cdf((q - self.gate) / (1 - self.gate))) if q > self.gate else 0.0

    def mean(self) -> float:
        return (1 - self.gate) * math.exp(self.mu + self.scale**2 / 2)

    def variance(self) -> float:
        return self.mean() ** 2 * (math.exp(self.scale**2) / (1 - self.gate) - 1)

    def mode(self) -> float:
        peak = math.exp(self.mu - self.scale**2)
        return 0.0 if self.log_prob(0.0) >= self.log_prob(peak) else peak

    def entropy(self) -> float:
        gate, positive = self.gate, self.mu + 0.5 + math.log(self.scale * math.sqrt(2 * math.pi))
        return -gate * math.log(gate) + (1 - gate) * (positive - math.log1p(-gate))

    def perplexity(self) -> float:
        return math.exp(self.entropy())

    def log_normal_kl(self, other: Exact) -> float:
        ratio, shift = (self.scale / other.scale) ** 2, (self.mu - other.mu) / other.scale
        return (ratio - 1 - math.log(ratio) + shift**2) / 2

    def kl(self, other: Exact) -> float:
        p, q = self.gate, other.gate
        positive = math.log((1 - p) / (1 - q)) + self.log_normal_kl(other)
        return p * math.log(p / q) + (1 - p) * positive
