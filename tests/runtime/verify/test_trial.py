"""A plan against the eager module: at a batch size that was not traced, a fault named where it lies."""

from __future__ import annotations

import torch
from torch import nn

from examples.gpt import model
from partitioner import Graph, Plan, search, trace
from partitioner.comparing.resample import resample
from runtime.verify.eager_steps import LIMIT
from runtime.verify.trial import Outcome, prepare, run_plan
from tools.verify.plan_families import cluster

SIZES = {"vocab": 32, "hidden": 16, "heads": 2, "seq": 8, "layers": 2}


def traced(samples: int = 3) -> tuple[nn.Module, Graph, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    module, example = model(batch=samples, **SIZES)
    graph = trace(module, example)
    return module, graph, resample(example, graph.batched, 4)


def under(module: nn.Module, graph: Graph, batch: dict[str, torch.Tensor], plan: Plan | None = None) -> Outcome:
    found = run_plan(prepare(module, graph, batch), plan or search(graph, cluster(1), 4, {"micro_batch": 2}))
    assert found is not None
    return found


def test_a_plan_of_one_rank_equals_the_module_at_another_size() -> None:
    found = under(*traced())
    assert found.apart.largest <= found.limit == LIMIT
    assert (found.first, found.unforeseen) == ("", "")


def test_what_was_traced_is_blamed_where_it_differs_from_the_module() -> None:
    """A hook that came after tracing: the plan is right of a graph that is not the module's."""
    module, graph, batch = traced()
    module.blocks[1].register_forward_hook(lambda m, args, out: 1.0001 * out)
    found = under(module, graph, batch)
    assert found.apart.largest > 1e-6
    assert found.first.startswith("what was traced, before any plan")


def test_a_gradient_alone_that_differs_is_seen() -> None:
    module, graph, batch = traced()
    module.norm.register_full_backward_hook(lambda m, given, got: (1.0001 * given[0],))
    found = under(module, graph, batch)
    assert found.apart.loss <= found.limit < found.apart.gradient


def test_inputs_without_samples_are_read_whole() -> None:
    """Positions that come with the batch are the same for every size of it."""

    class Positioned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.emb, self.pos, self.head = nn.Embedding(16, 8), nn.Embedding(6, 8), nn.Linear(8, 16)

        def forward(self, places: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            logits = self.head(self.emb(x) + self.pos(places))
            return nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten())

    ids = torch.randint(16, (3, 6))
    example = {"places": torch.arange(6), "x": ids, "y": ids.roll(-1, 1)}
    module = Positioned()
    graph = trace(module, example)
    trial = prepare(module, graph, resample(example, graph.batched, 4))
    assert {n: t.shape[0] for n, t in trial.batch.items()} == {"places": 6, "x": 4, "y": 4}
