"""A Program as readable Python: one function a kind of block, then each stage's calls, then what each rank does."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from torch import fx

if TYPE_CHECKING:
    from partitioner.lowering.program import Call, Program, Stage


def listing(program: Program) -> str:
    """The text of ``print(program)``."""
    names = _functions(program)
    parts = [_head(program), *(_function(name, module) for module, name in names.items())]
    parts += [_stage(stage, names) for stage in program.stages]
    parts += [f"# rank {p} of pp: {' '.join(map(str, row))}" for p, row in enumerate(program.actions)]
    return "\n\n".join(parts) + "\n"


def _head(program: Program) -> str:
    mesh = " x ".join(f"{axis} {size}" for axis, size in program.mesh.items())
    lines = [f"# mesh {mesh}, {program.micro_batches} micro-batches of {program.micro_batch}"]
    for parameter in program.parameters.values():
        layout = ", ".join(str(p) for p in parameter.layout)
        shape = " x ".join(map(str, parameter.shape)) or "scalar"
        lines.append(f"# {parameter.name}: {shape}, {layout}, on stages {', '.join(map(str, parameter.stages))}")
    return "\n".join(lines)


def _calls(stage: Stage) -> list[Call]:
    return [c for c in (stage.constants, stage.prelude, *stage.calls) if c is not None]


def _functions(program: Program) -> dict[fx.GraphModule, str]:
    """Each distinct module under the name of the first block that runs it."""
    found: dict[fx.GraphModule, str] = {}
    for stage in program.stages:
        for call in _calls(stage):
            name = re.sub(r"\W+", "_", call.block)
            taken = set(found.values())
            found.setdefault(call.module, name if name not in taken else f"{name}_{len(found)}")
    return found


def _function(name: str, module: fx.GraphModule) -> str:
    lines = [line for line in module.code.strip().splitlines() if line.strip()]
    body = "\n".join(re.sub(r";  .* = None$", "", line).rstrip() for line in lines)
    body = body.replace("torch.ops.", "")
    return body.replace("def forward(self, ", f"def {name}(").replace("def forward(self)", f"def {name}()")


def _stage(stage: Stage, names: dict[fx.GraphModule, str]) -> str:
    lines = [f"# stage {stage.index}"]
    if stage.receives:
        lines.append(f"# receives {', '.join(f'{v.name} {list(v.shape)}' for v in stage.receives)}")
    for call in _calls(stage):
        results = ", ".join(f"v[{r!r}]" for r in call.results)
        arguments = ", ".join(f"v[{a!r}]" for a in call.arguments)
        again = "  # recomputed in backward" if call.recompute else ""
        lines.append(f"{results}, = {names[call.module]}({arguments}){again}")
    if stage.sends:
        lines.append(f"# sends {', '.join(f'{v.name} {list(v.shape)}' for v in stage.sends)}")
    if stage.loss:
        lines.append(f"loss = v[{stage.loss!r}]")
    return "\n".join(lines)
