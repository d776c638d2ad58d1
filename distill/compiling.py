"""`train.compile`: the student through torch.compile.

Alone, and in each of several processes with ddp, it is compiled whole. Under fsdp2 the hooks that
fetch a block's weights end a graph, so that it is compiled block by block.
"""

from __future__ import annotations

import os
import shutil

import torch
from torch import nn

from distill.recipe import RecipeError


def compile_student(student: nn.Module) -> None:
    """Has a student compiled, in place, when it is first called.

    Blocks of one class share their code, of which torch compiles eight versions by default and runs
    the rest as it is: there may be a version for each module.
    """
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, sum(1 for _ in student.modules()))
    student.compile()


def check_compiler() -> None:
    """RecipeError: there is no C++ compiler, which torch.compile calls at the first step."""
    compiler = (os.environ.get("CXX") or "g++").split()[0]
    if shutil.which(compiler) is None:
        raise RecipeError(
            f"train.compile is true, which needs a C++ compiler: there is no {compiler} (CXX may"
            " name another)"
        )
