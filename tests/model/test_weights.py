"""`weights=`: what is quantised while loading and what is not, exactly; what is refused."""

import logging

import pytest
import torch
from safetensors.torch import save_file

from mingcore import BackendError, CheckpointError, InputError, ops
from mingcore.model import load
from mingcore.model.formats import WEIGHTS, resolve
from mingcore.ops._core.packing import FORMATS, QUANTISED, dequantise, quantise
from mingcore.testing.synthetic import model_config, write_checkpoint

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(scope="module", params=WEIGHTS)
def loaded(request, tiny):
    """A format, the tiny checkpoint's tensors, and its model in that format."""
    folder, tensors, _ = tiny
    return request.param, tensors, load(folder, weights=request.param)


def as_held(weight: torch.Tensor, format: str) -> torch.Tensor:
    """What a format holds of a matrix."""
    if format in QUANTISED:
        return dequantise(*quantise(weight, format))
    return weight.to(FORMATS[format])


def rows(packed) -> torch.Tensor:
    return packed if isinstance(packed, torch.Tensor) else packed.unpack()


def test_large_matrices_are_in_the_format(loaded):
    format, t, model = loaded
    assert model.weights == format
    layer, root = model.llm.layers[1], "model.model.layers.1."
    qkv = layer.attention.qkv.weight
    assert qkv.format == format
    torch.testing.assert_close(rows(qkv), as_held(t[root + "attention.query_key_value.weight"], format), rtol=0, atol=0)
    experts = layer.mlp.experts.unpack()
    assert layer.mlp.experts.format == format
    for e in (0, 7):
        names = [f"{root}mlp.experts.{e}.{name}_proj.weight" for name in ("gate", "up", "down")]
        both = torch.cat((t[names[0]], t[names[1]]))
        assert torch.equal(experts.gate_up[e], as_held(both, format))
        assert torch.equal(experts.down[e], as_held(t[names[2]], format))
    down = t[root + "mlp.shared_experts.down_proj.weight"]
    assert torch.equal(experts.shared_down, as_held(down, format))
    block, name = model.vae.semantic.blocks[1], "audio.decoder.semantic_model.blocks.1.mlp.2.weight"
    assert torch.equal(rows(block.down.weight), as_held(t[name], format))
    mlp, name = model.vae.encoder.backbone.layers[0].mlp, "audio.encoder.encoder.layers.0.mlp."
    assert torch.equal(rows(mlp.down.weight), as_held(t[name + "down_proj.weight"], format))
    head, name = model.flow.packed.unpack(), "flowloss.cfm.model.blocks.1.mlp.ff.2.weight"
    assert torch.equal(head.matrices[5][1], as_held(t[name], format))


def test_the_rest_keeps_its_type(loaded):
    format, t, model = loaded
    kept = torch.bfloat16 if format in QUANTISED else FORMATS[format]
    router = torch.float32 if format in QUANTISED else kept
    gate = model.llm.layers[0].mlp.audio_gate.weight
    name = "model.model.layers.0.mlp.audio_gate.weight"
    assert torch.equal(rows(gate), t[name].to(router))
    pairs = {
        "model.lm_head.weight": model.llm.head.weight,
        "model.model.word_embeddings.weight": model.llm.embedding,
        "stop_head.weight": model.stop_head.linear.weight,
        "linear_proj_audio.final_layer.linear.weight": model.pool.linear.weight,
        "audio.encoder.fc1.weight": model.vae.encoder.frame.weight,
        "audio.encoder.fc3.weight": model.vae.encoder.fc3.weight,
        "audio.decoder.head.out.weight": model.vae.decoder.head.weight,
        "flowloss.cfm.model.x_embedder.weight": model.flow.x_embedder.weight,
        "flowloss.cfm.model.t_embedder.time_mlp.2.weight": model.flow.packed.time[1][0],
    }
    for name, weight in pairs.items():
        assert torch.equal(rows(weight), t[name].to(kept)), name
    assert model.llm.norm.dtype == model.llm.layers[0].attention_norm.dtype == torch.float32
    assert model.stop_head.linear.bias.dtype == torch.float32


@pytest.mark.parametrize("format", ["int8", "int8_dyn"])
def test_every_layout_of_experts_gives_the_same(tiny, rewritten, format):
    folder, _, _ = tiny

    def stack(fused):
        def change(tensors, config):
            for layer in range(2):
                root = f"model.model.layers.{layer}.mlp.experts."
                parts = {
                    name: torch.stack([tensors.pop(f"{root}{e}.{name}_proj.weight") for e in range(8)])
                    for name in ("gate", "up", "down")
                }
                if fused:
                    parts["gate_up"] = torch.cat((parts.pop("gate"), parts.pop("up")), dim=1)
                tensors.update({f"{root}{name}_proj": part for name, part in parts.items()})

        return change

    wanted = load(folder, weights=format).llm.layers[1].mlp.experts
    for fused in (False, True):
        found = load(rewritten(stack(fused)), weights=format).llm.layers[1].mlp.experts
        for a, b in zip((*wanted.matrices, *wanted.scales), (*found.matrices, *found.scales)):
            assert torch.equal(a, b)


def test_dense_layers_and_tied_embeddings_are_quantised_too(tmp_path):
    config = model_config("tiny", first_k_dense_replace=1)
    write_checkpoint(tmp_path, config)
    model = load(tmp_path, weights="int8")
    mlp = model.llm.layers[0].mlp
    assert mlp.gate_up.weight.format == mlp.down.weight.format == "int8"
    ids = torch.randint(0, 500, (1, 9))
    hidden, _ = model.llm(model.llm.embed(ids))
    wanted, _ = load(tmp_path).llm(load(tmp_path).llm.embed(ids))
    assert (hidden - wanted).norm() < 0.05 * wanted.norm()


def test_rows_where_another_backend_was_named(tiny):
    with ops.use_backend("reference"):
        model = load(tiny[0], weights="int8")
    experts = model.llm.layers[0].mlp.experts
    assert experts.layout == model.flow.packed.layout == "rows"
    assert experts.gate_up.dtype == torch.int8


def test_what_weights_and_dtype_mean():
    for format in ("int8", "int8_dyn", "fp8"):
        on_cpu, on_gpu = resolve(format, None, CPU), resolve(format, None, GPU)
        assert on_cpu.dtype == on_gpu.dtype == on_gpu.activation_dtype == torch.bfloat16
        assert on_cpu.activation_dtype == on_cpu.router_dtype == torch.float32
        assert on_cpu.weights == on_cpu.flow == on_gpu.weights == format
        assert on_gpu.flow == ("int8" if format == "int8_dyn" else format)
    assert resolve("int8", torch.float32, GPU).activation_dtype == torch.float32
    for format in ("fp32", "fp16", "bf16"):
        assert resolve(format, None, GPU) == resolve(None, FORMATS[format], GPU)
    assert resolve(None, None, CPU).weights == "fp32"
    assert resolve(None, None, GPU).weights == "bf16"


def test_refused(tiny, rewritten, caplog):
    folder = tiny[0]
    with pytest.raises(InputError, match="weights: must be one of fp32, .* got 'int4'"):
        load(folder, weights="int4")
    with pytest.raises(InputError, match="bf16 and dtype torch.float32 contradict"):
        load(folder, weights="bf16", dtype=torch.float32)
    with ops.use_backend("cpu"), pytest.raises(BackendError, match="not pack fp8"):
        load(folder, weights="fp8")
    with caplog.at_level(logging.WARNING):
        load(folder, weights="fp8")
    assert "no native CPU kernel multiplies 8-bit floats" in caplog.text


@pytest.mark.parametrize(
    "name",
    [
        "model.model.layers.1.mlp.experts.3.up_proj.weight",
        "flowloss.cfm.model.blocks.1.attn.to_k.weight",
        "audio.encoder.encoder.layers.0.self_attn.q_proj.weight",
    ],
)
def test_a_matrix_that_is_not_finite_is_named(rewritten, name):
    def change(tensors, config):
        tensors[name] = tensors[name].clone()
        tensors[name][0, 0] = torch.inf

    folder = rewritten(change)
    with pytest.raises(CheckpointError, match=f"{name} holds values that are not finite"):
        load(folder, weights="int8")


def test_float64_is_quantised_from_float32(tiny, tmp_path):
    _, tensors, _ = tiny
    config = (tiny[0] / "config.json").read_text()
    save_file({k: v.double() for k, v in tensors.items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(config)
    wide, plain = load(tmp_path, weights="int8"), load(tiny[0], weights="int8")
    assert torch.equal(wide.flow.packed.matrices[2], plain.flow.packed.matrices[2])
