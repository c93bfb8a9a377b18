"""Text to token ids, for training: the inverse of spelling, from the token table alone."""

from __future__ import annotations

from jaxasr.text.tokens import MARK, TokenTable


class TextEncoder:
    """Byte-pair encoding by the order of a table's ids, which is the order in which its pieces were merged.

    Every word is written "▁word" where the table has pieces that begin with the mark; otherwise white space between
    words is dropped, as in tables of single characters. Then, as in SentencePiece's BPE, of all neighbours that make a
    piece those of the lowest id are joined first, the leftmost of several, until none do.
    """

    def __init__(self, tokens: TokenTable) -> None:
        self.tokens = tokens
        self._marked = any(piece.startswith(MARK) for piece in tokens.pieces)
        self._words: dict[str, tuple[list[int], str]] = {}

    def __call__(self, text: str) -> tuple[list[int], str]:
        """Ids of `text`, and the characters that the table cannot write ("" if it can all), each once, sorted."""
        ids: list[int] = []
        missing: set[str] = set()
        for word in text.split():
            if word not in self._words:
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
