"""Published checkpoints by name: where each lies on the hub, which commit and hashes are pinned, its licence.

A revision or hash stands here only where public documents state it for the hub's own copy of the file. `None` means
that none was known when the table was written: the first download then takes the newest commit, is checked against
the hash that the hub states, and is pinned in the user's cache (downloads.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class PublishedFile:
    """One file of a hub repository: its path there, size in bytes and sha256 in hex, where known."""

    path: str
    size: int | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class PublishedModel:
    """One published checkpoint: `name` is ours, `repository` the hub's org/name, `revision` a whole commit id."""

    name: str
    repository: str
    revision: str | None
    licence: str  # as the repository states it; "not stated" where it states none, _LOOK_THERE where we do not know
    family: str  # of converters, a name of FAMILIES
    config: str | None  # NAME of configs/, where the checkpoint does not say everything
    files: Mapping[str, tuple[PublishedFile, ...]]  # precision -> the files that make a whole checkpoint


_REAZON_TOKENS = PublishedFile("tokens.txt", 45754, "2c3ac659818a48a0c04010e0593bbc4d7c8a24a054340b01131499c05fd52def")
_REAZON_DECODER = PublishedFile(
    "decoder-epoch-99-avg-1.onnx", 11767836, "58b18211ae06265466bfa17172dab574df94f76c8bcb61a3640c28ba860e4124"
)
_REAZON_ENCODER_INT8 = PublishedFile(
    "encoder-epoch-99-avg-1.int8.onnx", 154670139, "2c7bd08a8a99f9ddd0d9e458456577b1f6279214e51426f114f9eced44c54e1d"
)
_REAZON_JOINER_INT8 = PublishedFile(
    "joiner-epoch-99-avg-1.int8.onnx", 2696970, "49cc7ea1d3d35a40a27442db5e89996da64bf0e683a903dce76e99e57a12e4de"
)
_LOOK_THERE = "see the repository"  # for its licence
# The 500 BPE tokens that every LibriSpeech model of the recipe shares.
_LIBRISPEECH_TOKENS = "49e3c2646595fd907228b3c6787069658f67b17377c60aeb8619c4551b2316fb"


def _trio(stem: str) -> dict[str, tuple[PublishedFile, ...]]:
    """The files of a transducer export whose sizes and hashes are not known, in every precision."""
    encoder, decoder, joiner = (PublishedFile(f"{part}-{stem}.onnx") for part in ("encoder", "decoder", "joiner"))
    encoder8, decoder8, joiner8 = (
        PublishedFile(f"{part}-{stem}.int8.onnx") for part in ("encoder", "decoder", "joiner")
    )
    tokens = PublishedFile("tokens.txt")
    return {
        "float32": (encoder, decoder, joiner, tokens),
        "int8": (encoder8, decoder8, joiner8, tokens),
        "int8-fp32": (encoder8, decoder, joiner8, tokens),
    }


def _pretrained(sha256: str | None = None) -> dict[str, tuple[PublishedFile, ...]]:
    """A training checkpoint as the LibriSpeech recipes publish it: float32 only, tokens in another folder."""
    return {
        "float32": (
            PublishedFile("exp/pretrained.pt", sha256=sha256),
            PublishedFile("data/lang_bpe_500/tokens.txt", 5048, _LIBRISPEECH_TOKENS),
        )
    }


MODELS: tuple[PublishedModel, ...] = (
    PublishedModel(
        "reazonspeech-k2-v2",
        "reazon-research/reazonspeech-k2-v2",
        "291488c8151be24d7da4bf7af26e533fad96e407",
        "Apache-2.0",
        "icefall",
        "reazonspeech_k2_v2",
        {
            "float32": (
                PublishedFile(
                    "encoder-epoch-99-avg-1.onnx",
                    592347848,
                    "ecdb0b771e16104aaf8e579cb3c1e32fbd589eb641c5946d82b615bd366c5f96",
                ),
                _REAZON_DECODER,
                PublishedFile(
                    "joiner-epoch-99-avg-1.onnx",
                    10720115,
                    "d38a81d1191c9ed6de6a1719503692e07e3e973e2364adde0abae5eaaded1174",
                ),
                _REAZON_TOKENS,
            ),
            "int8": (
                _REAZON_ENCODER_INT8,
                PublishedFile(
                    "decoder-epoch-99-avg-1.int8.onnx",
                    2959337,
                    "8f0bff94d38797b03b762634ed03211a8e303d06cc4603cdd0cf4199d6eb1485",
                ),
                _REAZON_JOINER_INT8,
                _REAZON_TOKENS,
            ),
            "int8-fp32": (_REAZON_ENCODER_INT8, _REAZON_DECODER, _REAZON_JOINER_INT8, _REAZON_TOKENS),
        },
    ),
    # The publisher's own repository of this model is reported as no longer public; this is the copy by the author
    # of sherpa-onnx. It states no licence.
    PublishedModel(
        "reazonspeech-k2-v2-ja-en",
        "csukuangfj/reazonspeech-k2-v2-ja-en",
        None,
        "not stated",
        "icefall",
        "reazonspeech_k2_v2_ja_en",
        _trio("epoch-35-avg-1"),
    ),
    PublishedModel(
        "librispeech-zipformer-small",
        "csukuangfj/sherpa-onnx-zipformer-small-en-2023-06-26",
        "e8add5377a6cb7b629b5a0e08d6afe7a73442814",
        "Apache-2.0",
        "icefall",
        "librispeech_zipformer_small",
        _trio("epoch-99-avg-1")
        | {
            "int8": (
                PublishedFile(
                    "encoder-epoch-99-avg-1.int8.onnx",
                    26015366,
                    "3a6ac78a31cc2c60ca8c1e2e2f43c878fbbcaf051ada4900e0a42ef8ba53d375",
                ),
                PublishedFile(
                    "decoder-epoch-99-avg-1.int8.onnx",
                    1307236,
                    "f462ab9189ba6f9b2658774e6bf3d651913de54a3833655dc5e093e2f5e4c2b6",
                ),
                PublishedFile(
                    "joiner-epoch-99-avg-1.int8.onnx",
                    259335,
                    "6b183b6ec656e4d3ca6b86d0aeca992dac14df80aae6b416d7c068d0ff2bd4d7",
                ),
                PublishedFile("tokens.txt", 5048, _LIBRISPEECH_TOKENS),
            )
        },
    ),
    PublishedModel(
        "librispeech-zipformer-medium",
        "csukuangfj/sherpa-onnx-zipformer-en-2023-06-26",
        "11a70a47ec5fd969c17b8d0818681d222a147781",
        "Apache-2.0",
        "icefall",
        "librispeech_zipformer_medium",
        _trio("epoch-99-avg-1"),
    ),
    PublishedModel(
        "librispeech-zipformer-large",
        "csukuangfj/sherpa-onnx-zipformer-large-en-2023-06-26",
        None,
        "Apache-2.0",
        "icefall",
        "librispeech_zipformer_large",
        _trio("epoch-99-avg-1"),
    ),
    # The hub's copy is a later export than the archive of the same name on other sites: other sizes, other hashes.
    PublishedModel(
        "librispeech-zipformer-medium-streaming",
        "csukuangfj/sherpa-onnx-streaming-zipformer-en-2023-06-26",
        "672fbf1b30579d6585301139bb363f42a0ad4a24",
        "Apache-2.0",
        "icefall",
        "librispeech_zipformer_medium_streaming",
        {
            "float32": (
                PublishedFile(
                    "encoder-epoch-99-avg-1-chunk-16-left-128.onnx",
                    262127043,
                    "a423883ce5754507fd941755ab0b5bc426a84ac670cbe21cf060e9e2c66dc660",
                ),
                PublishedFile(
                    "decoder-epoch-99-avg-1-chunk-16-left-128.onnx",
                    2092621,
                    "7bf787f90b194b307e5a4ad6a34fadb4e748304c35f78a8d66358a05b13ee6ef",
                ),
                PublishedFile(
                    "joiner-epoch-99-avg-1-chunk-16-left-128.onnx",
                    1026405,
                    "210591f72b3c56b8364f85f345dca240bc2b4c00632848f4aa923630d5639d3b",
                ),
                PublishedFile("tokens.txt", 5048, _LIBRISPEECH_TOKENS),
            ),
            "int8": (
                PublishedFile(
                    "encoder-epoch-99-avg-1-chunk-16-left-128.int8.onnx",
                    71083163,
                    "563fde436d16cf7607cf408cd6b30909819d03162652ef389c2450ced3f45ac1",
                ),
                PublishedFile(
                    "decoder-epoch-99-avg-1-chunk-16-left-128.int8.onnx",
                    1307236,
                    "98da299f471e38bb4e1a8df579b8cc9122d6039576a77e357b3c60f17dd83b02",
                ),
                PublishedFile(
                    "joiner-epoch-99-avg-1-chunk-16-left-128.int8.onnx",
                    259335,
                    "d944208d660d67c8d72cd2acaeac971fa5ceb8c80e76c1968148846fedd6e297",
                ),
                PublishedFile("tokens.txt", 5048, _LIBRISPEECH_TOKENS),
            ),
        },
    ),
    PublishedModel(
        "librispeech-zipformer-medium-ctc",
        "csukuangfj/sherpa-onnx-zipformer-ctc-en-2023-10-02",
        None,
        "Apache-2.0",
        "icefall",
        "librispeech_zipformer_medium_ctc",
        {
            "float32": (PublishedFile("model.onnx"), PublishedFile("tokens.txt")),
            "int8": (PublishedFile("model.int8.onnx"), PublishedFile("tokens.txt")),
        },
    ),
    # Conformers, exported by the author of sherpa-onnx. Where no public document that we know quotes a licence, the
    # repository's own page is the place to look.
    PublishedModel(
        "librispeech-icefall-conformer",
        "csukuangfj/sherpa-onnx-conformer-en-2023-03-18",
        None,
        _LOOK_THERE,
        "icefall",
        "librispeech_icefall_conformer",
        _trio("epoch-99-avg-1"),
    ),
    PublishedModel(
        "wenetspeech-icefall-conformer",
        "csukuangfj/sherpa-onnx-conformer-zh-stateless2-2023-05-23",
        "735a88ef19ebf2db4ba8d39419214b686b2045a8",
        "Apache-2.0",
        "icefall",
        "wenetspeech_icefall_conformer",
        _trio("epoch-99-avg-1"),
    ),
    PublishedModel(
        "wenetspeech-icefall-conformer-base",
        "csukuangfj/sherpa-onnx-conformer-zh-2023-05-23",
        None,
        _LOOK_THERE,
        "icefall",
        "wenetspeech_icefall_conformer_base",
        _trio("epoch-99-avg-1"),
    ),
    PublishedModel(
        "wenetspeech-icefall-conformer-base-streaming",
        "csukuangfj/sherpa-onnx-streaming-conformer-zh-2023-05-23",
        None,
        _LOOK_THERE,
        "icefall",
        "wenetspeech_icefall_conformer_base_streaming",
        _trio("epoch-99-avg-1"),
    ),
    # The training checkpoints of the Zipformers above, by the recipe's authors; these repositories state no licence.
    PublishedModel(
        "icefall-librispeech-zipformer-small",
        "Zengwei/icefall-asr-librispeech-zipformer-small-2023-05-16",
        None,
        "not stated",
        "icefall",
        "librispeech_zipformer_small",
        _pretrained(),
    ),
    PublishedModel(
        "icefall-librispeech-zipformer-medium",
        "Zengwei/icefall-asr-librispeech-zipformer-2023-05-15",
        "d8bdbc60b27c21133fd4097222ad5f80bfac9f0d",
        "not stated",
        "icefall",
        "librispeech_zipformer_medium",
        _pretrained(),
    ),
    PublishedModel(
        "icefall-librispeech-zipformer-large",
        "Zengwei/icefall-asr-librispeech-zipformer-large-2023-05-16",
        None,
        "not stated",
        "icefall",
        "librispeech_zipformer_large",
        _pretrained(),
    ),
    PublishedModel(
        "icefall-librispeech-zipformer-medium-streaming",
        "Zengwei/icefall-asr-librispeech-streaming-zipformer-2023-05-17",
        "37cb5606808f3d5e55a3fc73554bdf757d82465a",
        "not stated",
        "icefall",
        "librispeech_zipformer_medium_streaming",
        _pretrained("e44bb7c8d3985a7cf0089020d227aecd71e323dcaaabcaed90e4a792e1385342"),
    ),
    PublishedModel(
        "icefall-librispeech-zipformer-medium-ctc",
        "Zengwei/icefall-asr-librispeech-zipformer-transducer-ctc-2023-06-13",
        None,
        "not stated",
        "icefall",
        "librispeech_zipformer_medium_ctc",
        _pretrained(),
    ),
    # A detector of speech, for `--vad`. Its revision and hashes are those that several public projects pin.
    PublishedModel(
        "fsmn-vad",
        "funasr/fsmn-vad",
        "df20e6b30c653645fa4ff125cacfcabd1020a669",
        "Apache-2.0",
        "funasr",
        None,
        {
            "float32": (
                PublishedFile("model.pt", 1721366, "b3be75be477f0780277f3bae0fe489f48718f585f3a6e45d7dd1fbb1a4255fc5"),
                PublishedFile("config.yaml", 1215, "486861ca26ddb79081663b6179cb204c6bfae71c52f04aafc48a9e9d8dde1e93"),
                PublishedFile("am.mvn", 8033, "df189fd5f4352df84a0fd464eeab4e450a5e645665d6b38f13c832492261a739"),
            ),
        },
    ),
)
