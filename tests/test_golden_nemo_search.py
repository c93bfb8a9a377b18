"""Parity of heads and searches with NeMo, fed with the stored encoder outputs of its reference models."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxasr
from golden_models import END_TO_END, difference, quick_jit, read_arrays
from jaxasr import store
from jaxasr.model import AbstractModel, Model
from jaxasr.model_config import ModelConfig
from jaxasr.search import BeamConfig, GreedyConfig, SearchConfig
from jaxasr.search.hypotheses import Hypotheses

CLIPS = ("digits_a", "espeak_sentence", "noise", "near_silence", "short")
TRANSDUCERS = ("conformer-transducer-tiny", "fastconformer-streaming-tiny", "fastconformer-tdt-tiny")


@dataclasses.dataclass(frozen=True, eq=False)
class GoldenHeads:
    """A reference model, converted, with what NeMo computes from its encoder's outputs."""

    config: ModelConfig
    params: dict[str, Any]
    arrays: dict[str, np.ndarray]
    texts: Any

    def bind(self, params: dict[str, Any], max_symbols: int | None = None) -> Model:
        """The module over (traced) parameters, with another number of tokens a frame where one is given."""
        assert self.config.transducer is not None
        symbols = max_symbols or self.config.transducer.max_symbols
        transducer = dataclasses.replace(self.config.transducer, max_symbols=symbols)
        return AbstractModel(dataclasses.replace(self.config, transducer=transducer)).fill(params)

    def search(self, search: SearchConfig, max_symbols: int | None = None) -> Hypotheses:
        """What a search finds in all clips, from NeMo's encoder outputs."""
        encoded = jnp.asarray(self.arrays["batch/enc"].swapaxes(1, 2))
        lengths = jnp.asarray(self.arrays["batch/enc_len"], jnp.int32)
        run = quick_jit(lambda params, *inputs: self.bind(params, max_symbols).search(*inputs, search=search))
        return run(self.params, encoded, lengths)


@pytest.fixture(scope="module")
def heads(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], GoldenHeads]:
    """Reference models by name, each converted once."""
    made: dict[str, GoldenHeads] = {}

    def load(name: str) -> GoldenHeads:
        if name not in made:
            folder, directory = shared / "golden" / name, tmp_path_factory.mktemp(name) / "model"
            jaxasr.convert_checkpoint(folder / "model.nemo", directory)
            config, params, _ = store.load(directory)
            texts = json.loads((folder / "texts.json").read_text(encoding="utf-8"))
            made[name] = GoldenHeads(config, jax.device_put(params), read_arrays(folder / "golden.npz"), texts)
        return made[name]

    return load


def found(hypotheses: Hypotheses, row: int, rank: int = 0) -> tuple[list[int], list[int], list[int]]:
    """Tokens, frames and durations of one hypothesis."""
    count = int(hypotheses.length[row, rank])
    tokens, frames, durations = (each[row, rank, :count].tolist() for each in hypotheses[:3])
    return tokens, frames, durations


@pytest.mark.parametrize("name", TRANSDUCERS)
def test_predictor_and_joint(heads: Callable[[str], GoldenHeads], name: str) -> None:
    """Fed with NeMo's tokens and encoder outputs; the state too, since streams carry it on."""
    golden = heads(name)
    stored = golden.arrays
    grid = stored["joint/t"]

    def trace(params: dict[str, Any], tokens: jax.Array, encoded: jax.Array) -> dict[str, jax.Array]:
        head: Any = golden.bind(params).transducer
        states = [head.predictor.start(1)]
        for token in tokens:
            states.append(head.predictor.step(states[-1][0], token[None]))
        outputs = jnp.concatenate([output for _, output in states])  # (n + 1, H)
        projected, predicted = head.project(encoded)[0], head.predict(tokens[None])[0]
        return {
            "predictor/g": outputs,
            "predictor/h": jnp.stack([jnp.stack([layer.hidden[0] for layer in state]) for state, _ in states]),
            "predictor/c": jnp.stack([jnp.stack([layer.cells[0] for layer in state]) for state, _ in states]),
            "joint/enc_proj": projected,
            "joint/pred_proj": predicted,
            "joint/logits": head.combine(projected[grid][:, None], predicted[None]),
        }

    tokens = jnp.asarray(stored["predictor/tokens"].reshape(-1), jnp.int32)
    encoded = stored["espeak_sentence/enc"].swapaxes(1, 2)
    for key, ours in quick_jit(trace)(golden.params, tokens, encoded).items():
        assert ours.shape == stored[key].shape, key
        # Two float32 implementations of a few products; nothing here amplifies their rounding.
        assert difference(ours, stored[key]) < END_TO_END, key


@pytest.mark.parametrize("name", TRANSDUCERS)
def test_greedy_search_decides_as_nemo_does(heads: Callable[[str], GoldenHeads], name: str) -> None:
    golden = heads(name)
    hypotheses = golden.search(GreedyConfig(head="transducer"))
    for row, clip in enumerate(CLIPS):
        tokens, frames, durations = found(hypotheses, row)
        theirs = golden.texts["decode_batch"]["greedy_batch"][clip]
        assert tokens == theirs["ids"] == golden.arrays[f"{clip}/rnnt_ids"].tolist(), clip
        assert frames == theirs["frames"] == golden.arrays[f"{clip}/rnnt_frames"].tolist(), clip
        assert durations == golden.arrays.get(f"{clip}/rnnt_durations", np.ones(len(tokens), int)).tolist(), clip
        if f"{clip}/rnnt_durations" not in golden.arrays:  # with durations NeMo's score counts them too
            np.testing.assert_allclose(hypotheses.score[row, 0], theirs["score"], atol=1e-3)


@pytest.mark.parametrize("name", TRANSDUCERS)
def test_a_frame_is_left_at_its_last_token_as_greedy_batch_leaves_it(
    heads: Callable[[str], GoldenHeads], name: str
) -> None:
    """The strategy "greedy" moves on by a frame more after a limiting token with a duration; its default does not."""
    golden = heads(name)
    hypotheses = golden.search(GreedyConfig(head="transducer"), max_symbols=2)
    for row, clip in enumerate(CLIPS):
        theirs = golden.texts["decode_batch_max_symbols_2"][clip]
        assert found(hypotheses, row)[:2] == (theirs["ids"], theirs["frames"]), clip


def test_the_other_head_of_a_hybrid(heads: Callable[[str], GoldenHeads]) -> None:
    golden = heads("fastconformer-tdt-tiny")
    hypotheses = golden.search(GreedyConfig(head="ctc"))
    for row, clip in enumerate(CLIPS):
        tokens, frames, _ = found(hypotheses, row)
        assert tokens == golden.arrays[f"batch/{clip}/ctc_ids"].tolist(), clip
        assert frames == golden.arrays[f"batch/{clip}/ctc_frames"].tolist(), clip


def test_the_beam_finds_what_nemos_time_synchronous_one_finds(heads: Callable[[str], GoldenHeads]) -> None:
    """The best text of each clip is that of NeMo's strategies tsd, which ours is nearest to, and beam.

    NeMo's tsd follows all that stays at a frame for up to 50 tokens; ours stops where none of it can be kept, so that
    a score may lack what would have been merged into it. Where nothing is merged the scores are those of NeMo's beam.
    """
    golden = heads("conformer-transducer-tiny")
    hypotheses = golden.search(BeamConfig(beam=4))
    for row, clip in enumerate(CLIPS):
        best = {strategy: golden.texts["beam4"][strategy][clip][0] for strategy in ("tsd", "beam")}
        assert found(hypotheses, row)[0] == best["tsd"]["ids"], clip
        assert best["tsd"]["score"] - 0.5 < hypotheses.score[row, 0] < best["tsd"]["score"] + 1e-3, clip
    ours = [found(hypotheses, CLIPS.index("short"), rank)[0] for rank in range(4)]
    theirs = golden.texts["beam4"]["beam"]["short"]
    assert ours == [each["ids"] for each in theirs]
    scores = hypotheses.score[CLIPS.index("short")]
    np.testing.assert_allclose(scores, [each["score"] for each in theirs], atol=1e-3)


@pytest.mark.parametrize(
    ("name", "ranks", "best"),
    [
        ("fastconformer-tdt-tiny", 4, ()),
        ("fastconformer-streaming-tiny", 3, ("digits_a", "espeak_sentence", "near_silence")),
    ],
)
def test_the_beam_scores_as_nemo_does(
    heads: Callable[[str], GoldenHeads], name: str, ranks: int, best: tuple[str, ...]
) -> None:
    """On the shortest clip a beam of 4 loses nothing of weight: its best `ranks` are those of NeMo's malsd_batch.

    On longer clips of these random models the strategies of NeMo find different texts each, and so does ours; those of
    the clips `best` are the best texts of NeMo's beam.
    """
    golden = heads(name)
    hypotheses = golden.search(BeamConfig(beam=4))
    row, theirs = CLIPS.index("short"), golden.texts["beam4"]["malsd_batch"]["short"][:ranks]
    for rank, each in enumerate(theirs):
        assert found(hypotheses, row, rank)[:2] == (each["ids"], each["frames"])
    np.testing.assert_allclose(hypotheses.score[row, :ranks], [each["score"] for each in theirs], atol=1e-3)
    for clip in best:
        assert found(hypotheses, CLIPS.index(clip))[0] == golden.texts["beam4"]["beam"][clip][0]["ids"], clip
