"""Files and folders appear whole or not at all; hashes, yaml, and errors in one line."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

import pytest

from jaxasr.errors import ConfigError, ModelError
from jaxasr.files import file_hash, read_yaml, reason, refuse_pointer, replacing_file, writing_file, writing_folder

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 262144000\n"


def test_a_git_lfs_pointer_is_refused_whatever_its_name(tmp_path: Path) -> None:
    (tmp_path / "any.yaml").write_bytes(POINTER)
    for refuse in (lambda path: refuse_pointer(path, ConfigError), read_yaml):
        with pytest.raises(ConfigError, match=r"any\.yaml: a git-lfs pointer .*: run `git lfs pull`"):
            refuse(tmp_path / "any.yaml")
    (tmp_path / "talks of it.md").write_bytes(b"The version https://git-lfs.github.com/spec/v1 is a pointer")
    os.mkfifo(tmp_path / "pipe")
    for harmless in ("talks of it.md", "pipe", "absent", ""):
        refuse_pointer(tmp_path / harmless, ConfigError)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "out.txt"
    target.write_text("old")
    with writing_file(target) as write:
        write("é\n")
        write("\udce9")
        assert target.read_text() == "old"
    assert target.read_bytes() == "é\n".encode() + b"\xe9"
    assert names(tmp_path) == ["out.txt"]


def test_a_failure_leaves_the_old_file_alone(tmp_path: Path) -> None:
    (tmp_path / "out.txt").write_text("old")
    with pytest.raises(KeyboardInterrupt), writing_file(tmp_path / "out.txt") as write:
        write("half")
        raise KeyboardInterrupt
    assert names(tmp_path) == ["out.txt"] and (tmp_path / "out.txt").read_text() == "old"


def test_bytes_are_replaced_in_one_piece(tmp_path: Path) -> None:
    target = tmp_path / "bytes"
    for content in (b"old", b"new", b""):
        with replacing_file(target) as file:
            file.write(content)
        assert target.read_bytes() == content and names(tmp_path) == ["bytes"]
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError), replacing_file(tmp_path / "folder") as file:
        file.write(b"new")
    with pytest.raises(KeyboardInterrupt), replacing_file(target) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert target.read_bytes() == b""
    assert names(tmp_path) == ["bytes", "folder"]


def test_a_link_is_kept_and_a_pipe_is_written_to(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "file")
    with writing_file(tmp_path / "link") as write:
        write("text")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "file").read_text() == "text"
    with writing_file(os.devnull) as write:
        write("text")
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


@pytest.mark.parametrize("error", [ConfigError, ModelError])
def test_what_cannot_be_written_is_named(tmp_path: Path, error: type[ConfigError]) -> None:
    with pytest.raises(error, match="absent/out.txt: cannot be written \\(No such file"):
        with writing_file(tmp_path / "absent" / "out.txt", error):
            pass
    (tmp_path / "file").write_text("")
    with pytest.raises(error, match="file/out: cannot be written"), writing_folder(tmp_path / "file" / "out", error):
        pass


def test_errors_of_others_pass_through(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), writing_file(tmp_path / "out.txt"):
        open(tmp_path / "absent")  # noqa: SIM115
    assert names(tmp_path) == []


def test_a_folder_replaces_the_old_one_or_leaves_it(tmp_path: Path) -> None:
    for text in ("old", "new"):
        with writing_folder(tmp_path / "out") as folder:
            (folder / text).write_text(text)
            assert folder != tmp_path / "out"
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["new"]
    for fault in (KeyboardInterrupt(), OSError(28, "No space left on device")):
        with pytest.raises((KeyboardInterrupt, ConfigError)), writing_folder(tmp_path / "out") as folder:
            (folder / "half").write_text("")
            raise fault
        assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["new"]


def test_a_hash_is_that_of_the_content(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content" * 100_000)
    assert file_hash(tmp_path / "file") == hashlib.sha256(b"content" * 100_000).hexdigest()


def test_yaml(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("a: [1, x]", encoding="utf-8")
    assert read_yaml(path) == {"a": [1, "x"]}
    for content in (b"a: [", b"[" * 5000, b"\xff\xfe\x00"):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match="config.yaml"):
            read_yaml(path)
    with pytest.raises(ConfigError, match="absent.yaml cannot be read"):
        read_yaml(tmp_path / "absent.yaml")


def test_errors_in_one_line() -> None:
    assert reason(ValueError(" first\nsecond")) == "first second"
    assert reason(ValueError()) == "ValueError"
    assert reason(FileNotFoundError(2, "No such file", "x")) == "No such file"
    assert len(reason(ValueError("x" * 1000))) == 200
