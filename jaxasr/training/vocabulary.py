"""A token table made from the texts of a corpus: characters, or byte pairs by SentencePiece."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from jaxasr.errors import ConfigError
from jaxasr.model_config import ModelConfig
from jaxasr.text.tokens import MARK, TokenTable

BLANK, UNKNOWN = "<blk>", "<unk>"


@dataclass(frozen=True)
class VocabularyConfig:
    """Tokens are `bpe` pieces, at most `size` of them with blank and `<unk>`, or `characters`, where size is unused."""

    kind: Literal["bpe", "characters"] = "bpe"
    size: int = 500


def with_vocabulary(config: ModelConfig, tokens: TokenTable) -> ModelConfig:
    """The configuration with the size and the blank of a vocabulary; its `<unk>` is the only silent id of a transducer.

    A parallel head ends its texts with the blank.
    """
    size, blank = len(tokens), tokens.blank_id or 0
    transducer, ctc, parallel = config.transducer, config.ctc, config.parallel
    silent = () if tokens.unk_id is None else (tokens.unk_id,)
    if transducer is not None:
        transducer = replace(transducer, vocabulary_size=size, blank_id=blank, silent_ids=silent)
    if ctc is not None:
        ctc = replace(ctc, vocabulary_size=size, blank_id=blank)
    if parallel is not None:
        parallel = replace(parallel, vocabulary_size=size, blank_id=blank, silent_ids=silent, end_id=blank)
    return replace(config, transducer=transducer, ctc=ctc, parallel=parallel)


def make_vocabulary(texts: Iterable[str], config: VocabularyConfig) -> TokenTable:
    """The table of blank, `<unk>` and the pieces; ids in the order in which pieces were merged, then characters."""
    texts = [text for text in texts if text.strip()]
    if not texts:
        raise ConfigError("no text to make a vocabulary from")
    if config.kind == "characters":
        return TokenTable((BLANK, UNKNOWN, MARK, *sorted(_characters(texts))))
    return TokenTable((BLANK, UNKNOWN, *_byte_pairs(texts, config.size - 2)))


def _characters(texts: list[str]) -> set[str]:
    """All that are not white space."""
    return set("".join("".join(texts).split()))


def _byte_pairs(texts: list[str], size: int) -> list[str]:
    try:
        import sentencepiece
    except ImportError:
        raise ConfigError("byte-pair vocabularies need SentencePiece: pip install 'jaxasr[train]'") from None
    model = io.BytesIO()
    letters = len(_characters(texts) | {MARK})
    if size < letters:
        raise ConfigError(
            f"vocabulary.size {size + 2} is too small for the {letters} characters of the texts; raise it to "
            f"{letters + 2} at least, or take kind: characters"
        )
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        model_type="bpe",
        vocab_size=size + 1,  # SentencePiece counts its own unknown
        hard_vocab_limit=False,
        character_coverage=1.0,
        normalization_rule_name="identity",
        bos_id=-1,
        eos_id=-1,
        unk_id=0,
        minloglevel=2,
    )
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    return [processor.id_to_piece(number) for number in range(1, processor.get_piece_size())]
