"""A model's tokenizer as masks need it: one begin token where the model knows one, no end token, chats as text."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import dropwhile
from typing import Any, Literal, cast

from transformers import PreTrainedTokenizerBase

from masklearn.data.texts import Content, Message, Text
from masklearn.errors import UserError, one_line

BosRule = Literal["auto", "always", "never"]
"""When texts begin with a begin token: `auto` if the tokenizer puts one there, `always`, or `never`, even if the chat
template writes one out."""


@dataclass(frozen=True)
class TextTokenizer:
    """Tokenises texts and chats.

    Args:
        tokenizer: The model's tokenizer.
        source: The source of the texts in words, for messages.
        lm: Name of the tokenizer, for messages.
        bos: When a text begins with a begin token.
        chat: Whether plain texts become a user's message in the tokenizer's chat template.
    """

    tokenizer: PreTrainedTokenizerBase
    source: str
    lm: str
    bos: BosRule = "auto"
    chat: bool = False

    @cached_property
    def begin(self) -> list[int]:
        """The tokens that texts begin with.

        Raises:
            UserError: If a begin token is requested of a tokenizer that has none.
        """
        if self.bos == "never":
            return []
        end = self.tokenizer.eos_token_id
        added = self._raw([""], special=True)[0]
        if added[-1:] == [end] and (len(added) > 1 or end != self.tokenizer.bos_token_id):
            added = added[:-1]
        if added or self.bos == "auto":
            return added
        token = end if self.tokenizer.bos_token_id is None else self.tokenizer.bos_token_id
        if not isinstance(token, int):
            raise UserError(f"data.bos is always, but the tokenizer of {self.lm} has no begin token. Leave it out")
        return [token]  # as TransformerLens does for families without a begin token, and MIB with it

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of texts: the begin tokens once, also where a text writes them out, and no end token.

        Nothing follows an end token, so nothing is predicted there.

        Raises:
            UserError: If the tokenizer cannot read the texts.
        """
        return [self._without_end(row) for row in self._begun(texts)]

    def _begun(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of texts, the begin tokens once."""
        written = str(self.tokenizer.decode(self.begin)).strip() if self.begin else ""
        bare = [text[len(written) :] if written and text.startswith(written) else text for text in texts]
        return [self.begin + row for row in self._raw(bare, special=False)]

    def continuations(
        self, texts: Sequence[str], continuations: Sequence[str], ids: Sequence[list[int]]
    ) -> list[list[int]]:
        """The tokens of every continuation of a text, tokenised with it where the tokenizer keeps the text's tokens.

        An end token that a continuation writes out is one of its tokens; one at the end of a text is dropped, as in
        its `ids`.

        Args:
            texts: The texts.
            continuations: One for each text.
            ids: The tokens of each text.
        """
        joined = self._begun([text + more for text, more in zip(texts, continuations, strict=True)])
        result = list[list[int]]()
        end, end_id = str(self.tokenizer.eos_token), self.tokenizer.eos_token_id
        for text, row, whole, more in zip(texts, ids, joined, continuations, strict=True):
            tail = whole[len(row) :]
            if text.endswith(end):
                tail = [*dropwhile(lambda token: token == end_id, tail)]
            if whole[: len(row)] != row or not tail:  # the tokenizer merges the two
                tail = self._raw([more], special=False)[0]
            result.append(tail if end in more else self._without_end(tail))
        return result

    def with_counts(self, texts: Sequence[Text]) -> tuple[list[Text], list[str]]:
        """The texts whose `counts` hold with this tokenizer, and a notice if these are not all.

        Raises:
            UserError: If none is left.
        """
        words = [word for text in texts if text.counts for word in text.counts.words]
        lengths = iter(map(len, self._raw(words, special=False)))
        kept = list[Text]()
        for text in texts:
            found = {next(lengths) for _ in text.counts.words} if text.counts else {0}
            if len(found) == 1 and (not text.counts or text.counts.n_tokens in (None, *found)):
                kept.append(text)
        if not kept and texts:
            raise UserError(
                f"{self.source}: in no text do the answers have the numbers of tokens that its task asks for, with the "
                f"tokenizer of {self.lm}. Give another task or another model"
            )
        n = len(texts) - len(kept)
        notice = (
            f"{n} of {len(texts)} texts are left out: their answers differ in tokens, or have too many for the task"
        )
        return kept, [notice] if n else []

    def prompt(self, content: Content) -> str:
        """A text, or a chat: up to its last answer if it ends with one, or to where its template asks for one."""
        if isinstance(content, str):
            return self._render((Message("user", content),), answer_next=True) if self.chat else content
        if content[-1].role != "assistant":
            return self._render(content, answer_next=True)
        chat = self._render(content, answer_next=False)
        end = self._end_of_turn(chat, content[-1].content.strip())
        return chat[: end.start()] if end else chat

    def prompt_and_completion(self, text: Text, closed: bool = True) -> tuple[str, str] | None:
        """A text's prompt, and the completion whose tokens are scored; None if it has none.

        The completion is that of its column, the last answer of a chat, or the first right answer.

        Args:
            text: The text.
            closed: End a chat's completion with the end of its turn, the first special token behind the answer;
                otherwise before it, since no text follows that the model would predict.
        """
        messages, completion = text.text, text.completion
        if completion is None and not isinstance(messages, str) and messages[-1].role == "assistant":
            messages, completion = messages[:-1], messages[-1:]
        if completion is None:
            answer = next((answer for answer in text.answers if isinstance(answer, str)), None)
            return None if answer is None else (self.prompt(text.text), answer)
        if isinstance(messages, str) and isinstance(completion, str) and not self.chat:
            return messages, completion
        messages = (Message("user", messages),) if isinstance(messages, str) else messages
        completion = (Message("assistant", completion),) if isinstance(completion, str) else completion
        prompt = self._render(messages, answer_next=True)
        chat = self._render(messages + completion, answer_next=False)
        if not chat.startswith(prompt):  # some templates write a thought before an answer that is asked for
            begin = chat.rfind(completion[0].content.strip())
            prompt = chat[: max(begin, 0)]
        rendered = chat[len(prompt) :]
        end = self._end_of_turn(rendered, completion[-1].content.strip())
        return prompt, rendered[: end.end() if closed else end.start()] if end else rendered

    @cached_property
    def _special_tokens(self) -> re.Pattern[str]:
        """Matches a special token that a text writes out; the end of a turn need not be the end token."""
        added: Any = self.tokenizer.added_tokens_decoder
        names = {*self.tokenizer.all_special_tokens}
        if isinstance(added, dict):  # tokenizers of mistral-common have no such list
            names |= {token.content for token in added.values() if token.special}
        tokens = sorted(names, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, tokens)) or r"(?!)")

    def _end_of_turn(self, rendered: str, answer: str) -> re.Match[str] | None:
        """The first special token behind a rendered answer."""
        without_names = self._special_tokens.sub(lambda found: "\0" * len(found[0]), rendered)
        begin = without_names.rfind(answer)
        return self._special_tokens.search(rendered, begin + len(answer)) if begin >= 0 else None

    def _render(self, messages: Sequence[Message], answer_next: bool) -> str:
        chat: list[dict[str, Any]] = [message._asdict() for message in messages]
        try:
            text = cast(
                str, self.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=answer_next)
            )
        except Exception as error:  # templates raise what they like
            raise UserError(
                f"{self.source}: the tokenizer of {self.lm} cannot write these messages ({one_line(error)}). "
                "Give the tokenizer of a chat model with --data.tokenizer"
            ) from error
        begin = str(self.tokenizer.bos_token or "")
        opens_turns = text.count(begin) > 1  # as in ChatML, where it belongs to the message
        return text.removeprefix(begin) if self.bos == "never" and not opens_turns else text

    def _raw(self, texts: Sequence[str], special: bool) -> list[list[int]]:
        if not texts:
            return []
        try:
            return cast(list[list[int]], self.tokenizer(list(texts), add_special_tokens=special)["input_ids"])
        except Exception as error:  # tokenizers raises no narrower class
            raise UserError(
                f"{self.source}: the tokenizer of {self.lm} cannot read these texts ({one_line(error)}). "
                "Give the model that the texts are for with --model.lm"
            ) from error

    def _without_end(self, ids: list[int]) -> list[int]:
        """Tokens without end tokens behind them."""
        end = len(ids)
        while end and ids[end - 1] == self.tokenizer.eos_token_id:
            end -= 1
        return ids[:end]
