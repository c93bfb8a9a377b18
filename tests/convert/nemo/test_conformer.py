"""NeMo's settings of a Conformer as our configuration, and its names in ours."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from flax import nnx

from jaxasr.convert.mapping import map_tensors
from jaxasr.convert.nemo.conformer import IGNORED, encoder_config, rules
from jaxasr.encoders.conformer import Conformer
from jaxasr.encoders.conformer_config import ConformerConfig
from jaxasr.errors import CheckpointError

# As NeMo 1.0 wrote them: neither biases nor contexts are mentioned.
SETTINGS = {"_target_": "x.ConformerEncoder", "feat_in": 20, "n_layers": 1, "d_model": 8, "n_heads": 2, "dropout": 0.1}


def test_what_is_not_stated_takes_nemos_default() -> None:
    assert encoder_config(SETTINGS, 20) == ConformerConfig(
        num_layers=1,
        dim=8,
        num_heads=2,
        feedforward_dim=32,
        conv_kernel=31,
        input_dim=20,
        subsampling=4,
        front_end="ordinary",
        front_end_channels=8,
    )


@pytest.mark.parametrize(
    ("stated", "fields"),
    [
        ({"subsampling": "dw_striding", "subsampling_factor": 8}, {"front_end": "separable", "subsampling": 8}),
        ({"subsampling_conv_channels": 5}, {"front_end_channels": 5}),
        ({"causal_downsampling": True}, {"causal_front_end": True}),
        ({"self_attention_model": "abs_pos", "xscaling": False}, {"positions": "absolute", "scale_inputs": False}),
        ({"att_context_size": None}, {"context": (-1, -1)}),
        ({"att_context_size": [4, 2]}, {"context": (4, 2), "context_style": "regular"}),
        (
            {"att_context_size": [[4, 1], [4, 0]], "att_context_style": "chunked_limited"},
            {"context": (4, 1), "context_style": "chunked"},
        ),
        ({"conv_context_size": "causal", "conv_kernel_size": 9}, {"conv_context": (8, 0)}),
        ({"conv_context_size": [6, 2], "conv_kernel_size": 9}, {"conv_context": (6, 2)}),
        ({"conv_norm_type": "layer_norm", "use_bias": False}, {"conv_norm": "layer", "use_bias": False}),
        ({"feat_out": 6}, {"projected_dim": 6, "output_dim": 6}),
        ({"feat_out": 8}, {"projected_dim": None, "output_dim": 8}),
        ({"untie_biases": False, "reduction": None}, {}),
    ],
)
def test_what_is_stated(stated: dict[str, Any], fields: dict[str, Any]) -> None:
    config = encoder_config({**SETTINGS, **stated}, 20)
    assert {name: getattr(config, name) for name in fields} == fields


@pytest.mark.parametrize(
    ("stated", "named"),
    [
        ({"subsampling": "vggnet"}, "encoder.subsampling is 'vggnet': known are striding, dw_striding"),
        ({"subsampling": "stacking"}, "encoder.subsampling is 'stacking'"),
        ({"subsampling": "striding_conv1d"}, "encoder.subsampling is 'striding_conv1d'"),
        ({"subsampling": None}, "encoder.subsampling is None"),
        ({"subsampling_factor": 1}, "subsampling 1"),
        ({"self_attention_model": "rel_pos_local_attn"}, "encoder.self_attention_model is 'rel_pos_local_attn'"),
        ({"att_context_style": "chunked_limited_with_rc"}, "encoder.att_context_style is 'chunked_limited_with_rc'"),
        ({"att_context_size": [4]}, "encoder.att_context_size"),
        ({"att_context_size": [[4, "1"]]}, "encoder.att_context_size"),
        ({"att_context_size": [5, 1], "att_context_style": "chunked_limited"}, "encoder: context"),
        ({"conv_norm_type": "group_norm4"}, "encoder.conv_norm_type is 'group_norm4'"),
        ({"conv_context_size": "centred"}, "encoder.conv_context_size is 'centred'"),
        ({"conv_context_size": [3, 3]}, "encoder: conv_context"),
        ({"reduction": "pooling"}, "encoder.reduction is 'pooling'"),
        ({"n_layers": 10**9}, "encoder.n_layers is 1000000000"),
        ({"n_heads": 3}, "encoder: dim 8"),
        ({"d_model": "8"}, "encoder.d_model is '8'"),
        ({"use_bias": "no"}, "encoder.use_bias is 'no'"),
        ({"feat_in": 40}, "encoder.feat_in is 40: the preprocessor gives 20 bins"),
        ({"gates": 3}, "encoder has settings that are not known here: gates"),
    ],
)
def test_what_cannot_be_followed_is_named(stated: dict[str, Any], named: str) -> None:
    with pytest.raises(CheckpointError, match=named) as caught:
        encoder_config({**SETTINGS, **stated}, 20)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("front_end", ["striding", "dw_striding"])
def test_every_parameter_has_one_name(front_end: str) -> None:
    """The names and shapes of NeMo's own modules, at 8x: indices of a sequence that counts activations."""
    config = encoder_config({**SETTINGS, "subsampling": front_end, "subsampling_factor": 8, "feat_out": 6}, 20)
    separable = front_end == "dw_striding"
    depthwise, pointwise, whole = (8, 1, 3, 3), (8, 8, 1, 1), (8, 8, 3, 3)
    later = {2: depthwise, 3: pointwise, 5: depthwise, 6: pointwise} if separable else {2: whole, 4: whole}
    shapes: dict[str, tuple[int, ...]] = {"pre_encode.conv.0": (8, 1, 3, 3), "pre_encode.out": (8, 8 * 3)}
    shapes |= {f"pre_encode.conv.{index}": shape for index, shape in later.items()} | {"out_proj": (6, 8)}
    layer: dict[str, tuple[int, ...]] = {f"self_attn.linear_{name}": (8, 8) for name in ("q", "k", "v", "out")}
    layer |= {f"feed_forward{n}.linear1": (32, 8) for n in (1, 2)} | {
        f"feed_forward{n}.linear2": (8, 32) for n in (1, 2)
    }
    layer |= {"conv.pointwise_conv1": (16, 8, 1), "conv.pointwise_conv2": (8, 8, 1), "conv.depthwise_conv": (8, 1, 31)}
    norms = ("norm_feed_forward1", "norm_self_att", "norm_conv", "norm_feed_forward2", "norm_out", "conv.batch_norm")
    layer |= {name: (8,) for name in norms}
    shapes |= {f"layers.0.{name}": shape for name, shape in layer.items()}
    tensors = {f"encoder.{name}.weight": np.zeros(shape) for name, shape in shapes.items()}
    tensors |= {f"encoder.{name}.bias": np.zeros(shape[0]) for name, shape in shapes.items()}
    tensors["encoder.layers.0.self_attn.linear_pos.weight"] = np.zeros((8, 8))
    tensors |= {f"encoder.layers.0.self_attn.pos_bias_{which}": np.zeros((2, 4)) for which in "uv"}
    tensors |= {f"encoder.layers.0.conv.batch_norm.running_{which}": np.zeros(8) for which in ("mean", "var")}
    tensors["encoder.layers.0.conv.batch_norm.num_batches_tracked"] = np.zeros(())
    mapped = map_tensors(tensors, rules(config), IGNORED)

    state = nnx.state(nnx.eval_shape(lambda: Conformer(config, rngs=nnx.Rngs(0))))
    wanted = {
        "encoder." + ".".join(str(part) for part in path): leaf.shape
        for path, leaf in nnx.to_flat_state(state)
        if hasattr(leaf, "shape")
    }
    assert {path: array.shape for path, array in mapped.items()} == wanted


def test_channels_come_last_before_the_front_ends_linear_layer() -> None:
    """NeMo's columns are channel * bins + bin, ours bin * channels + channel."""
    config = encoder_config(SETTINGS, 20)
    weight = np.arange(8 * 8 * 5, dtype=np.float64).reshape(8, 8 * 5)
    (mapped,) = map_tensors({"encoder.pre_encode.out.weight": weight}, rules(config), IGNORED).values()
    x = np.random.default_rng(0).standard_normal((5, 8))  # bins, channels
    np.testing.assert_allclose(x.reshape(-1) @ mapped, weight @ x.T.reshape(-1), rtol=1e-9)
