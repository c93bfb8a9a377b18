"""Makes the models and arrays of this folder with transformers, tokenizers and sentencepiece: `python make.py`.

The weights are random and the texts mean nothing. Every parameter and buffer is moved off its initial constant.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import sentencepiece
import soundfile
import tokenizers
import torch
from transformers import (
    ParakeetCTCConfig,
    ParakeetFeatureExtractor,
    ParakeetForCTC,
    ParakeetForRNNT,
    ParakeetForTDT,
    ParakeetProcessor,
    ParakeetRNNTConfig,
    ParakeetTDTConfig,
    ParakeetTokenizer,
)
from transformers.convert_slow_tokenizer import ParakeetConverter

HERE = Path(__file__).parent
PIECES = {"long": slice(None), "short": slice(20000, 25600), "second": slice(8000, 24000)}
TEXT = """the rain fell on the old station and the man was not ready
she said that the train near the harbour would leave at nine
we were told to wait, but nobody came before the evening
a small boat stood in the water and turned with the wind
is it far from here? it is not so far, said the driver
"""
WIDTH = 16


def encoder(bins: int, bias: bool, scale: bool) -> dict[str, Any]:
    return {
        "hidden_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 32,
        "conv_kernel_size": 9,
        "subsampling_conv_channels": 8,
        "num_mel_bins": bins,
        "scale_input": scale,
        "attention_bias": bias,
        "convolution_bias": bias,
    }


def tokenizer(kind: str, size: int, last: str, pad: str, **options: Any) -> ParakeetTokenizer:
    """As Transformers' conversion makes one: the SentencePiece model's pieces, then what it lacks."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "text").write_text(TEXT)
        sentencepiece.SentencePieceTrainer.train(
            input=f"{folder}/text",
            model_prefix=f"{folder}/spm",
            vocab_size=size,
            model_type=kind,
            normalization_rule_name="identity",
            bos_id=-1,
            eos_id=-1,
            minloglevel=2,
            **options,
        )
        made = ParakeetTokenizer(
            tokenizer_object=ParakeetConverter(f"{folder}/spm.model").converted(), clean_up_tokenization_spaces=False
        )
    added = {name: tokenizers.AddedToken(name, normalized=False, special=True) for name in (last, pad, "<unk>")}
    made.add_tokens([added[last]])
    made.add_special_tokens({"pad_token": added[pad], "unk_token": added["<unk>"]})
    assert len(made) == size + 1 and made.convert_tokens_to_ids(last) == size
    return made


def fill(model: torch.nn.Module, seed: int) -> None:
    """Random weights that keep activations near 1, and lively heads."""
    generator = torch.Generator().manual_seed(seed)

    def draw(tensor: torch.Tensor) -> torch.Tensor:
        return torch.randn(tensor.shape, generator=generator)

    for name, tensor in model.state_dict().items():
        if name.endswith("num_batches_tracked"):
            tensor.fill_(1234)
        elif name.endswith("running_var"):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
        elif name.endswith("running_mean"):
            tensor.copy_(0.3 * draw(tensor))
        elif "norm" in name and name.endswith("weight"):
            tensor.copy_(1 + 0.2 * draw(tensor))
        elif name.endswith("bias") or tensor.ndim == 1 or "bias_" in name:
            tensor.copy_(0.2 * draw(tensor))
        elif "embedding" in name:
            tensor.copy_(draw(tensor))
        else:
            factors = {"head": 4.0, "lstm": 3.0, "encoder_projector": 2.0, "decoder_projector": 6.0}
            lively = next((factor for part, factor in factors.items() if part in name), 1.2)
            tensor.copy_(lively * draw(tensor) / tensor[0].numel() ** 0.5)
            if "joint.head" in name:  # what comes of the ReLU is positive: no row shall win by its sum
                tensor.sub_(tensor.mean(1, keepdim=True))
    blank = getattr(model.config, "blank_token_id", model.config.pad_token_id)
    bias = model.ctc_head.bias if isinstance(model, ParakeetForCTC) else model.joint.head.bias
    with torch.no_grad():
        bias[blank] += 6.0 if isinstance(model, ParakeetForCTC) else 3.0


def lively(found: dict[str, Any]) -> bool:
    """Whether a model says enough, and nothing that hangs on a rounding."""
    durations = set(found.get("durations", range(3)))
    if 0 not in durations:
        return False
    return found["margin"] > 0.005 and len(set(found["ids"])) > 6 and len(durations) > 2 and len(found["ids"]) < 100


def results(model: Any, extractor: Any, processor: Any, waveform: np.ndarray) -> tuple[dict[str, Any], dict[str, Any]]:
    inputs = extractor(waveform, sampling_rate=16000, return_tensors="pt")
    count = int(inputs["attention_mask"].sum())
    layers: list[torch.Tensor] = []
    hooks = [layer.register_forward_hook(lambda _m, _i, o: layers.append(o)) for layer in model.encoder.layers]
    with torch.no_grad():
        subsampled = model.encoder.subsampling(inputs["input_features"], inputs["attention_mask"])
        encoded = model.encoder(**inputs)
    for hook in hooks:
        hook.remove()
    valid = int(encoded.attention_mask.sum())
    arrays = {"features": inputs["input_features"][0, :count], "subsampled": subsampled[0, :valid]}
    arrays |= {f"layer{number}": layer[0, :valid] for number, layer in enumerate(layers)}
    assert torch.equal(encoded.last_hidden_state[0], layers[-1][0])
    found: dict[str, Any] = {"frames_of_features": count, "encoded_frames": valid}
    with torch.no_grad():
        if isinstance(model, ParakeetForCTC):
            logits = model(**inputs).logits[0, :valid]
            best = logits.topk(2).values
            found["margin"] = float((best[:, 0] - best[:, 1]).min())
            arrays["log_probs"] = logits.log_softmax(-1)
            ids = model.generate(**inputs)
            steps = ids[0, :valid].tolist()
            blank = model.config.pad_token_id
            starts = [t for t, token in enumerate(steps) if token != blank and (t == 0 or steps[t - 1] != token)]
            found |= {"ids": [steps[t] for t in starts], "frames": starts}
        else:
            margins: list[float] = []
            vocabulary = model.config.vocab_size

            def margin(_module: Any, _inputs: Any, output: torch.Tensor) -> None:
                row = output.reshape(-1)
                for part in (row[:vocabulary], row[vocabulary:]):
                    if len(part):
                        best = part.topk(2).values
                        margins.append(float(best[0] - best[1]))

            hook = model.joint.register_forward_hook(margin)
            output = model.generate(**inputs)
            hook.remove()
            found["margin"] = min(margins)
            ids = output.sequences
            tokens, durations = ids[0].tolist()[1:], output.durations[0].tolist()[1:]
            frames = np.cumsum([0, *durations])[:-1].tolist()
            said = [n for n, token in enumerate(tokens) if token != model.config.blank_token_id]
            found |= {"ids": [tokens[n] for n in said], "frames": [frames[n] for n in said]}
            if isinstance(model, ParakeetForTDT):
                found["durations"] = [durations[n] for n in said]
            # Transformers lets a frame of a TDT model say any number of tokens.
            found["at_one_frame"] = max((frames.count(frame) for frame in set(frames)), default=0)
            if isinstance(model, ParakeetForTDT) and found["at_one_frame"] >= model.config.max_symbols_per_step:
                found["margin"] = 0.0
            if len(tokens) >= model.config.max_symbols_per_step * valid - 1:  # cut off
                found["margin"] = 0.0
    found["text"] = processor.batch_decode(ids, skip_special_tokens=True)[0]
    return {name: value.numpy() for name, value in arrays.items()}, found


def make(name: str, model: Any, bins: int, tokens: ParakeetTokenizer, dtype: torch.dtype, shards: str) -> None:
    folder = HERE / name
    if name != "ctc":
        model.generation_config.decoder_start_token_id = model.config.blank_token_id
        if name == "tdt":
            extra = range(model.config.vocab_size, model.config.vocab_size + len(model.config.durations))
            model.generation_config.suppress_tokens = list(extra)
    extractor = ParakeetFeatureExtractor(feature_size=bins)
    processor = ParakeetProcessor(feature_extractor=extractor, tokenizer=tokens, decoder_type=name)
    recording, _ = soundfile.read(HERE.parent / "espeak_sentence.wav", dtype="float32")
    for seed in itertools.count():
        shutil.rmtree(folder, ignore_errors=True)
        fill(model.float(), seed)
        model.to(dtype).save_pretrained(folder, max_shard_size=shards)
        read = type(model).from_pretrained(folder, dtype=torch.float32).eval()
        arrays, texts = {}, {}
        for piece, samples in PIECES.items():
            if texts and not lively(texts["long"]):
                break
            found, texts[piece] = results(read, extractor, processor, recording[samples])
            kept = {key: value for key, value in found.items() if key != "features" or piece == "short"}
            arrays |= {f"{piece}/{key}": value for key, value in kept.items()} if piece != "long" else {}
        if lively(texts["long"]) and min(found["margin"] for found in texts.values()) > 0.005:
            break
    processor.save_pretrained(folder)
    if name != "tdt":  # whose features are described in processor_config.json alone, as newer releases write them
        extractor.save_pretrained(folder)
    generator = np.random.default_rng(seed)
    drawn = [generator.integers(0, model.config.vocab_size, count).tolist() for count in (1, 2, 3, 5, 20, 40)]
    texts["spelt"] = [{"ids": ids, "text": processor.batch_decode([ids], skip_special_tokens=True)[0]} for ids in drawn]
    np.savez_compressed(folder / "expected.npz", **arrays)
    (folder / "expected.json").write_text(json.dumps(texts, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    print(name, seed, {piece: texts[piece] for piece in PIECES})


def decoders() -> None:
    """What the package tokenizers makes of tokens, by decoders as tokenizer.json describes them."""
    metaspace = {"type": "Metaspace", "replacement": "▁", "split": True}
    steps = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ]
    described = [
        {**metaspace, "prepend_scheme": "always"},
        {**metaspace, "prepend_scheme": "never"},
        {**metaspace, "prepend_scheme": "first"},
        {"type": "Sequence", "decoders": steps},
        {"type": "Sequence", "decoders": [*steps[:3], {"type": "Strip", "content": " ", "start": 2, "stop": 0}]},
        {"type": "Sequence", "decoders": [steps[1], {**metaspace, "prepend_scheme": "always"}]},
        steps[0],
        None,
    ]
    lists = [
        ["▁the", "▁old", "▁", "▁man", "▁▁x", "."],
        ["▁", "▁the", "a▁b", "▁", "▁"],
        ["▁▁a▁b", "c"],
        ["▁caf", "<0xC3>", "<0xA9>", "<0xE2>", "<0x82>", "▁x", "<0xff>", "<0xFF>", "<0x0A>"],
        ["<0xC3>", "▁", "<0xA9>", "<0xGG>", "<0x1>"],
        [],
    ]
    cases = []
    for decoder in described:
        for tokens in lists:
            vocabulary = {token: number for number, token in enumerate(dict.fromkeys(tokens))} | {"<unk>": 99}
            model = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, "<unk>"))
            whole = json.loads(model.to_str()) | {"decoder": decoder}
            text = tokenizers.Tokenizer.from_str(json.dumps(whole)).decode([vocabulary[token] for token in tokens])
            cases.append({"decoder": decoder, "tokens": tokens, "text": text})
    (HERE / "decoders.json").write_text(json.dumps(cases, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")


def main() -> None:
    warnings.filterwarnings("ignore", "Using the model-agnostic default")
    torch.set_num_threads(1)
    decoders()
    for name in ("ctc", "tdt", "rnnt"):
        if name == "ctc":
            tokens = tokenizer("unigram", 48, "<pad>", "<pad>")
            config: Any = ParakeetCTCConfig(vocab_size=49, pad_token_id=48, encoder_config=encoder(80, True, True))
            make(name, ParakeetForCTC(config), 80, tokens, torch.float32, "1GB")
        elif name == "tdt":
            tokens = tokenizer("bpe", 60, "<blank>", "<pad>", pad_id=2)
            config = ParakeetTDTConfig(
                vocab_size=61,
                decoder_hidden_size=WIDTH,
                encoder_config=encoder(128, False, False),
                pad_token_id=2,
                blank_token_id=60,
            )
            make(name, ParakeetForTDT(config), 128, tokens, torch.bfloat16, "1GB")
        else:
            tokens = tokenizer("bpe", 56, "<blank>", "<blank>")
            config = ParakeetRNNTConfig(
                vocab_size=57,
                decoder_hidden_size=WIDTH,
                num_decoder_layers=1,
                max_symbols_per_step=3,
                encoder_config=encoder(80, True, False),
                pad_token_id=56,
                blank_token_id=56,
            )
            make(name, ParakeetForRNNT(config), 80, tokens, torch.float16, "14KB")


if __name__ == "__main__":
    main()
