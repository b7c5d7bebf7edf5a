"""What show prints and draws holds all that the plan does, and its figures are the plan's."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from shown import graph, plan

from partitioner import Plan, lower
from tools.figures.outline import is_weighty, outline
from tools.figures.stage_pieces import backward_pieces, forward_pieces
from tools.main import main, parser
from tools.show.perfetto import trace_json

GOLDEN = Path(__file__).parents[1] / "golden"
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("show") / "plan.json"
    plan().save(found)
    return found


def nodes(drawing: Path) -> dict[str, tuple[str, str]]:
    """Of each node its class and its text."""
    found: dict[str, tuple[str, str]] = {}
    for group in ET.parse(drawing).iter(f"{SVG}g"):
        if "node" in group.get("class", "").split():
            text = " ".join(t.text or "" for t in group.iter(f"{SVG}text"))
            found[group.get("id", "")] = group.get("class", "").removeprefix("node "), text
    return found


def test_the_card_and_the_tree_are_the_golden_ones(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(path)]) == 0
    printed = capsys.readouterr().out
    below = printed[printed.index("where the time goes") :]  # the card's width is its entry's
    lines = "\n".join(line.rstrip() for line in below.splitlines()) + "\n"
    assert lines == (GOLDEN / "show.txt").read_text()
    assert "│ tf32 products of float32 parameters, 32 tokens a sample " in printed


def test_the_drawing_opens_each_kind_of_block_once(path: Path, tmp_path: Path) -> None:
    drawing = tmp_path / "plan.svg"
    assert main(["show", str(path), "--svg", str(drawing), "--png", str(tmp_path / "plan.png")]) == 0
    found = nodes(drawing)
    for row in plan().blocks:
        for op in row.ops:
            drawn = [key for key in found if key.endswith(f":{op.name}")]
            assert len(drawn) == 1 or not is_weighty(op), op.name
        moves = [m for op in row.ops for m in op.collectives] + list(row.leaving)
        for move in moves:
            [key] = [key for key in found if key.endswith(f":{move.value}>{move.target}")]
            assert found[key][0] == "collective"
            assert all(kind in found[key][1] for kind in (move.forward, move.backward))
    assert sum(style == "collective" for style, _ in found.values()) >= 4
    likes = [text for style, text in found.values() if style == "like"]
    runs = [run for stages in outline(plan()) for run in stages.runs]
    assert len(likes) == sum(not run.is_first for run in runs) > 0
    assert all("like blocks.0" in text for text in likes)
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")


def test_a_block_is_drawn_op_by_op(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drawing, row = tmp_path / "block.svg", plan().blocks[1]
    assert main(["show", str(path), "--block", "blocks.2", "--svg", str(drawing)]) == 0
    assert {f"b:{op.name}" for op in row.ops} <= set(nodes(drawing))
    capsys.readouterr()
    assert main(["show", str(path), "--block", "blocks.2"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("linear(") == sum(op.op == "aten.linear.default" for op in row.ops) == 4
    assert main(["show", str(path), "--block", "blocks.9"]) == 2
    assert "the plan has no block blocks.9: name one of" in capsys.readouterr().err


def test_the_program_is_drawn_and_printed(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program, drawing = lower(graph(), plan()), tmp_path / "program.svg"
    assert main(["show", str(path), "--program", "--svg", str(drawing)]) == 0
    assert "importing" in capsys.readouterr().err
    calls = [c for s in program.stages for c in (s.constants, s.prelude, *s.calls) if c is not None]
    modules = {id(c.module): c.module for c in calls}.values()
    ops = sum(n.op == "call_function" for module in modules for n in module.graph.nodes)
    found = nodes(drawing)
    assert sum(style in ("op", "product", "collective") for style, _ in found.values()) == ops
    assert sum(style == "like" for style, _ in found.values()) == len(calls) - len(modules)
    assert main(["show", str(path), "--program"]) == 0
    assert capsys.readouterr().out == str(program)


def test_pieces_add_up_to_their_blocks() -> None:
    rows = {name: row for row in plan().blocks for name in row.units}
    for n, units in enumerate(plan().decisions.stages):
        forward, backward = (sum(p.seconds for p in found(plan(), n)) for found in (forward_pieces, backward_pieces))
        assert forward == pytest.approx(sum(rows[name].forward_seconds for name in units))
        assert backward == pytest.approx(sum(rows[name].backward_seconds for name in units))


@pytest.mark.parametrize("pins", [{"schedule": "1f1b"}, {"schedule": "interleaved"}, {"pp": 1, "dp": 4}], ids=str)
def test_the_trace_is_the_step(pins: dict[str, Any]) -> None:
    found: Plan = plan(**pins)
    document = json.loads(trace_json(found))
    events = document["traceEvents"]
    names = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    assert len(names) == found.world == 8
    for pid in names:
        rows = [e for e in events if e["pid"] == pid and e["ph"] == "X" and e["tid"] == 0]
        outer = [e for e in rows if e["cat"] not in ("compute", "collective") or e["name"] == "gradient sync"]
        assert sum(e["dur"] for e in outer) == pytest.approx(found.cost.step_seconds * 1e6, abs=0.01)
        for a, b in zip(outer, outer[1:], strict=False):
            assert a["ts"] + a["dur"] == pytest.approx(b["ts"], abs=0.01)
        actions = [e for e in outer if e["cat"] in ("forward", "backward")]
        stages = len(found.decisions.stages) // found.parallelism.mesh["pp"]
        assert len(actions) == 2 * stages * found.parallelism.micro_batches
        inner = [e for e in rows if e["cat"] in ("compute", "collective") and e["name"] != "gradient sync"]
        assert {e["cat"] for e in inner} == {"compute", "collective"}
        assert sum(e["dur"] for e in inner) == pytest.approx(sum(e["dur"] for e in actions), rel=1e-3)
    memory = [sum(e["args"].values()) for e in events if e["ph"] == "C"]
    assert max(memory) == pytest.approx(found.cost.peak_bytes, rel=1e-6)
    starts, ends = ([e for e in events if e["ph"] == ph] for ph in "sf")
    crossings = len(found.decisions.stages) - 1 if found.parallelism.mesh["pp"] > 1 else 0
    sent = 2 * found.parallelism.micro_batches * crossings * 4
    assert len(starts) == len(ends) == len([e for e in events if e.get("cat") == "send" and e["ph"] == "X"]) == sent
    late = {e["id"]: e["ts"] for e in ends}
    sends = [e for e in events if e.get("cat") == "send" and e["ph"] == "X"]
    for flow, send in zip(starts, sends, strict=True):
        assert flow["ts"] == send["ts"]
        assert send["dur"] >= 0
        assert late[flow["id"]] >= send["ts"] + send["dur"] - 0.01


def test_files_that_cannot_be_written_are_named(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for option, name in (("--svg", "/absent/a.svg"), ("--trace", "/absent/a.json"), ("--html", "/absent/a.html")):
        assert main(["show", str(path), option, name]) == 2
        assert f"{name} cannot be written" in capsys.readouterr().err
    assert main(["show", str(path), "--svg", "a.pdf"]) == 2
    assert "a drawing ends in .svg or .png" in capsys.readouterr().err


def test_of_several_files_none_is_written_where_one_can_not_be_made(path: Path, tmp_path: Path) -> None:
    before = tmp_path / "a.svg"
    before.write_text("before")
    assert main(["show", str(path), "--svg", str(before), "--png", str(tmp_path / "a.pdf")]) == 2
    assert before.read_text() == "before"


@pytest.mark.parametrize(("variables", "coloured"), [({"FORCE_COLOR": "1"}, True), ({}, False),
                         ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False)])  # fmt: skip
def test_colours_are_left_out_where_nobody_wants_them(
    variables: dict[str, str], coloured: bool, path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert main(["show", str(path)]) == 0
    assert ("\x1b[3" in capsys.readouterr().out) == coloured


def test_every_command_has_an_example_and_a_shell_can_complete_them(capsys: pytest.CaptureFixture[str]) -> None:
    (commands,) = (action.choices for action in parser()._actions if action.dest == "command")
    assert isinstance(commands, dict)
    assert len(commands) == 18
    for command in commands:
        with pytest.raises(SystemExit):
            main([command, "--help"])
        assert "example" in capsys.readouterr().out, command
    with pytest.raises(SystemExit):
        main(["--print-completion", "bash"])
    script = capsys.readouterr().out
    assert all(f"_{command}" in script for command in commands)
    assert "--why-not" in script
