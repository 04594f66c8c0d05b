"""Soft tokens, and networks written out around them in plain tensors."""

from __future__ import annotations

import copy

import torch
from diffusers.models.attention_processor import Attention

from datekit.methods.soft_tokens import SoftTokens


def soft(layers, width, m=3, time=True, seed=0, scale=2.0):
    """Random tokens, large enough that a mistake shows."""
    places = len(layers) if isinstance(layers[0], int) else 1
    generator = torch.Generator().manual_seed(seed)
    index = scale * torch.randn(100, places, width, generator=generator) if time else None
    return SoftTokens(scale * torch.randn(places, m, width, generator=generator), index, layers)


class PlainInsertion:
    """Cross-attention by einsum that reads [first, tokens, rest]; nothing else is changed."""

    def __init__(self, tokens):
        self.tokens = tokens

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None):
        first, rest = encoder_hidden_states[:, 0:1], encoder_hidden_states[:, 1:]
        c = torch.cat([first, torch.stack([self.tokens] * len(first)), rest], dim=1)
        q, k, v = attn.to_q(hidden_states), attn.to_k(c), attn.to_v(c)
        answers = []
        for part in torch.arange(q.shape[-1]).chunk(attn.heads):
            scores = torch.einsum("bpd,bld->bpl", q[..., part], k[..., part]) / len(part) ** 0.5
            answers.append(torch.einsum("bpl,bld->bpd", scores.softmax(2), v[..., part]))
        return attn.to_out[0](torch.cat(answers, 2))


def plain_unet(pipe, tokens, t):
    """A copy of the network whose chosen cross-attentions insert the tokens of timestep t."""
    unet = copy.deepcopy(pipe.unet)
    vectors = tokens.tokens[0]
    if tokens.time is not None:
        vectors = vectors + tokens.time[min(int(t), 999) // 10, 0]
    for name, module in unet.named_modules():
        chosen = isinstance(module, Attention) and name.split("_")[0] in tokens.layers
        if chosen and module.is_cross_attention:
            module.set_processor(PlainInsertion(vectors))
    return unet


def plain_sd3(network, tokens, xt, t, text, pooled):
    """The forward pass of SD3's transformer, block by block."""
    grid, length, hidden = xt.shape[-1] // 2, text.shape[1], network.pos_embed(xt)
    temb = network.time_text_embed(torch.full((len(xt),), t), pooled)
    text = network.context_embedder(text)
    for k, block in enumerate(network.transformer_blocks):
        if k in tokens.layers:
            place = tokens.layers.index(k)
            vectors = tokens.tokens[place]
            if tokens.time is not None:
                vectors = vectors + tokens.time[min(int(t), 999) // 10, place]
            text = torch.cat([torch.stack([vectors] * len(text)), text], 1)
        text, hidden = block(hidden, text, temb)
        text = None if text is None else text[:, -length:]
    out = network.proj_out(network.norm_out(hidden, temb)).view(len(xt), grid, grid, 2, 2, 4)
    return out.permute(0, 5, 1, 3, 2, 4).reshape(xt.shape)
