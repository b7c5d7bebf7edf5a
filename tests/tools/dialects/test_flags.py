"""Flags are read out of scripts as a shell would pass them."""

from __future__ import annotations

import pytest

from partitioner.errors import InputError
from tools.dialects.flags import FLAGS, dump, parse

SCRIPT = """#!/bin/bash
GPUS=8
WORLD=$(($GPUS*4))
TP=${TP:-2}
NAME="llama"
ARGS=(
    --nproc_per_node $GPUS
    --bf16   # a comment
    "--fp8-format hybrid"
    --tensor-model-parallel-size ${TP}
)
# --sequence-parallel
MORE=" --num-layers 32 \\
   --world $WORLD "
if [[ "$NAME" == "llama" ]]; then
    ARGS+=(--swiglu)
elif [ "$NAME" = "gpt" ]; then
    ARGS+=(--gelu)
else
    ARGS+=(--relu)
fi
if [[ -z "$NAME" ]] || [ "$NAME" != "llama" ]; then
    ARGS+=(--empty)
fi
torchrun ${ARGS[@]} pretrain.py ${MORE} --lr=0.1 --split 949,50,1 \\
    --data a b --save "$1"
"""


def flags(text: str) -> dict[str, object]:
    return parse(text, "train.sh")[0]


def test_a_script_is_read_as_the_shell_passes_it() -> None:
    assert flags(SCRIPT) == {
        "nproc_per_node": "8", "bf16": True, "fp8-format": "hybrid", "tensor-model-parallel-size": "2",
        "num-layers": "32", "world": "32", "swiglu": True, "lr": "0.1", "split": "949,50,1", "data": ["a", "b"],
        "save": "$1",
    }  # fmt: skip


def test_the_last_of_two_counts() -> None:
    assert flags("--tp 1 --tp 2\n--bf16") == {"tp": "2", "bf16": True}


def test_a_condition_that_nobody_knows_is_said() -> None:
    found, notes = parse('if [ -f "$X" ]; then\nA=(--swiglu)\nfi\nrun --bf16', "train.sh")
    assert found == {"swiglu": True, "bf16": True}
    assert notes == ("--swiglu stands under a condition that is not known here: it is taken",)


def test_yaml_of_flags_loses_its_sections() -> None:
    found = flags("model_parallel:\n  tensor_model_parallel_size: 4\n  sequence_parallel: true\nbf16: false\n")
    assert found == {"tensor-model-parallel-size": 4, "sequence-parallel": True, "bf16": False}


@pytest.mark.parametrize("text", ["echo nothing", '--save "never closed'])
def test_what_is_no_script_is_one_line(text: str) -> None:
    with pytest.raises(InputError, match="train.sh"):
        parse(text, "train.sh")


def test_what_is_written_is_read() -> None:
    values = {"tensor-model-parallel-size": 8, "bf16": True, "pipeline-model-parallel-layout": "Ett|t*9L", "off": False}
    text = dump(values, ["a line"])
    assert text.startswith("# a line\n")
    assert "'Ett|t*9L'" in text
    assert FLAGS.parse(text, "f")[0] == {
        "tensor-model-parallel-size": "8", "bf16": True, "pipeline-model-parallel-layout": "Ett|t*9L",
    }  # fmt: skip
