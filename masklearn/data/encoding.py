"""From the texts of a source to tokens: everything that the settings of the data say on it."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from masklearn.data.answer_tokens import AnswerEncoder, AnswerIds
from masklearn.data.encoded import Encoded
from masklearn.data.positions import TRUNCATING, Positions
from masklearn.data.text_tokenizer import BosRule, TextTokenizer
from masklearn.data.texts import Text
from masklearn.data.tokenization import Encoder, Truncation
from masklearn.errors import UserError


@dataclass(frozen=True)
class Encoding:
    """How texts become tokens; each setting is explained at `MaskData`."""

    max_length: int = 128
    truncation: Truncation = "right"
    positions: Positions = "all"
    bos: BosRule = "auto"
    chat: bool = False
    pack: bool = False
    answer_ids: AnswerIds = "auto"
    skip_short: bool = False

    def encode(
        self, texts: Sequence[Text], tokenizer: PreTrainedTokenizerBase, source: str, name: str
    ) -> tuple[list[Encoded], list[str]]:
        """The tokenised texts, without those of fewer than two tokens; and notices for the user.

        Args:
            texts: The texts.
            tokenizer: Their tokenizer.
            source: The source of the texts in words, for messages.
            name: Name of the tokenizer, for messages.

        Raises:
            UserError: If there are such texts and `skip_short` is off, or if the texts cannot be used.
        """
        text_tokenizer = TextTokenizer(tokenizer, source, name, self.bos, self.chat)
        answers = AnswerEncoder(text_tokenizer, self.answer_ids, self.positions == "completion")
        encoder = Encoder(text_tokenizer, answers, self.max_length, self.truncation, self.positions)
        texts, left_out = text_tokenizer.with_counts(texts)
        encoded, notices = (encoder.packed(texts), []) if self.pack else encoder(texts)
        notices = left_out + notices
        if self.positions in TRUNCATING and any(text.answers for text in encoded):
            notices.append(f"Answers are not used: they follow whole texts, and data.positions is {self.positions}")
        short = [text for text in encoded if len(text.ids) < 2]
        if short and not self.skip_short:
            first = next(text.content for text in texts if text.row == short[0].row)
            raise UserError(
                f"{source}: {len(short)} of {len(encoded)} texts are shorter than two tokens, the first is text "
                f"{short[0].row + 1}, {first!r}. Remove them, or leave them out with --data.skip_short true"
            )
        kept = [text for text in encoded if len(text.ids) > 1]
        if not kept:
            raise UserError(f"{source} holds no text of two tokens or more")
        return kept, notices
