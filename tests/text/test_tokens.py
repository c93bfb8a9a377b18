"""The token table: every form of tokens.txt that publishers write, and one line for every broken one."""

from __future__ import annotations

from pathlib import Path

import pytest

from jaxasr.errors import CheckpointError
from jaxasr.text.tokens import TokenTable


def read(folder: Path, content: bytes | str, size: int | None = None) -> TokenTable:
    path = folder / "tokens.txt"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return TokenTable.read(path, size)


@pytest.mark.parametrize(
    ("content", "pieces"),
    [
        ("<blk> 0\n▁A 1\nB 2\n", ("<blk>", "▁A", "B")),
        ("<blk>\t0\n▁A\t1\nB\t2", ("<blk>", "▁A", "B")),  # reazonspeech: tabs, no newline at the end
        ("\ufeff<blk> 0\r\n▁A \t 1\r\nB 2\r\n\r\n", ("<blk>", "▁A", "B")),
        ("B 2\n<blk> 0\n▁A 1\n", ("<blk>", "▁A", "B")),
        ("<blk> 0\n  1\n2\n", ("<blk>", " ", None)),
        ("<blk> 0\na b 1\n5 2\n", ("<blk>", "a b", "5")),
        ("<blk> 0\n\u3000 1\n\u2028 2\n\u0085x 3\n\u00a0 4\n", ("<blk>", "\u3000", "\u2028", "\u0085x", "\u00a0")),
    ],
)
def test_forms_of_the_file(tmp_path: Path, content: str, pieces: tuple[str | None, ...]) -> None:
    # A line that holds only a number is a lone space, as sherpa-onnx reads it.
    assert read(tmp_path, content).pieces == tuple(" " if piece is None else piece for piece in pieces)


def test_the_vocabulary_cuts_disambiguation_symbols(tmp_path: Path) -> None:
    content = "<blk> 0\nA 1\n#0 2\n#1 3\n"
    assert read(tmp_path, content, 2).pieces == ("<blk>", "A")
    assert len(read(tmp_path, content)) == 4
    assert read(tmp_path, content, 3).pieces == ("<blk>", "A", "#0")


@pytest.mark.parametrize(
    ("content", "size", "says"),
    [
        ("<blk> 0\nA 1\nB 1\n", None, "line 3 repeats id 1"),
        ("<blk> 0\nA 2\n", None, "first id without one is 1"),
        ("<blk> 0\nA 999999999\n", None, "first id without one is 1"),
        ("<blk> 0\nA 1\n", 3, "has 2 tokens where 3 are needed"),
        ("<blk> 0\nA 1\n#0 2\n", 4, "has 3 tokens where 4 are needed"),
        ("<blk> 0\nA 1\nB 2\n", 2, "vocabulary ends at 2"),
        ("<blk> 0\nA one\n", None, 'line 2 is not "piece id"'),
        ("<blk> 0\nA -1\n", None, "line 2 is not"),
        ("<blk> 0\nA " + "1" * 5000 + "\n", None, "line 2 is not"),
        ("", None, "holds no tokens"),
        (b"<blk> 0\n\xe3\x81 1\n", None, "UTF-8"),
        (b"PK\x03\x04\x80\xff", None, "UTF-8"),
    ],
)
def test_broken_tables_are_one_line(tmp_path: Path, content: bytes | str, size: int | None, says: str) -> None:
    with pytest.raises(CheckpointError, match="tokens.txt") as caught:
        read(tmp_path, content, size)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unreadable_paths(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.txt", tmp_path):
        with pytest.raises(CheckpointError, match="cannot be read") as caught:
            TokenTable.read(path)
        assert str(path) in str(caught.value)


def test_names_are_looked_up(tmp_path: Path) -> None:
    table = read(tmp_path, "<blk>\t0\nあ\t1\n<unk>\t2\n<sos/eos>\t3")
    assert (table.blank_id, table.unk_id, table.id_of("あ"), table.id_of("い")) == (0, 2, 1, None)
    assert (table[3], len(table)) == ("<sos/eos>", 4)
    assert TokenTable(("a", "b", "a")).id_of("a") == 0
    assert TokenTable(("a",)).unk_id is None and TokenTable(("a",)).blank_id is None
    for out_of_range in (-1, 4):
        with pytest.raises(IndexError):
            table[out_of_range]


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    table = TokenTable(("<blk>", " ", "▁A", "a b", "\u3000", "5", "\u2028x", "é"))
    path = tmp_path / "tokens.txt"
    table.write(path)
    assert TokenTable.read(path) == table
    assert path.read_bytes().startswith(b"<blk> 0\n  1\n")
    first = path.read_bytes()
    TokenTable.read(path).write(path)
    assert path.read_bytes() == first


@pytest.mark.parametrize("piece", ["", "\n", "a ", "\ta", "a\nb"])
def test_a_piece_that_would_change_is_not_written(tmp_path: Path, piece: str) -> None:
    with pytest.raises(ValueError, match="token 1"):
        TokenTable(("<blk>", piece)).write(tmp_path / "tokens.txt")
    assert not (tmp_path / "tokens.txt").exists()


def test_byte_coding_is_told_from_the_whole_table() -> None:
    bytes_in_order = tuple(f"<0x{byte:02X}>" for byte in range(256))
    assert TokenTable(("<blk>", *bytes_in_order, "▁A")).byte_coding == "fallback"
    swapped = bytes_in_order[:65] + bytes_in_order[66:64:-1] + bytes_in_order[67:]
    assert TokenTable(("<blk>", *swapped)).byte_coding == "none"
    assert TokenTable(("<blk>", *bytes_in_order[1:])).byte_coding == "none"
    assert TokenTable(("<blk>", "▁ƌţ", "Ʀ", "A")).byte_coding == "byte_bpe"
    assert TokenTable(("<blk>", "▁▁ƌ", "Ʀ")).byte_coding == "none"
    assert TokenTable(("<blk>", "▁A", "é")).byte_coding == "none"
    assert TokenTable(("<blk>", "Ʀ", "世")).byte_coding == "none"


def test_golden_tables(shared: Path) -> None:
    sizes = {"zipformer-tiny": 48, "zipformer-ja-tiny": 51, "zipformer-streaming-tiny": 48, "zipformer-ctc-tiny": 48}
    for name, size in sizes.items():
        table = TokenTable.read(shared / "golden" / name / "tokens.txt", size)
        assert len(table) == size
        assert table.blank_id == 0 and table.unk_id is not None
        assert table.byte_coding == "none"
