"""Chat templates are rendered as transformers renders them, and nothing of them is executed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from partitioner.errors import InputError
from tools.generate.text_coder import TEMPLATE, TOKENIZER, text_coder

SAID = [
    {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Où?"},
    {"role": "assistant", "content": "Here."}, {"role": "user", "content": "<b>"},
]  # fmt: skip
TEMPLATES = {
    "plain": "{% for m in messages %}<{{ m.role }}>{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<a>{% endif %}",
    "what is trained is marked": "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "{% endgeneration %}{% else %}{{ m.content | trim }}\n{% endif %}{% endfor %}",
    "loops that end": "{% for m in messages %}{% if m.role == 'assistant' %}{% break %}{% endif %}{{ m.content }}"
    "{% endfor %}",
    "json": "{{ messages | tojson }}{{ messages[0] | tojson(indent=2) }}",
    "json in a form": "{{ messages[0] | tojson(sort_keys=true, separators=(',', ':')) }}{{ messages | tojson(false) }}",
    "no tools": "{% if tools is not none %}?{% endif %}{{ messages[0].content }}{{ documents }}",
    "the day": "{{ strftime_now('%Y') }}{{ messages[-1].content }}",
    "special tokens": "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}",
}


def folder_of(template: str, folder: Path) -> Path:
    """A tokenizer of characters."""
    text = "".join(TEMPLATES.values()) + json.dumps(SAID, ensure_ascii=False) + "0123456789 \n"
    words = {word: n for n, word in enumerate(dict.fromkeys(("<s>", "</s>", "?", *text)))}
    made = Tokenizer(models.WordLevel(words, unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    made.add_special_tokens(["<s>", "</s>"])
    made.save(str(folder / TOKENIZER))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": {"content": "</s>"}}))
    (folder / TEMPLATE).write_text(template)
    return folder


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_are_rendered_as_transformers_does(name: str, tmp_path: Path) -> None:
    folder = folder_of(TEMPLATES[name], tmp_path)
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(folder / TOKENIZER), bos_token="<s>", eos_token="</s>")
    asked = {"chat_template": TEMPLATES[name], "add_generation_prompt": True, "tokenize": False}
    wanted = theirs.apply_chat_template(SAID, **asked)
    coder = text_coder(str(folder))
    assert coder.chat(SAID) == coder.encode_plain(wanted)
    assert len(coder.chat(SAID)) > 5


FORBIDDEN = ("{{ messages.__class__.__mro__ }}", "{{ messages.append(1) }}", "{{ raise_exception('no') }}", "{% for %}",
             "{{ 1 + 'a' }}")  # fmt: skip


@pytest.mark.parametrize("template", FORBIDDEN)
def test_what_a_template_may_not_do_is_one_line(template: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the chat template: "):
        text_coder(str(folder_of(template, tmp_path))).chat(SAID)
