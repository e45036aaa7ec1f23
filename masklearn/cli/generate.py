"""Continue prompts with a model, so that a study can run along its generation.

python -m masklearn.cli.generate --lm gpt2 --path prompts.jsonl --out generated.jsonl

Each line of the output has a `prompt` and a `completion`: `--data.positions each` gives a mask to every token of both,
`--data.positions completion` scores the tokens of the completion together.
"""

import json
import sys
from pathlib import Path
from typing import Any, cast

import torch
from jsonargparse import ArgumentParser
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from masklearn.cli.entry_points import exit_code
from masklearn.cli.parsing import as_user_errors
from masklearn.data import MaskData
from masklearn.data.text_tokenizer import TextTokenizer
from masklearn.errors import UserError
from masklearn.files import atomic_write, require_writable
from masklearn.models import best_device, load_lm, text_config


def generate(
    path: str, out: str, lm: str = "embedded", tokens: int = 20, top_p: float | None = None, seed: int = 0,
    text_column: str | None = None, limit: int | None = None, max_length: int = 128,
) -> None:  # fmt: skip
    """Write prompts and their continuations, greedy or sampled from a nucleus.

    Args:
        path: File of prompts, in any format that --data.path reads.
        out: JSONL file to write.
        lm: Model that continues them: folder, hub id, or embedded.
        tokens: New tokens of every prompt, at most.
        top_p: Nucleus to sample from, for example 0.6; greedy by default.
        seed: Seed of the samples.
        text_column: Column of the prompts.
        limit: Use only this many prompts.
        max_length: Longest prompt, in tokens.

    Raises:
        UserError: If model or prompts cannot be read, or if no continuation survives being written as text.
    """
    if Path(out).exists():
        raise UserError(f"{out} already exists and is kept. Choose another --out")
    if tokens < 1:
        raise UserError(f"tokens is {tokens}; it must be at least 1")
    if top_p is not None and not 0 < top_p <= 1:
        raise UserError(f"top_p is {top_p}; it must be above 0 and at most 1: --top_p 0.9")
    require_writable(Path(out))
    data = MaskData(path=path, lm=lm, text_column=text_column, limit=limit, max_length=max_length, scope="input")
    try:
        data.prepare_data()
        data.setup()
    except UserError as error:  # here the flags of the data have no group
        raise UserError(str(error).replace("--data.", "--")) from error
    model, tokenizer = load_lm(lm, device=best_device()), data.load_tokenizer()
    context = getattr(text_config(model), "max_position_embeddings", None)
    if context and data.longest_text + tokens > context:
        raise UserError(
            f"a prompt of {data.longest_text} tokens and {tokens} new ones exceed the {context} that {lm} reads. "
            f"Ask for fewer with --tokens, or shorten the prompts: --max_length {max(1, context - tokens)}"
        )
    torch.manual_seed(seed)
    found = [continuation(model, tokenizer, ids, tokens, top_p) for ids in data.parts["all"].ids]
    pairs = [pair for pair in found if pair]
    if not pairs:
        raise UserError(f"{lm} ends every prompt of {path} at once, or its tokens change when they are written as text")
    lines = [json.dumps(dict(zip(("prompt", "completion"), pair, strict=True)), ensure_ascii=False) for pair in pairs]
    atomic_write(Path(out), "".join(f"{line}\n" for line in lines).encode())
    left_out = f"; {len(found) - len(pairs)} left out, whose tokens change as text" if len(pairs) < len(found) else ""
    print(f"Written: {out}, {len(pairs)} texts{left_out}")


def continuation(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, ids: list[int], n_tokens: int, top_p: float | None
) -> tuple[str, str] | None:
    """The text of a prompt and of its continuation; None if reading them again gives other tokens."""
    device, sampling = model.device, {"do_sample": top_p is not None} | ({} if top_p is None else {"top_p": top_p})
    input_ids = torch.tensor([ids], device=device)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    with torch.no_grad():
        whole = cast(torch.Tensor, cast(Any, model).generate(
            input_ids=input_ids, attention_mask=torch.ones_like(input_ids), max_new_tokens=n_tokens, pad_token_id=pad,
            **sampling,
        ))[0].tolist()  # fmt: skip
    new = whole[len(ids) :]
    while new and new[-1] in (tokenizer.eos_token_id, pad):
        new = new[:-1]
    reader = TextTokenizer(tokenizer, "the generated texts", "the model")
    prompt, text = str(tokenizer.decode(ids[len(reader.begin) :])), str(tokenizer.decode(ids + new))
    completion = text[text.index(prompt) + len(prompt) :] if prompt in text else ""
    same = bool(new) and reader.ids([prompt]) == [ids] and reader.continuations([prompt], [completion], [ids]) == [new]
    return (prompt, completion) if same else None


def run_generation(args: list[str] | None) -> None:
    """Run `python -m masklearn.cli.generate`; the command line is that of the process by default."""
    parser = ArgumentParser(prog="generate", exit_on_error=False, allow_abbrev=False, description=__doc__)
    parser.add_function_arguments(generate)
    with as_user_errors(parser):
        settings = parser.parse_args(args).as_dict()
    generate(**settings)


if __name__ == "__main__":
    sys.exit(exit_code(run_generation, None))
