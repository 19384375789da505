r"""
How many CNOTs does a quantum gate need?
========================================

A gate on two qubits is a unitary 4×4 matrix. A quantum computer builds it of gates on one qubit, points
of :class:`SU(2) <givens.manifolds.SpecialUnitaryGroup>`, and of a few CNOTs, which couple the qubits
and make the errors. Here the circuit is

.. math:: U = (g_0 \otimes g_1)\,\mathrm{CNOT}\,(g_2 \otimes g_3)\,\mathrm{CNOT}\cdots,

and the gates :math:`g` are looked for that make it the Fourier transform :math:`F` of four points. The
cost is the infidelity :math:`1 - |\operatorname{tr}(F^* U)|^2/16`. It is 0 if the two are equal up to a
phase.

All gates of the circuit are one point of a :class:`~givens.manifolds.Power`. A coordinate turns one gate.
"""

import math

import matplotlib.pyplot as plt
import torch
from geoopt import ManifoldParameter

from givens.manifolds import Power, SpecialUnitaryGroup
from givens.optim import SRCD, GaussSouthwell

k = torch.arange(4, dtype=torch.float64)
fourier = torch.exp(0.5j * math.pi * k[:, None] * k) / 2
cnot = torch.eye(4, dtype=torch.complex128)[[0, 1, 3, 2]]


def circuit(gates):
    """Gates on both qubits, with a CNOT between each two pairs of them."""
    u = torch.kron(gates[0], gates[1])
    for first, second in gates[2:].unflatten(0, (-1, 2)):
        u = u @ cnot @ torch.kron(first, second)
    return u


# %%
# Every step turns the one gate, about the one axis, that lowers the infidelity most.


def synthesize(cnots):
    """Infidelity at every step, for a circuit with a number of CNOTs."""
    torch.manual_seed(0)
    gates = Power(SpecialUnitaryGroup()).random(2 * cnots + 2, 2, 2, dtype=torch.complex128)
    gates = ManifoldParameter(gates)
    optimizer = SRCD([gates], lr=1.0, selection=GaussSouthwell())
    infidelities = []
    for _ in range(300):
        optimizer.zero_grad()
        overlap = (fourier.conj() * circuit(gates)).sum()
        infidelity = 1 - overlap.abs().square() / 16
        infidelity.backward()
        optimizer.step()
        infidelities.append(float(infidelity.detach()))
    return infidelities


curves = [synthesize(cnots) for cnots in range(4)]

# %%
# Three CNOTs make any gate on two qubits (Vatan and Williams, 2004). How close fewer of them come follows
# from its canonical form (Zhang, Vala, Sastry and Whaley, 2003), which for :math:`F` has the angles π/4, π/4,
# π/8.

found = [infidelities[-1] for infidelities in curves]
c = math.cos(math.pi / 8) ** 2
known = [3 / 4, 1 - c / 2, 1 - c, 0.0]
print("CNOTs  infidelity  least possible")
for cnots in range(4):
    print(f"{cnots:5}  {found[cnots]:.8f}  {known[cnots]:14.8f}")

# %%

plt.style.use("seaborn-v0_8-colorblind")
figure, ax = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
for cnots, style in enumerate(("-.", ":", "--", "-")):
    ax.semilogy(curves[cnots], style, linewidth=2, label=f"CNOTs: {cnots}")
ax.set(xlabel="step", ylabel="infidelity")
ax.legend(frameon=False)
ax.grid(color="0.9")
plt.show()
