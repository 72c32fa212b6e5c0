"""Linear maps from parameters to logits: their transposes and their curvatures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np


class Design(Protocol):
    """A linear map from parameters (p,) to logits (n, K), its transpose and its curvature."""

    @property
    def size(self) -> int:
        """Number of parameters."""

    def take(self, rows: np.ndarray) -> Design:
        """The design of some rows."""

    def logits(self, theta: np.ndarray) -> np.ndarray:
        """Logits (n, K) at ``theta``."""

    def pullback(self, residual: np.ndarray) -> np.ndarray:
        """The transpose: from (n, K) to (p,)."""

    def curvature(self, probs: np.ndarray, row_weights: np.ndarray) -> np.ndarray:
        """Sum over rows of w X' (diag(p) - p p') X, shape (p, p)."""


def _means(probs: np.ndarray, features: np.ndarray) -> np.ndarray:
    """Each row's mean over the classes (n, p), of few rows 8 times as fast as ``einsum`` plans it."""
    return (probs[:, None, :] @ features)[:, 0]


@dataclass(frozen=True)
class SharedDesign:
    """Coefficients shared by the classes: features of shape (n, K, p)."""

    features: np.ndarray

    @property
    def size(self) -> int:
        """Number of parameters."""
        return self.features.shape[2]

    def take(self, rows: np.ndarray) -> SharedDesign:
        """The design of some rows."""
        return SharedDesign(self.features[rows])

    def logits(self, theta: np.ndarray) -> np.ndarray:
        """Logits (n, K)."""
        return self.features @ theta

    def pullback(self, residual: np.ndarray) -> np.ndarray:
        """Gradient with respect to the parameters (p,)."""
        return residual.reshape(-1) @ self.features.reshape(-1, self.size)

    def curvature(self, probs: np.ndarray, row_weights: np.ndarray) -> np.ndarray:
        """Hessian of the cross-entropy (p, p)."""
        mean = _means(probs, self.features)
        scale = np.sqrt(probs * row_weights[:, None])
        spread = ((self.features - mean[:, None, :]) * scale[:, :, None]).reshape(-1, self.size)
        return spread.T @ spread


@dataclass(frozen=True)
class BlockDesign:
    """Coefficients a class: features (n, d), parameters (K, d) flattened."""

    features: np.ndarray
    n_classes: int

    @property
    def size(self) -> int:
        """Number of parameters."""
        return self.features.shape[1] * self.n_classes

    def take(self, rows: np.ndarray) -> BlockDesign:
        """The design of some rows."""
        return BlockDesign(self.features[rows], self.n_classes)

    def logits(self, theta: np.ndarray) -> np.ndarray:
        """Logits (n, K)."""
        return self.features @ theta.reshape(self.n_classes, -1).T

    def pullback(self, residual: np.ndarray) -> np.ndarray:
        """Gradient with respect to the parameters (K d,)."""
        return (residual.T @ self.features).ravel()

    def curvature(self, probs: np.ndarray, row_weights: np.ndarray) -> np.ndarray:
        """Hessian of the cross-entropy (K d, K d)."""
        k, d = self.n_classes, self.features.shape[1]
        out = np.zeros((k, d, k, d))
        for a in range(k):  # as p_a (1 - p_a) is the sum of p_a p_b over the other classes b
            for b in range(a + 1, k):
                scale = np.sqrt(row_weights * probs[:, a] * probs[:, b])
                scaled = self.features * scale[:, None]
                block = scaled.T @ scaled
                out[a, :, a, :] += block
                out[b, :, b, :] += block
                out[a, :, b, :] = out[b, :, a, :] = -block
        return out.reshape(k * d, k * d)


@dataclass(frozen=True)
class PoolDesign:
    """Coefficients shared by the classes, and a bias a class that takes no room: features (n, K, d).

    Parameters are the d coefficients, then the K biases. As columns of a :class:`SharedDesign` the biases
    alone would take n K K numbers.
    """

    features: np.ndarray

    @property
    def size(self) -> int:
        """Number of parameters."""
        return self.features.shape[2] + self.features.shape[1]

    def take(self, rows: np.ndarray) -> PoolDesign:
        """The design of some rows."""
        return PoolDesign(self.features[rows])

    def logits(self, theta: np.ndarray) -> np.ndarray:
        """Logits (n, K)."""
        d = self.features.shape[2]
        return self.features @ theta[:d] + theta[d:]

    def pullback(self, residual: np.ndarray) -> np.ndarray:
        """Gradient with respect to the parameters (d + K,)."""
        n, k, d = self.features.shape
        own = residual.reshape(-1) @ self.features.reshape(n * k, d)
        return np.concatenate([own, residual.sum(axis=0)])

    def curvature(self, probs: np.ndarray, row_weights: np.ndarray) -> np.ndarray:
        """Hessian of the cross-entropy (d + K, d + K)."""
        n, k, d = self.features.shape
        weighted = probs * row_weights[:, None]
        mean = _means(probs, self.features)
        spread = self.features - mean[:, None, :]
        scaled = (spread * np.sqrt(weighted)[:, :, None]).reshape(n * k, d)
        out = np.empty((d + k, d + k))
        out[:d, :d] = scaled.T @ scaled
        out[:d, d:] = (spread.transpose(1, 2, 0) @ weighted.T[:, :, None])[:, :, 0].T
        out[d:, :d] = out[:d, d:].T
        out[d:, d:] = np.diag(weighted.sum(axis=0)) - weighted.T @ probs
        return out
