r"""
The slow modes of a string in a magnetic field
==============================================

Eight charged beads on a string, whose ends are fixed, move across it in a plane, and a magnetic field
along the string bends their ways. Positions and momenta :math:`z = (q, p) \in \mathbb{R}^{32}` follow
Hamilton's equations :math:`\dot z = JAz`, where :math:`\frac12 z^\top A z` is the energy. The frequencies
of such a system are not eigenvalues of :math:`A` but its *symplectic* eigenvalues, the moduli of the
eigenvalues of :math:`JA`. The :math:`k` slowest ones are found where a trace is least (Son, Absil, Gao
and Stykel, 2021),

.. math:: \min\; \operatorname{tr}(X^\top A X) = 2(\omega_1 + \ldots + \omega_k)
          \quad\text{over}\quad X^\top J X = J,\; X \in \mathbb{R}^{32\times 2k}.

Such an :math:`X` is a point of :class:`~givens.manifolds.Symplectic`. At the least trace :math:`X^\top AX`
is the energy of a smaller system of the same kind, whose motions :math:`y` are motions :math:`z = Xy`
of the large one. A coordinate adds multiples of one or two rows of :math:`X` to others, or stretches a
position and shrinks its momentum.
"""

import matplotlib.pyplot as plt
import torch
from geoopt import ManifoldParameter

from givens.manifolds import Symplectic
from givens.optim import SRCD, Block

# %%
# The energy: :math:`\frac12\lvert p - \frac{B}{2} Rq\rvert^2` with the quarter turn R of every bead, and the
# springs of the string. Both directions of the plane come one after the other.

N, B = 8, 1.0
springs = 2 * torch.eye(N) - torch.diag(torch.ones(N - 1), 1) - torch.diag(torch.ones(N - 1), -1)
springs = torch.block_diag(springs, springs).double()
turn = torch.kron(torch.tensor([[0.0, 1.0], [-1.0, 0.0]]), torch.eye(N)).double()
identity = torch.eye(2 * N, dtype=torch.float64)
A = torch.cat(
    [
        torch.cat([springs + B**2 / 4 * identity, -B / 2 * turn.T], 1),
        torch.cat([-B / 2 * turn, identity], 1),
    ]
)


def frequencies(energy):
    """Symplectic eigenvalues, each once, ascending."""
    half = len(energy) // 2
    turned = torch.cat([energy[half:], -energy[:half]])
    return torch.linalg.eigvals(turned).imag.sort().values[half:]


# %%
# Three modes; every step moves along the twenty steepest of 528 coordinates.

torch.manual_seed(0)
X = ManifoldParameter(Symplectic().random(4 * N, 6, dtype=torch.float64))
optimizer = SRCD([X], lr=0.1, selection=Block(size=20))
history = []
for _ in range(1000):
    optimizer.zero_grad()
    trace = (X * (A @ X)).sum()
    trace.backward()
    optimizer.step()
    history.append(frequencies((X.T @ A @ X).detach()))
found = history[-1]

# %%
# A string alone swings at :math:`\sigma_j = 2\sin\frac{j\pi}{2(N + 1)}`; the field makes two of each,
# :math:`\sqrt{\sigma_j^2 + B^2/4} \pm B/2`.

sigma = 2 * (torch.arange(1, N + 1, dtype=torch.float64) * torch.pi / (2 * N + 2)).sin()
known = (sigma.square() + B**2 / 4).sqrt() - B / 2
known = known[:3]
print("   found    known")
for pair in zip(found, known, strict=True):
    print("{:8.5f} {:8.5f}".format(*pair))

# %%
# All the while, the frequencies of the small system are above those of the large one.

plt.style.use("seaborn-v0_8-colorblind")
figure, ax = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
for number, curve in enumerate(torch.stack(history).T, 1):
    ax.loglog(range(1, len(history) + 1), curve, label=f"mode {number}")
for frequency in known:
    ax.axhline(frequency, color="0.4", linestyle="--", linewidth=1)
ax.set(xlabel="step", ylabel="frequency of the small system")
ax.legend(frameon=False)
ax.grid(color="0.9")
plt.show()
