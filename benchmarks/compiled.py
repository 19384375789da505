"""What Triton's compiler makes of the kernels for compute capability 9.0, on a machine without a GPU.

Registers of a thread and bytes that do not fit into them, as the assembler that comes with Triton reports
them, for column-major matrices: the step on disjoint pairs, and the recurrence with modReLU.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "0"  # Triton looks at it when it is imported

import torch
import triton
from report import show_machine, show_table
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from givens.manifolds import kernels as steps
from givens.rnn import kernels as recurrence
from givens.rnn import tiled_kernels as tiles

TARGET = GPUTarget("cuda", 90, 32)
ASSEMBLER = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas-blackwell"
POINTERS = [
    "x",
    "g",
    "j",
    "l",
    "stopped",
    "z",
    "weight",
    "hx",
    "bias",
    "output",
    "grad_z",
    "bias_rows",
    "h",
    "dz",
    "later",
]
TYPES = {"j": "*i64", "l": "*i64", "stopped": "*i1", "rate": "fp32", "limit": "fp32"}


def compiled(kernel: Any, warps: int, **constants: Any) -> tuple[str, str]:
    """Registers of a thread, and the bytes that it spills."""
    names = kernel.arg_names
    signature = {n: TYPES.get(n, "*fp32" if n in POINTERS else "i32") for n in names}
    signature |= dict.fromkeys(constants, "constexpr")
    whole = [n for n in names if n in (*POINTERS, "m", "n", "xn", "gn", "xb", "gb")]
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(names.index(n),): value for n, value in constants.items()},
        attrs={(names.index(n),): [["tt.divisibility", 16]] for n in whole if n not in constants},
    )
    ptx = triton.compile(source, target=TARGET, options={"num_warps": warps}).asm["ptx"]
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        said = subprocess.run(
            [ASSEMBLER, "-v", "-arch=sm_90a", file.name, "-o", os.devnull],
            capture_output=True,
            text=True,
            check=True,
        ).stderr
    registers, spilled = (
        re.search(pattern, said) for pattern in (r"Used (\d+) reg", r"(\d+) bytes spill stores")
    )
    return registers.group(1), spilled.group(1)


def main() -> None:
    """Print the table."""
    show_machine()
    rows = []
    for d, warps in ((256, 1), (1024, 2), (4096, 8), (8192, 16)):
        constants = {
            "RADIANS": 0.5**0.5,
            "NUMBERED": False,
            "RATE_IS_TENSOR": False,
            "EPS": torch.finfo(torch.float32).eps,
            "WHOLE": True,
            "BLOCK": d,
            "xm": 1,
            "gm": 1,
        }
        rows.append(
            [
                "step on pairs",
                str(d),
                str(32 * warps),
                *compiled(steps._descend_kernel, warps, **constants),
            ]
        )
    for d in (64, 128, 190, 256):
        sizes = recurrence._sizes(d)
        warps = sizes.pop("num_warps")
        forward = compiled(recurrence._forward_kernel, warps, PHI=0, hd=1, bd=1, **sizes)
        backward = compiled(recurrence._backward_kernel, warps, PHI=0, BIAS=True, gd=1, **sizes)
        rows.append(["recurrence, forward", str(d), str(32 * warps), *forward])
        rows.append(["recurrence, backward", str(d), str(32 * warps), *backward])
    sizes = tiles._options()
    warps = sizes.pop("num_warps")
    near = {"PHI": 0, "BIAS": True, "bd": 1, "hd": 1, "wc": 1}
    forward = compiled(tiles._forward_kernel, warps, **near, **sizes)
    near = {"PHI": 0, "BIAS": True, "gd": 1, "wc": 1}
    backward = compiled(tiles._backward_kernel, warps, **near, **sizes)
    rows.append(["step of a recurrence, forward", "any", str(32 * warps), *forward])
    rows.append(["step of a recurrence, backward", "any", str(32 * warps), *backward])
    show_table(
        f"compute capability 9.0, Triton {triton.__version__}",
        ["kernel", "d", "threads", "registers", "bytes spilled"],
        rows,
    )


if __name__ == "__main__":
    main()
