"""A tokenizer whose tokens are the bytes of a text, with the habits of the tokenizers that models come with."""

import shutil
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

BEGIN, END, PAD = 0, 1, 2
CHAT = (
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
"""A template that writes the begin token out, as most do."""


def byte_tokenizer(begin: bool = False, end: bool = False, chat: str | None = CHAT) -> PreTrainedTokenizerFast:
    """The tokenizer; it puts a begin token before texts or an end token behind them if asked to."""
    specials = ["<s>", "</s>", "<pad>"]
    vocabulary = {token: i for i, token in enumerate(specials + sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    template = f"{'<s> ' if begin else ''}$A{' </s>' if end else ''}"
    tokenizer.post_processor = processors.TemplateProcessing(template, None, [("<s>", BEGIN), ("</s>", END)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", chat_template=chat
    )


def saved(folder: Path, tokenizer: PreTrainedTokenizerFast) -> str:
    """The path of the tokenizer, saved in place of an earlier one."""
    shutil.rmtree(folder, ignore_errors=True)
    tokenizer.save_pretrained(folder)
    return str(folder)


def shown(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> str:
    """Tokens as text, special ones included."""
    return str(tokenizer.decode(ids))
