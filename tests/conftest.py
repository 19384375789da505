import os

import pytest
import torch
from hypothesis import HealthCheck, settings

settings.register_profile(
    "default",
    deadline=None,
    derandomize=True,
    max_examples=25,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
# Many fresh examples: HYPOTHESIS_PROFILE=thorough make test
settings.register_profile(
    "thorough", parent=settings.get_profile("default"), derandomize=False, max_examples=300
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

# Kernels run on a GPU where there is one, else in Triton's interpreter, which looks at this on import.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# One thread a worker: pytest-xdist supplies the parallelism.
torch.set_num_threads(1)


@pytest.fixture
def allow_rounding():
    """Allow products of float32 to be rounded, as a user does; until the test ends."""
    yield torch.set_float32_matmul_precision
    torch.set_float32_matmul_precision("highest")
