"""The ONNX reader: every encoding of a tensor, the goldens, and files that are damaged or made to do harm."""

from __future__ import annotations

import itertools
import os
import random
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxasr.convert.formats.onnx import files
from jaxasr.convert.formats.onnx.files import OnnxGraph, read_onnx
from jaxasr.errors import CheckpointError
from onnx_writer import field, graph, model, node, tensor, value_info, varint


def read(tmp_path: Path, data: bytes) -> OnnxGraph:
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    return read_onnx(path)


def refusal(tmp_path: Path, data: bytes) -> str:
    """The one line with which reading `data` and all its tensors ends."""
    with pytest.raises(CheckpointError) as caught:
        decode_all(read(tmp_path, data))
    message = str(caught.value)
    assert "\n" not in message and str(tmp_path / "model.onnx") in message
    return message


def decode_all(model_graph: OnnxGraph) -> None:
    for stored in (*model_graph.initializers.values(), *model_graph.constants.values()):
        if stored.decodable:
            stored.array()


# What is read -------------------------------------------------------------------------------------------------------


def test_a_graph_with_everything(tmp_path: Path) -> None:
    branch = graph(nodes=[node("Identity", ["h"], ["b"])], outputs=[value_info("b")])
    then = field(1, "then_branch") + field(6, branch) + field(20, 5)
    numbers = field(1, "perm") + b"".join(field(8, i) for i in (0, 2, 1)) + field(20, 7)
    scale = field(1, "alpha") + field(2, 0.5) + field(20, 1)
    constant = field(1, "value") + field(5, tensor("", np.float32([1, 2]))) + field(20, 4)
    made = read(
        tmp_path,
        model(
            graph(
                nodes=[
                    node("Constant", [], ["c"], constant),
                    node("Gemm", ["x", "", "w"], ["h"], numbers, scale),
                    node("If", ["h"], ["y"], then, domain="ai.onnx"),
                ],
                initializers=[tensor("w", np.arange(6, dtype="<f4").reshape(2, 3))],
                inputs=[value_info("x", "N", 45, 80)],
                outputs=[value_info("y", 1, "T")],
            ),
            metadata={"model_type": "zipformer2", "comment": "é, T=45"},
        ),
    )
    assert made.inputs == {"x": ("N", 45, 80)} and made.outputs == {"y": (1, "T")}
    assert made.metadata == {"model_type": "zipformer2", "comment": "é, T=45"}
    gemm, condition = made.nodes[1:]
    assert gemm.inputs == ("x", "", "w") and gemm.attributes == {"perm": (0, 2, 1), "alpha": 0.5}
    assert condition.attributes["then_branch"].nodes[0].op_type == "Identity"
    np.testing.assert_array_equal(made.constants["c"].array(), np.float32([1, 2]))
    np.testing.assert_array_equal(made.initializers["w"].array(), [[0, 1, 2], [3, 4, 5]])


def test_raw_data_is_a_view_of_the_file(tmp_path: Path) -> None:
    weights = np.random.default_rng(0).normal(size=(64, 32)).astype("<f4")
    array = read(tmp_path, model(graph(initializers=[tensor("w", weights)]))).initializers["w"].array()
    np.testing.assert_array_equal(array, weights)
    assert not array.flags.owndata and not array.flags.writeable


def packed(number: int, *values: int) -> bytes:
    return field(number, b"".join(map(varint, values)))


HALF = np.float16([1.5, -2.25, np.inf])
BFLOAT = np.float32([1.5, -2.25, 3e38]).view(np.uint32) >> 16


@pytest.mark.parametrize(
    ("data_type", "content", "expected"),
    [
        (1, field(4, struct.pack("<3f", 1, -2, 0.5)), np.float32([1, -2, 0.5])),
        (1, b"".join(field(4, value) for value in (1.0, -2.0, 0.5)), np.float32([1, -2, 0.5])),
        (1, field(9, np.float32([1, -2, 0.5]).tobytes()), np.float32([1, -2, 0.5])),
        (2, packed(5, 0, 200, 255), np.uint8([0, 200, 255])),
        (3, packed(5, 0, -128, 127), np.int8([0, -128, 127])),
        (3, field(9, b"\x00\x80\x7f"), np.int8([0, -128, 127])),
        (4, packed(5, 0, 65535, 7), np.uint16([0, 65535, 7])),
        (5, packed(5, 0, -32768, 7), np.int16([0, -32768, 7])),
        (6, packed(5, 0, -(2**31), 7), np.int32([0, -(2**31), 7])),
        (6, b"".join(field(5, value) for value in (0, -1, 7)), np.int32([0, -1, 7])),
        (7, packed(7, 0, -(2**63), 2**63 - 1), np.int64([0, -(2**63), 2**63 - 1])),
        (9, packed(5, 0, 1, 1), np.bool_([0, 1, 1])),
        (10, packed(5, *HALF.view(np.uint16).tolist()), HALF),
        (10, field(9, HALF.tobytes()), HALF),
        (11, field(10, struct.pack("<3d", 1, -2, 1e300)), np.float64([1, -2, 1e300])),
        (12, packed(11, 0, 2**32 - 1, 7), np.uint32([0, 2**32 - 1, 7])),
        (13, packed(11, 0, 2**64 - 1, 7), np.uint64([0, 2**64 - 1, 7])),
        (16, packed(5, *BFLOAT.tolist()), (BFLOAT << 16).view(np.float32)),
        (16, field(9, BFLOAT.astype("<u2").tobytes()), (BFLOAT << 16).view(np.float32)),
    ],
)
def test_every_encoding_of_a_tensor(tmp_path: Path, data_type: int, content: bytes, expected: np.ndarray) -> None:
    proto = field(1, 3) + field(2, data_type) + field(8, "t") + content
    array = read(tmp_path, model(graph(initializers=[proto]))).initializers["t"].array()
    assert array.dtype == expected.dtype
    np.testing.assert_array_equal(array, expected)


def test_scalars_empty_tensors_and_plain_numbers(tmp_path: Path) -> None:
    numbers = [
        ("value_float", field(2, 0.5), np.float32(0.5)),
        ("value_int", field(3, -7), np.int64(-7)),
        ("value_floats", field(7, struct.pack("<2f", 1, 2)), np.float32([1, 2])),
        ("value_ints", field(8, 3) + field(8, 4), np.int64([3, 4])),
    ]
    nodes = [node("Constant", [], [kind], field(1, kind) + content) for kind, content, _ in numbers]
    made = read(
        tmp_path, model(graph(nodes, [tensor("scalar", np.float32(2)), tensor("empty", np.zeros((0, 3), "<f4"))]))
    )
    assert made.initializers["scalar"].array().shape == () and made.initializers["empty"].array().shape == (0, 3)
    for kind, _, expected in numbers:
        array = made.constants[kind].array()
        assert array.dtype == expected.dtype and np.array_equal(array, expected)


def test_fields_that_a_newer_onnx_may_add_are_passed_over(tmp_path: Path) -> None:
    unknown = field(99, b"\xff\xff not a message") + field(100, 5) + field(101, 1.0)
    made = read(tmp_path, model(graph(initializers=[tensor("w", np.float32([1])) + unknown]) + unknown) + unknown)
    assert made.initializers["w"].array().tolist() == [1]


def test_the_goldens_are_read(shared: Path) -> None:
    models = sorted((shared / "golden").glob("*/*.onnx"))
    assert models
    for file in models:
        made = read_onnx(file)
        assert made.nodes and made.initializers
        decode_all(made)


def test_a_known_file_tensor_by_tensor(shared: Path) -> None:
    made = read_onnx(shared / "golden/zipformer-tiny/joiner-epoch-2-avg-1.onnx")
    assert [node.op_type for node in made.nodes] == ["Add", "Tanh", "Gemm"]
    assert made.nodes[2].attributes == {"alpha": 1.0, "beta": 1.0, "transB": 1}
    assert made.inputs == {"encoder_out": ("N", 36), "decoder_out": ("N", 36)} and made.outputs == {"logit": ("N", 48)}
    assert made.metadata == {"joiner_dim": "36"}
    trace = np.load(shared / "golden/zipformer-tiny/decoder_joiner.npz")
    weight = made.initializers["output_linear.weight"].array()
    bias = made.initializers["output_linear.bias"].array()
    assert weight.shape == (48, 36) and bias.shape == trace["joiner_logits"].shape[-1:]


# What is refused ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "saying"),
    [
        (b"", "ONNX"),
        (b"\0", "ONNX"),
        (b"PK\x03\x04 a zip", "ONNX"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"\x80\x02.", "ONNX"),
        (b"{}" * 99, "ONNX"),
    ],
)
def test_foreign_files(tmp_path: Path, data: bytes, saying: str) -> None:
    assert saying in refusal(tmp_path, data)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.onnx", tmp_path):
        with pytest.raises(CheckpointError, match="cannot be read|regular file"):
            read_onnx(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes are of POSIX")
def test_a_named_pipe_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.onnx")
    with pytest.raises(CheckpointError, match="regular file"):
        read_onnx(tmp_path / "pipe.onnx")


def test_truncation_at_every_byte_of_a_small_model(tmp_path: Path) -> None:
    whole = model(
        graph(
            [node("Gemm", ["x", "w"], ["y"], field(1, "transB") + field(3, 1))],
            [tensor("w", np.float32([[1, 2], [3, 4]]))],
            [value_info("x", "N", 2)],
            [value_info("y", "N", 2)],
        )
    )
    graph_end = len(field(1, 7) + field(2, "tests")) + len(whole) - len(model(b"")) + 3
    for length in range(graph_end - 1):
        assert refusal(tmp_path, whole[:length])
    decode_all(read(tmp_path, whole))


def test_truncation_of_a_golden(shared: Path, tmp_path: Path) -> None:
    whole = (shared / "golden/zipformer-tiny/decoder-epoch-2-avg-1.onnx").read_bytes()
    for length in range(0, len(whole) - 200, 97):  # the last bytes are metadata, after which a graph is whole
        assert refusal(tmp_path, whole[:length])


NAN_SIZED = field(1, 3) + field(2, 1) + field(8, "t")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (model(graph(initializers=[NAN_SIZED + field(9, b"\0" * 11)])), "has 11 bytes"),
        (model(graph(initializers=[NAN_SIZED + field(7, b"\0" * 3)])), "int64_data"),
        (model(graph(initializers=[NAN_SIZED + field(4, b"\0" * 8)])), "has 8 bytes"),
        (model(graph(initializers=[field(1, 3) + field(2, 7) + packed(7, 1, 2)])), "has 2 integers"),
        (model(graph(initializers=[field(1, 3) + field(2, 7) + field(7, b"\1\1\xff")])), "damaged"),
        (model(graph(initializers=[NAN_SIZED + field(9, b"\0" * 12) * 2])), "more than one place"),
        (model(graph(initializers=[NAN_SIZED + field(9, b"\0" * 12) + field(4, b"\0" * 12)])), "more than one place"),
        (model(graph(initializers=[field(1, -3) + field(2, 1)])), "impossible sizes"),
        (model(graph(initializers=[field(1, 2**62) * 4 + field(2, 1)])), "impossible sizes"),
        (model(graph(initializers=[field(1, 1) * 33 + field(2, 1)])), "impossible sizes"),
        (model(graph(initializers=[tensor("w", np.float32(1))] * 2)), "'w' stands twice"),
        (model(graph(initializers=[field(8, "a" * 70_000)])), "a text or list of 70000 bytes"),
        (model(graph(initializers=[field(8, b"\xff\xfe")])), "not UTF-8"),
        (model(graph([node("Add\nAdd", [], ["c"])])), "not printable"),
        (model(graph(initializers=[field(8, "a" * 2000)])), "too long"),
        (model(graph()) + field(7, graph()), "two graphs"),
        (model(graph()) + field(14, field(1, "a")) * 2, "metadata entry 'a' stands twice"),
        (field(7, graph()), "no graph or no version"),
        (field(1, 7), "no graph or no version"),
        (model(field(15, b"")), "sparse"),
        (model(field(1, 5)), "a number where bytes belong"),
        (model(graph([node("Constant", [], ["c"])])), "0 values"),
        (b"\x0b" + model(graph()), "wire type 3"),
        (b"\x3a" + varint(2**60) + b"abc", "where 3 are left"),
        (b"\x08" + b"\xff" * 12, "64 bits"),
    ],
)
def test_damage_ends_in_one_line(tmp_path: Path, data: bytes, reason: str) -> None:
    assert reason in refusal(tmp_path, data)


def test_types_that_no_weight_has_are_told_when_asked_for(tmp_path: Path) -> None:
    made = read(tmp_path, model(graph(initializers=[field(1, 1) + field(2, 8) + field(6, b"text") + field(8, "s")])))
    assert not made.initializers["s"].decodable
    with pytest.raises(CheckpointError, match="unsupported ONNX type 8"):
        made.initializers["s"].array()


def test_nesting_ten_thousand_deep(tmp_path: Path) -> None:
    content = graph()
    for _ in range(10_000):
        content = graph([field(4, "If") + field(5, field(1, "then_branch") + field(6, content))])
    assert "nested" in refusal(tmp_path, model(content))


def test_nesting_in_unknown_fields_is_not_followed(tmp_path: Path) -> None:
    content = b""
    for _ in range(10_000):
        content = field(99, content)
    decode_all(read(tmp_path, model(graph()) + content))


def test_many_small_parts_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_PARTS", 1000)
    tensors = b"".join(field(5, field(8, f"t{i}")) for i in range(200))
    for content in (field(1, b"") * 200, field(1, field(1, "")) * 200, tensors):
        assert "too many parts" in refusal(tmp_path, model(content))
    attributes = field(1, "a") + packed(8, *[1] * 1500)
    assert "too many parts" in refusal(tmp_path, model(graph([field(5, attributes)])))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux' account of a process's memory")
def test_memory_for_a_file_of_empty_nodes_is_bounded(tmp_path: Path) -> None:
    (tmp_path / "empty.onnx").write_bytes(model(field(1, b"") * 30_000_000))  # 60 MB
    script = (
        "import re, sys\n"
        "from pathlib import Path\n"
        "from jaxasr.convert.formats.onnx.files import read_onnx\n"
        "from jaxasr.errors import CheckpointError\n"
        "try: read_onnx(sys.argv[1])\n"
        # Not getrusage's maximum, which begins with the memory of the process that started this one.
        "except CheckpointError as error:\n"
        "    print(error, int(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1]) // 1024)"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "empty.onnx"], capture_output=True, text=True, timeout=120, check=True
    )
    assert "too many parts" in run.stdout and int(run.stdout.split()[-1]) < 800


def test_reading_imports_nothing_heavy() -> None:
    script = (
        "import sys, jaxasr.convert.formats.onnx.files\n"
        "print(*(name for name in ('jax', 'flax', 'onnx', 'torch') if name in sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    assert run.stdout.strip() == ""


def test_only_checkpoint_errors_come_out_of_random_damage(shared: Path, tmp_path: Path) -> None:
    generator = random.Random(20240601)
    names = ["decoder-epoch-2-avg-1.onnx", "decoder-epoch-2-avg-1.int8.onnx", "joiner-epoch-2-avg-1.int8.onnx"]
    seeds = [(shared / "golden/zipformer-tiny" / name).read_bytes() for name in names]
    path, refused = tmp_path / "damaged.onnx", 0
    for data in itertools.islice(itertools.cycle(seeds), 600):
        path.write_bytes(damaged(bytearray(data), generator))
        try:
            decode_all(read_onnx(path))
        except CheckpointError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > 100


def damaged(data: bytearray, generator: random.Random) -> bytes:
    """A few bytes changed, flipped, put in, taken out or copied; half of them where the structure is dense."""
    for _ in range(generator.choice([1, 1, 2, 5, 20])):
        place = generator.randrange(len(data))
        if generator.random() < 0.5:
            place = max(len(data) - 1 - generator.randrange(3000), 0)
        match generator.randrange(6):
            case 0 | 1:
                data[place] = generator.randrange(256)
            case 2:
                data[place] ^= 1 << generator.randrange(8)
            case 3:
                del data[place : place + generator.randrange(1, 9)]
            case 4:
                data[place:place] = generator.randbytes(generator.randrange(1, 9))
            case 5:
                other = generator.randrange(len(data))
                data[place : place + 8] = data[other : other + 8]
        data = data or bytearray(1)
    return bytes(data)
