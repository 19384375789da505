r"""
Sixty cameras: averaging rotations
==================================

Two photographs of a scene tell how one camera was turned against the other: a rotation :math:`M_{ij}
\approx R_i R_j^\top`, with an error of some degrees. Rotation averaging finds the orientations
:math:`R_i` of all the cameras that fit all the pairs best,

.. math:: \min_{R \in SO(3)^N}\; \sum_{ij} \lVert R_i - M_{ij} R_j\rVert_F^2 .

The orientations are one point of a :class:`~givens.manifolds.Power` of
:class:`~givens.manifolds.SpecialOrthogonalGroup`, whose coordinates are one list: every camera can turn
about three axes. Coordinates of different cameras commute.
"""

import math

import matplotlib.pyplot as plt
import torch
from geoopt import ManifoldParameter
from scipy.spatial.transform import Rotation

from givens.manifolds import Power, SpecialOrthogonalGroup
from givens.optim import SRCD, Block

# %%
# Sixty cameras in a ring. Each sees its neighbours, and eighty pairs see each other across the ring. The
# errors are about 10°.

torch.manual_seed(0)
N = 60
rotations = SpecialOrthogonalGroup()
truth = rotations.random(N, 3, 3, dtype=torch.float64)
ring = torch.stack([torch.arange(N), torch.arange(1, N + 1) % N])
across = torch.triu_indices(N, N, offset=2)
across = across[:, across[1] - across[0] < N - 1]
across = across[:, torch.randperm(across.shape[1])[:80]]
i, j = torch.cat([ring, across], 1)
noise = Rotation.from_rotvec(6 * torch.randn(len(i), 3).double().numpy(), degrees=True)
M = truth[i] @ truth[j].mT @ torch.tensor(noise.as_matrix())

# %%
# To start, follow the ring from camera to camera. Errors add up along it.

chained = [truth[0]]
for measured in M[: N - 1]:
    chained.append(measured.T @ chained[-1])
chained = torch.stack(chained)

# %%
# Every step turns each camera about one axis: the steepest coordinates that share no axis are one a camera.

R = ManifoldParameter(chained.clone(), manifold=Power(rotations))
optimizer = SRCD([R], lr=0.1, selection=Block(size=N, disjoint=True))
for _ in range(300):
    optimizer.zero_grad()
    cost = (R[i] - M @ R[j]).square().sum() / 2
    cost.backward()
    optimizer.step()
R = R.detach()

# %%
# For comparison, the spectral method: the leading eigenvectors of the matrix of all measurements, with
# blocks that are then made rotations.

measurements = torch.zeros(N, N, 3, 3, dtype=torch.float64)
measurements[i, j], measurements[j, i] = M, M.mT
measurements = measurements.transpose(1, 2).reshape(3 * N, 3 * N)
blocks = torch.linalg.eigh(measurements).eigenvectors[:, -3:].reshape(N, 3, 3)
blocks = blocks * torch.linalg.det(blocks).sum().sign()
spectral = rotations.projx(blocks)

# %%
# There are local minima, but a solution can prove that it is none of them. With
# :math:`\Lambda_i = \sum_j M_{ij} R_j R_i^\top`, it is a global minimum if the smallest eigenvalue of
# :math:`\operatorname{diag}(\Lambda) - M` is 0 (Eriksson et al., 2018).

multipliers = (measurements @ R.reshape(3 * N, 3)).reshape(N, 3, 3) @ R.mT
certificate = torch.block_diag(*multipliers) - measurements
found, known = torch.linalg.eigvalsh(certificate)[0], 0.0


def errors(estimate):
    """Angles to the true orientations, in degrees, after the turn of all cameras that fits best."""
    turn = rotations.projx((estimate.mT @ truth).sum(0))
    return (rotations.dist(estimate @ turn, truth) / math.sqrt(2)).rad2deg()


print(f"smallest eigenvalue of the certificate: {found:.1e}")
print("mean error of a camera")
for name, estimate in (("along the ring", chained), ("spectral", spectral), ("SRCD", R)):
    print(f"  {name:14}  {errors(estimate).mean():5.2f}°")

# %%

plt.style.use("seaborn-v0_8-colorblind")
figure, ax = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
ax.plot(errors(chained), ":", linewidth=2, label="along the ring")
ax.plot(errors(spectral), "--", label="spectral")
ax.plot(errors(R), label="SRCD")
ax.set(xlabel="camera", ylabel="error of the orientation (°)", ylim=(0, None))
ax.legend(frameon=False)
ax.grid(color="0.9")
plt.show()
