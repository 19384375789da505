r"""
Four senders, four antennas: blind separation of signals
========================================================

Four transmitters send at the same time and on the same frequency. Each of four antennas receives a sum of all
their signals, with weights that are complex, unknown, and different for every pair. What is known is how
the senders speak: every symbol is one of four numbers of modulus 1 (quadrature phase-shift keying).

The received signals are first made uncorrelated and of unit power. Then only a unitary matrix
:math:`W \in U(4)` is missing: the one whose outputs :math:`y = W^{\mathsf H} z` have a constant modulus
(Godard, 1980),

.. math:: f(W) = \sum_i \mathbb{E}\,\bigl(|y_i|^2 - 1\bigr)^2 .

On :class:`~givens.manifolds.UnitaryGroup` two columns can be rotated in two ways, and each has a phase. A
step takes the columns in pairs and turns each pair by its own 2×2 unitary matrix.
"""

import matplotlib.pyplot as plt
import torch
from geoopt import ManifoldParameter
from scipy.optimize import linear_sum_assignment

from givens.manifolds import UnitaryGroup
from givens.optim import SRCD, Matching

# %%
# Two thousand symbols of each sender, the weights, and the noise of the receivers, 20 dB below the signals.

torch.manual_seed(0)
symbols = torch.tensor([1 + 1j, 1 - 1j, -1 + 1j, -1 - 1j], dtype=torch.complex128) / 2**0.5
sent = symbols[torch.randint(4, (4, 2000))]
mixing = torch.randn(4, 4, dtype=torch.complex128)
received = mixing @ sent + 0.1 * torch.randn(4, 2000, dtype=torch.complex128)

# %%
# Whiten: make the covariance of the received signals the identity.

variances, directions = torch.linalg.eigh(received @ received.mH / 2000)
z = (directions / variances.sqrt()).mH @ received

# %%
# Turn the outputs, two by two, until their moduli are as constant as can be. The rounds of a tournament let
# every two meet.

W = ManifoldParameter(UnitaryGroup().origin(4, 4, dtype=torch.complex128))
optimizer = SRCD([W], lr=0.1, selection=Matching("round-robin"))
for _ in range(200):
    optimizer.zero_grad()
    cost = ((W.mH @ z).abs().square() - 1).square().mean(1).sum()
    cost.backward()
    optimizer.step()
outputs = (W.mH @ z).detach()

# %%
# Senders come out in any order, and turned by any phase: neither can be told from a constant modulus. Each is
# matched with the output that it is most correlated with. The best that a linear receiver can do, if it knows
# what was sent, is least squares.


def error(estimate):
    """Root mean square error of each sender's symbols, and the estimate in order and turned back."""
    correlation = sent @ estimate.mH / (sent.shape[1] * estimate.abs().square().mean(1).sqrt())
    order = torch.from_numpy(linear_sum_assignment(-correlation.abs())[1])
    scale = (sent * estimate[order].conj()).sum(1) / estimate[order].abs().square().sum(1)
    estimate = scale[:, None] * estimate[order]
    return (estimate - sent).abs().square().mean(1).sqrt(), estimate


found, separated = error(outputs)
known, _ = error(torch.linalg.lstsq(received.T, sent.T).solution.T @ received)
wrong = ((separated.real * sent.real < 0) | (separated.imag * sent.imag < 0)).sum()
print("root mean square error of a symbol")
print("  blind, SRCD       ", *(f"{e:.4f}" for e in found))
print("  knowing the truth ", *(f"{e:.4f}" for e in known))
print(f"{int(wrong)} of {sent.numel()} symbols are read wrong")

# %%

plt.style.use("seaborn-v0_8-colorblind")
figure, axes = plt.subplots(
    2, 4, figsize=(9, 4.8), layout="constrained", sharex="row", sharey="row"
)
for row, signals, what in ((0, received, "antenna"), (1, separated, "sender")):
    for i, ax in enumerate(axes[row]):
        ax.plot(signals[i].real, signals[i].imag, ".", markersize=1.5, alpha=0.5)
        ax.set(title=f"{what} {i + 1}", aspect="equal")
        ax.grid(color="0.9")
axes[0, 0].set_ylabel("received")
axes[1, 0].set_ylabel("separated")
plt.show()
