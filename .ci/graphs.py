"""The shipped model as ONNX graphs, gradients included, and what the live page must know of it.

Four graphs share one file of weights, in half precision where that loses no bit, as it does for the
weights that ship:
    text     token numbers -> what the U-Net reads, and the guide's features of the text
    predict  (xt, t, c) -> the U-Net's answer, for one or more samples
    look     both branches at one c -> h, grad_c h, x0bar, its gradient, its picture
    decode   latents, features -> pictures and their h
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import datekit as dk
from datekit.backbones.text import quiet
from datekit.shapes import captions, oracle, renderer, world

OPENING = "a yellow circle left of a blue square"  # with seed 0, which DATE mends at rho 1
NUM_STEPS = (10, 20)  # while rho is dragged, and the exact run
OPSET = 18
aten = torch.ops.aten


class World:
    """The shipped model and guide as functions of tensors alone."""

    def __init__(self) -> None:
        from diffusers.models.attention_processor import AttnProcessor

        self.backbone, self.guide = dk.load("shapes", device="cpu"), dk.rewards.load("shapes-clip")
        self.backbone.pipe.unet.set_attn_processor(AttnProcessor())  # the plain product

    def text(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 16) -> (B, 16, D), (B, F)."""
        features = self.guide.network.encode_text(ids)
        return self.backbone.pipe.text_encoder(ids)[0], F.normalize(features, dim=-1)

    def predict(self, xt: Tensor, t: Tensor, c: Tensor) -> Tensor:
        """The U-Net's velocity, (B, C, h, w)."""
        return self.backbone.pipe.unet(xt, t, encoder_hidden_states=c, return_dict=False)[0]

    def decode(self, x0: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures (B, 3, H, W) and their h (B,)."""
        pictures = self.backbone.decode(x0)
        return pictures, (self.guide.image_features(pictures) * text).sum(1)

    def look(self, xt, t, c, u, text, alpha, sigma, w) -> tuple[Tensor, ...]:
        """h, grad_c h, x0bar, grad_x0bar h, the picture, and both branches' velocities."""
        uncond = self.predict(xt, t, u)

        def mean(c: Tensor) -> tuple[Tensor, Tensor]:
            cond = self.predict(xt, t, c)
            return alpha * xt - sigma * (uncond + w * (cond - uncond)), cond

        def value(x0: Tensor) -> tuple[Tensor, Tensor]:
            picture, h = self.decode(x0, text)
            return h.sum(), picture

        x0bar, pull_back, cond = torch.func.vjp(mean, c, has_aux=True)
        grad_x0bar, (h, picture) = torch.func.grad_and_value(value, has_aux=True)(x0bar)
        (grad,) = pull_back(grad_x0bar)
        return h[None], grad, x0bar, grad_x0bar, picture, uncond, cond


def examples(bench: World) -> dict[str, tuple]:
    """Inputs of each function by name."""
    ids = torch.tensor(bench.backbone.pipe.tokenizer(["a red circle"])["input_ids"])
    ids = F.pad(ids, (0, 16 - ids.shape[1]), value=int(ids[0, -1]))
    c, text = bench.text(ids)
    xt, t = torch.randn(1, *bench.backbone.latent_shape()), torch.tensor([500.0])
    numbers = [torch.tensor(number) for number in (0.8, 0.6, 9.0)]
    return {
        "text": (ids,),
        "predict": (xt, t, c),
        "look": (xt, t, c, c.flip(1), text, *numbers),
        "decode": (xt, text),
    }


def _convolution_backward(grad, x, weight, _, stride, padding, dilation, transposed, __, groups, m):
    """The gradient of a convolution in its input alone, as one more convolution."""
    assert [transposed, *m[1:]] == [False] * 3
    more = []
    for n in range(2):
        reached = (grad.shape[2 + n] - 1) * stride[n] - 2 * padding[n]
        more.append(x.shape[2 + n] - reached - dilation[n] * (weight.shape[2 + n] - 1) - 1)
    return (
        aten.convolution(grad, weight, None, stride, padding, dilation, True, more, groups),
        None,
        None,
    )


def _pool_backward(grad, x, size, stride, padding, *_):
    """The gradient of means over cells that do not overlap."""
    assert (list(size), any(padding)) == (list(stride), False)
    b, c, h, w = grad.shape
    spread = grad[:, :, :, None, :, None].expand(b, c, h, size[0], w, size[1])
    return spread.reshape(b, c, h * size[0], w * size[1]) / (size[0] * size[1])


def _upsample_backward(grad, _, size, *__):
    """The gradient of pixels that are repeated."""
    k = [grad.shape[2] // size[2], grad.shape[3] // size[3]]
    return aten.avg_pool2d(grad, k, k) * (k[0] * k[1])


def traced(function: Callable, example: tuple) -> torch.fx.GraphModule:
    """The function with its gradient as one graph of forward operations."""
    from torch._decomp import core_aten_decompositions, get_decompositions
    from torch.fx.experimental.proxy_tensor import make_fx

    names = (
        "native_group_norm_backward native_layer_norm_backward _softmax_backward_data "
        "gelu_backward silu_backward tanh_backward sigmoid_backward threshold_backward"
    )
    table = {
        **core_aten_decompositions(),
        **get_decompositions([getattr(aten, name) for name in names.split()]),
        aten.convolution_backward.default: _convolution_backward,
        aten.avg_pool2d_backward.default: _pool_backward,
        aten.upsample_nearest2d_backward.default: _upsample_backward,
    }
    plain = torch.func.functionalize(lambda *inputs: function(*inputs), remove="mutations")
    graph = make_fx(lambda *inputs: plain(*inputs), decomposition_table=table)(*example)
    for node in list(graph.graph.nodes):  # memory that is filled later has no ONNX operation
        if node.op == "call_function" and node.target is aten.empty_permuted.default:
            with graph.graph.inserting_before(node):
                zeros = graph.graph.call_function(aten.full.default, (node.args[0], 0.0))
            node.replace_all_uses_with(zeros)
            graph.graph.erase_node(node)
    graph.recompile()
    return graph


class _Module(torch.nn.Module):
    """A function as a module, for the exporter."""

    def __init__(self, function: Callable) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor):
        return self.function(*inputs)


NAMES = {  # of inputs and outputs
    "text": (("ids",), ("c", "text")),
    "predict": (("xt", "t", "c"), ("v",)),
    "look": (
        ("xt", "t", "c", "u", "text", "alpha", "sigma", "w"),
        ("h", "grad", "x0bar", "grad_x0bar", "picture", "v_u", "v_c"),
    ),
    "decode": (("x0", "text"), ("picture", "h")),
}


def export(bench: World, name: str, example: tuple):
    """One function as an ONNX model, its weights inside."""
    import onnx
    from onnxscript.optimizer import optimize
    from torch.nn.attention import SDPBackend, sdpa_kernel

    function, (inputs, outputs) = getattr(bench, name), NAMES[name]
    several = name in ("predict", "decode")
    batch = torch.export.Dim("batch", max=64)
    with sdpa_kernel(SDPBackend.MATH), torch.no_grad(), quiet():
        if several:  # any number of samples
            example = tuple(torch.cat([x, x]) for x in example)
        module = traced(function, example) if name == "look" else _Module(function)
        program = torch.onnx.export(
            module,
            example,
            dynamo=True,
            opset_version=OPSET,
            input_names=inputs,
            output_names=outputs,
            dynamic_shapes=(({0: batch},) * len(inputs),) if several else None,
            optimize=False,
            verbose=False,
        )
    optimize(program.model, num_iterations=1, onnx_shape_inference=False)  # a second brings little
    model = program.model_proto
    for node in model.graph.node:  # all is in single precision, and WebGPU has no CastLike
        if node.op_type == "CastLike":
            node.op_type = "Cast"
            del node.input[1:]
            node.attribute.append(onnx.helper.make_attribute("to", onnx.TensorProto.FLOAT))
    return model


class Weights:
    """One file of numbers for several graphs, each number once, in half precision if exact."""

    def __init__(self) -> None:
        self.content, self.places = bytearray(), {}

    def take(self, model) -> None:
        """Move a model's weights into the file; the model then refers to it."""
        import onnx
        from onnx import numpy_helper

        graph, casts = model.graph, []
        for tensor in graph.initializer:
            values = numpy_helper.to_array(tensor)
            if values.dtype != np.float32 or values.size < 64:
                continue
            with np.errstate(over="ignore"):
                half = values.astype(np.float16)
            exact = np.array_equal(half.astype(np.float32), values)
            kept, name = (half if exact else values), tensor.name
            tensor.Clear()
            tensor.name = f"{name}.half" if exact else name
            tensor.data_type = onnx.TensorProto.FLOAT16 if exact else onnx.TensorProto.FLOAT
            tensor.dims.extend(kept.shape)
            tensor.data_location = onnx.TensorProto.EXTERNAL
            place = {"location": "weights.bin", **self._put(kept.tobytes())}
            for key, value in place.items():
                tensor.external_data.add(key=key, value=str(value))
            if exact:
                kind = onnx.TensorProto.FLOAT
                casts.append(onnx.helper.make_node("Cast", [tensor.name], [name], to=kind))
        nodes = [*casts, *graph.node]
        for node in nodes:  # where each came from in the source, as long as the graph itself
            del node.metadata_props[:]
            node.doc_string = ""
        for emptied in (graph.node, graph.value_info, graph.metadata_props, model.metadata_props):
            del emptied[:]
        graph.node.extend(nodes)

    def _put(self, content: bytes) -> dict[str, int]:
        digest = hashlib.sha256(content).digest()
        if digest not in self.places:
            self.content += bytes(-len(self.content) % 64)
            self.places[digest] = len(self.content)
            self.content += content
        return {"offset": self.places[digest], "length": len(content)}


def check(bench: World) -> dict:
    """What one step of DATE comes to, for the page to see whether a processor computes it right."""
    date = dk.DATE(bench.guide, rho=1.0)
    run = dk.Sampler(bench.backbone, date, num_steps=NUM_STEPS[0]).start([OPENING], seeds=[0])
    (h,) = bench.guide(bench.backbone.decode(run.step().x0bar_hat), [OPENING]).tolist()
    settings = {"prompt": OPENING, "seed": 0, "rho": 1.0, "anchor": "original"}
    settings |= {"guidance": bench.backbone.recommended.guidance_scale, "steps": NUM_STEPS[0]}
    settings |= {"when": [True] * NUM_STEPS[0]}
    return {"settings": settings, "h": h, "xt": run.state.xt.flatten().tolist()}


def facts(bench: World) -> dict:
    """What the page needs to know beside the graphs: words, schedules, colours, shapes."""
    backbone, tokenizer = bench.backbone, bench.backbone.pipe.tokenizer
    ids = {word: tokenizer(word)["input_ids"][1:-1] for word in (*captions.WORDS, ".")}
    assert all(len(tokens) == 1 for tokens in ids.values())
    ends = tokenizer("")["input_ids"]
    schedules = {}
    for steps in NUM_STEPS:
        solver = dk.Sampler(backbone, num_steps=steps).solver
        levels = [solver.level(i) for i in range(steps + 1)]
        schedules[steps] = {"timesteps": solver.timesteps, "levels": levels}
    names = ("CONTRAST", "SPECK", "OVERLAP", "TINT", "NOISE")
    limits = {name: getattr(oracle, name) for name in names}
    return {
        "words": {word: tokens[0] for word, tokens in ids.items()},
        "start": ends[0],
        "end": ends[-1],
        "stop": tokenizer("..")["input_ids"][1],  # a full stop before another
        "window": tokenizer.model_max_length,
        "guidance": backbone.recommended.guidance_scale,
        "latent": backbone.latent_shape(),
        "schedules": schedules,
        "colours": world.COLOURS,
        "shapes": world.SHAPES,
        "relations": world.RELATIONS,
        "numbers": captions.NUMBERS,
        "polygons": renderer.POLYGONS,
        "areas": {shape: renderer.area(shape) for shape in world.SHAPES},
        "oracle": limits,
        "prompts": [OPENING, *captions.prompts("heldout", 24, seed=11, part="tune")],
        "check": check(bench),
        "version": dk.__version__,
    }


def write(folder: Path) -> None:
    """Write the graphs, their weights and the facts into a folder."""
    bench, weights = World(), Weights()
    torch.manual_seed(0)
    for name, example in examples(bench).items():
        model = export(bench, name, example)
        weights.take(model)
        (folder / f"{name}.onnx").write_bytes(model.SerializeToString())
    (folder / "weights.bin").write_bytes(weights.content)
    (folder / "facts.json").write_text(json.dumps(facts(bench)))
