"""Muon beside Adam: a matrix of weights moves along the orthogonal matrix nearest to its gradient, the rest as Adam says.

Adam scales each weight by itself, so a layer whose gradient is nearly of rank one moves in that one direction. Muon (K.
Jordan et al. 2024, "Muon: an optimizer for hidden layers") gives every direction of the momentum the same length: with
momentum M = U S Vᵀ the step is U Vᵀ, times .2 · √max(rows, columns), with which an entry of it has the root mean square of a
step of Adam's (Liu et al., arXiv 2502.16982, §2.2). What it does for the generator of `default` is in
`docs/results/README.md`.

U Vᵀ comes from five steps of Newton and Schulz's iteration, each a quintic with coefficients of its own (J. You 2025, as
used with Muon in modded-nanogpt). A step multiplies from one side by a polynomial in M Mᵀ, so it is enough to iterate that
small matrix and to multiply the large one once at the end (`python -m bench.muon`, ADR 22). In float32 throughout,
whatever the networks compute in.

A convolution's weight (O, I, H, W) is the matrix (O, I·H·W). Biases, embeddings and the last layer are Adam's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor, nn

MOMENTUM: Final = 0.9
_QUINTICS: Final = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)
"""Of x → a x + b x³ + c x⁵."""
_AS_ADAM: Final = 0.2
_NOTHING: Final = 1e-12


class MuonAdam(torch.optim.Adam):
    """Muon for `matrices_of(network)`, with a rate of its own, and fused Adam for its other parameters.

    Gradients of matrices are used up by `step`.
    """

    def __init__(self, network: nn.Module, rate: float, betas: tuple[float, float], muon_rate: float) -> None:
        matrices = matrices_of(network)
        theirs = {id(matrix) for matrix in matrices}
        others = [parameter for parameter in network.parameters() if id(parameter) not in theirs]
        groups: list[dict[str, Any]] = [{"params": others}, {"params": matrices, "lr": muon_rate}]
        super().__init__(groups, rate, betas, fused=True)
        # fused Adam would divide by the scale of fp16's loss itself; this way GradScaler does it, for both
        self._step_supports_amp_scaling = False

    @property
    def matrices(self) -> list[Tensor]:
        """What Muon moves; the state of each is its `momentum`."""
        found: list[Tensor] = self.param_groups[1]["params"]
        return found

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """One step of both."""
        rate = self.param_groups[1]["lr"]
        for matrix in self.matrices:
            if matrix.grad is not None:
                self._move(matrix, matrix.grad, rate)
                matrix.grad = None  # so that Adam passes it by
        return super().step(closure)

    def _move(self, matrix: Tensor, gradient: Tensor, rate: float) -> None:
        state = self.state[matrix]
        if not state:
            state["momentum"] = torch.zeros_like(matrix)
        momentum = state["momentum"].lerp_(gradient, 1 - MOMENTUM)
        # Nesterov's look ahead
        way_OF = orthogonal(gradient.lerp(momentum, MOMENTUM).flatten(1))
        matrix.add_(way_OF.view_as(matrix), alpha=-rate * _AS_ADAM * max(way_OF.shape) ** 0.5)


def matrices_of(network: nn.Module) -> list[Tensor]:
    """Weights of convolutions and linear layers, but for the last of them, in the network's order."""
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)]
    return [layer.weight for layer in layers[:-1] if layer.weight.requires_grad]


def orthogonal(matrix_MN: Tensor) -> Tensor:
    """U Vᵀ of U S Vᵀ, in float32, about; what is far below the largest direction, or nearly zero, comes out shorter."""
    x_MN = matrix_MN.float()
    # a momentum that fades to nothing has no direction any more
    x_MN = x_MN / x_MN.norm().clamp_min(_NOTHING)
    tall = x_MN.shape[0] > x_MN.shape[1]
    square_KK = x_MN.T @ x_MN if tall else x_MN @ x_MN.T
    factor_KK = torch.eye(len(square_KK), dtype=x_MN.dtype, device=x_MN.device)
    for a, b, c in _QUINTICS:
        step_KK = torch.addmm(square_KK, square_KK, square_KK, beta=b, alpha=c)
        step_KK.diagonal().add_(a)
        factor_KK = step_KK @ factor_KK
        # both are polynomials in the first square, so they commute and this stays symmetric
        square_KK = step_KK @ square_KK @ step_KK
    nearest_MN: Tensor = x_MN @ factor_KK if tall else factor_KK @ x_MN
    return nearest_MN
