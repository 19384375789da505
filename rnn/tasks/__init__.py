"""Tasks for recurrent networks: copying memory, the adding problem, pixel-by-pixel digits."""

from .adding import AddingProblem
from .copying import CopyingMemory
from .digits import PixelDigits
from .task import Batch, HeldOut, Task

__all__ = ["AddingProblem", "Batch", "CopyingMemory", "HeldOut", "PixelDigits", "Task"]
