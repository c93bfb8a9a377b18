"""Text to token ids, for training: the inverse of spelling, from the token table alone."""

from __future__ import annotations

import itertools

from jaxasr.text.tokens import MARK, TokenTable

CONTINUED = "@@"  # ends the pieces of a word but for its last, in tables of subword-nmt's kind


class TextEncoder:
    """Byte-pair encoding by the order of a table's ids, which is the order in which its pieces were merged.

    Every word is written "▁word" where the table has pieces that begin with the mark; otherwise white space between
    words is dropped, as in tables of single characters. Then, as in SentencePiece's BPE, of all neighbours that make a
    piece those of the lowest id are joined first, the leftmost of several, until none do.

    In a table whose pieces end in "@@" where their word goes on, a word is written with the fewest pieces, and Chinese
    characters stand alone.
    """

    def __init__(self, tokens: TokenTable) -> None:
        self.tokens = tokens
        self._marked = any(piece.startswith(MARK) for piece in tokens.pieces)
        self._continued = any(piece.endswith(CONTINUED) for piece in tokens.pieces)
        self._words: dict[str, tuple[list[int], str]] = {}

    def __call__(self, text: str) -> tuple[list[int], str]:
        """Ids of `text`, and the characters that the table cannot write ("" if it can all), each once, sorted."""
        ids: list[int] = []
        missing: set[str] = set()
        for word in text.split():
            if word not in self._words:
                if self._continued:
                    self._words[word] = self._continue(word)
                else:
                    self._words[word] = self._encode(MARK + word if self._marked else word)
            found, lacking = self._words[word]
            ids += found
            missing.update(lacking)
        return ids, "".join(sorted(missing))

    def _encode(self, word: str) -> tuple[list[int], str]:
        pieces = list(word)
        while len(pieces) > 1:
            ranks = [self.tokens.id_of(a + b) for a, b in zip(pieces, pieces[1:], strict=False)]
            known = [(rank, at) for at, rank in enumerate(ranks) if rank is not None]
            if not known:
                break
            _, at = min(known)
            pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]
        ids = [self.tokens.id_of(piece) for piece in pieces]
        lacking = "".join(piece for piece, found in zip(pieces, ids, strict=True) if found is None)
        return [found for found in ids if found is not None], lacking

    def _continue(self, text: str) -> tuple[list[int], str]:
        """Pieces of Chinese characters, and of the words between them."""
        ids: list[int] = []
        lacking = ""
        for chinese, run in itertools.groupby(text, lambda character: "\u4e00" <= character <= "\u9fff"):
            for word in run if chinese else ["".join(run)]:
                found = self._fewest(word)
                ids += found or []
                lacking += "" if found is not None else word
        return ids, lacking

    def _fewest(self, word: str) -> list[int] | None:
        """The fewest pieces that a word can be written with, the longest first; None where it cannot."""
        ways: list[list[int] | None] = [None] * len(word) + [[]]  # from each place to the end
        for begin in reversed(range(len(word))):
            for end in reversed(range(begin + 1, len(word) + 1)):
                rest = ways[end]
                piece = self.tokens.id_of(word[begin:end] + (CONTINUED if end < len(word) else ""))
                best = ways[begin]
                if piece is not None and rest is not None and (best is None or 1 + len(rest) < len(best)):
                    ways[begin] = [piece, *rest]
        return ways[0]
