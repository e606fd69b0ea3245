"""The paper's network in PyTorch, to compare speeds with; test_pytorch.py holds it against ours.

It is as one would write it there: NCHW, one operation after the other, upsampling first, gradients
by autograd. It knows the paper's cells and volume-preserving flows. Parameters come from a model of
ours.
"""

import math
import re

import torch
import torch.nn.functional as F

from nvae_jax.model import ModelConfig
from nvae_jax.model.flows import causal_mask
from nvae_jax.training.regularizers import ROUNDS


def from_ours(tree):
    """Our nested arrays as tensors in PyTorch's layouts; a scale's stack as a list of groups."""
    return {name: _from_ours(name, value) for name, value in tree.items()}


def _from_ours(name, value):
    if re.fullmatch(r"scale_\d+", name):
        count = len(_leaves(value)[0])
        return [from_ours(_map(lambda x, i=i: x[i], value)) for i in range(count)]
    if isinstance(value, dict):
        return from_ours(value)
    axes = {"kernel": (3, 2, 0, 1) if value.ndim == 4 else (1, 0), "prior_features": (2, 0, 1)}
    tensor = torch.tensor(value)
    return tensor.permute(axes[name]).contiguous() if name in axes else tensor


def _map(function, tree):
    if isinstance(tree, dict):
        return {name: _map(function, value) for name, value in tree.items()}
    return function(tree)


def _leaves(tree):
    if isinstance(tree, (dict, list)):
        values = tree.values() if isinstance(tree, dict) else tree
        return [leaf for value in values for leaf in _leaves(value)]
    return [tree]


def _layers(tree, path=()):
    """Every layer's own parameters, by path."""
    if not isinstance(tree, (dict, list)):
        return
    if isinstance(tree, dict) and any(torch.is_tensor(value) for value in tree.values()):
        yield path, tree
    for name, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        yield from _layers(value, (*path, name))


def effective_kernel(p, mask=None):
    """(O, I, k, k), normalised and masked."""
    kernel = p["kernel"] if mask is None else p["kernel"] * mask
    if "log_gain" not in p:
        return kernel
    norm = kernel.square().sum((1, 2, 3)).sqrt() + 1e-5
    return kernel * (p["log_gain"].exp() / norm)[:, None, None, None]


def conv(p, x, stride=1, groups=1, mask=None):
    """A convolution that keeps the size, but for the stride."""
    kernel = effective_kernel(p, mask)
    pad = kernel.shape[-1] // 2
    return F.conv2d(x, kernel, p.get("bias"), stride, pad, groups=groups)


def soft_clamp(x):
    """Bounds x to (-5, 5)."""
    return 5 * torch.tanh(x / 5)


class Network:
    """A model with its parameters `params` and running statistics `stats`."""

    def __init__(self, config: ModelConfig, variables):
        if config.one_group or config.flow != "shift":
            raise ValueError("only models of several groups, with flows that shift")
        self.config = config
        self.params = from_ours(variables["params"])
        self.stats = from_ours(variables["batch_stats"])
        self.leaves = [x.requires_grad_() for x in _leaves(self.params)]
        self.masks = {}
        self.vectors = {}

    # Cells.

    def _norm(self, p, s, x, train):
        return F.batch_norm(x, s["mean"], s["var"], p["scale"], p["bias"], train, 0.05, 1e-5)

    def _operation(self, p, s, x, name, resize, train):
        if name == "res_bnswish":
            x = F.silu(self._norm(p["norm"], s["norm"], x, train))
            return conv(p["conv"], x, stride=2 if resize == "down" else 1)
        if not re.fullmatch(r"mconv_e\dk5g0", name) or resize == "down":
            raise ValueError(f"not one of the paper's operations: {name} ({resize})")
        if resize == "up":
            x = F.interpolate(x, scale_factor=2, mode="nearest")
        x = conv(p["expand"], self._norm(p["norm_in"], s["norm_in"], x, train))
        x = F.silu(self._norm(p["norm_expand"], s["norm_expand"], x, train))
        x = conv(p["spatial"], x, groups=x.shape[1])
        x = F.silu(self._norm(p["norm_spatial"], s["norm_spatial"], x, train))
        return self._norm(p["norm_out"], s["norm_out"], conv(p["project"], x), train)

    def _cell(self, p, s, x, operations, train, resize="same"):
        y = x
        for i, name in enumerate(operations):
            part = f"op_{i}"
            y = self._operation(p[part], s[part], y, name, "same" if i else resize, train)
        if self.config.squeeze_excite:
            excite, squeeze = (p["squeeze_excite"][name] for name in ("excite", "squeeze"))
            gate = F.relu(F.linear(y.mean((2, 3)), squeeze["kernel"], squeeze["bias"]))
            gate = torch.sigmoid(F.linear(gate, excite["kernel"], excite["bias"]))
            y = y * gate[:, :, None, None]
        if resize == "up":
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
            x = conv(p["skip"]["conv"], x)
        elif resize == "down":
            x = F.silu(x)
            corners = (x, x[:, :, 1:, 1:], x[:, :, :, 1:], x[:, :, 1:])
            parts = [conv(p["skip"][f"conv_{i}"], part, 2) for i, part in enumerate(corners)]
            x = torch.cat(parts, 1)
        return x + 0.1 * y

    # Towers.

    def encode(self, x, train):
        """(B, C, H, W) in [0, 1] → top features, and features by scale and group, bottom-up."""
        config, cells = self.config, self.config.cells
        p, s = self.params["encoder"], self.stats["encoder"]
        x = conv(p["stem"], 2 * x - 1)
        for block in range(config.num_blocks):
            for i in range(config.preprocess_cells):
                resize = "down" if i == config.preprocess_cells - 1 else "same"
                name = f"preprocess_{block}_{i}"
                x = self._cell(p[name], s[name], x, cells.preprocess, train, resize)
        taps = []
        for scale in range(config.num_scales):
            if scale:
                name = f"down_{scale}"
                x = self._cell(p[name], s[name], x, cells.encoder, train, "down")
            taps.append([])
            for group, stats in zip(p[f"scale_{scale}"], s[f"scale_{scale}"], strict=True):
                for i in range(config.encoder_cells):
                    name = f"cell_{i}"
                    x = self._cell(group[name], stats[name], x, cells.encoder, train)
                taps[-1].append(x)
        return F.elu(conv(p["top"], F.elu(x))), taps

    def _flow(self, p, z, mirrored):
        def masked(name, x, strict=False, groups=1):
            key = (*p[name]["kernel"].shape, strict, mirrored)
            if key not in self.masks:
                out, inputs, k, _ = p[name]["kernel"].shape
                mask = causal_mask((k, k, inputs, out), strict, mirrored)
                self.masks[key] = torch.tensor(mask.transpose(3, 2, 0, 1).copy())
            return conv(p[name], x, groups=groups, mask=self.masks[key])

        x = F.elu(masked("strict_conv", z, strict=True))
        x = F.elu(F.elu(masked("depthwise_conv", x, groups=x.shape[1])))
        return z - masked("head", x)

    def _group(self, p, s, h, tap, noise, train, first=False):
        """New features, and (B,) log q - log p or the KL; without a tap from the prior."""
        config = self.config
        prior = torch.zeros(()), torch.zeros(())
        if not first:
            for i in range(config.decoder_cells):
                h = self._cell(p[f"cell_{i}"], s[f"cell_{i}"], h, config.cells.decoder, train)
            prior = conv(p["prior"], F.elu(h)).chunk(2, 1)
        mean, sigma = soft_clamp(prior[0]), soft_clamp(prior[1]).exp() + 1e-2
        kl = None
        if tap is None:
            z = mean + sigma * noise
        else:
            if not first:
                tap = tap + conv(p["combine_encoder"], h)
            raw = conv(p["posterior"], tap).chunk(2, 1)
            if config.residual_posterior:
                raw = [q + prior for q, prior in zip(raw, prior, strict=True)]
            q_mean, q_sigma = soft_clamp(raw[0]), soft_clamp(raw[1]).exp() + 1e-2
            z = q_mean + q_sigma * noise
            log_q = -0.5 * noise.square() - q_sigma.log()
            for i in range(config.num_flows):
                z = self._flow(p[f"flow_{i}"]["forward"], z, False)
                z = self._flow(p[f"flow_{i}"]["mirrored"], z, True)
            if config.num_flows:
                kl = log_q + 0.5 * ((z - mean) / sigma).square() + sigma.log()
            else:
                shift, ratio = (q_mean - mean) / sigma, q_sigma / sigma
                kl = 0.5 * (shift.square() + ratio.square()) - 0.5 - ratio.log()
            kl = kl.sum((1, 2, 3))
        return conv(p["combine"], torch.cat([h, z], 1)), kl

    def decode(self, encoded, noise, train):
        """(B, Z, h, w) of every group, top-down → logits (B, parameters, H, W), KL (B, groups)."""
        config, cells = self.config, self.config.cells
        p, s = self.params["decoder"], self.stats["decoder"]
        top, taps = encoded or (None, None)
        h = p["prior_features"].expand(len(noise[0]), -1, -1, -1)
        noise = iter(noise)
        h, kl = self._group(p["first"], None, h, top, next(noise), train, first=True)
        kls = [kl]
        for scale in reversed(range(config.num_scales)):
            if scale < config.num_scales - 1:
                name = f"up_{scale}"
                h = self._cell(p[name], s[name], h, cells.decoder, train, "up")
            groups, stats = p.get(f"scale_{scale}", []), s.get(f"scale_{scale}", [])
            for i, (group, statistics) in enumerate(zip(groups, stats, strict=True)):
                tap = None if taps is None else taps[scale][len(groups) - 1 - i]
                h, kl = self._group(group, statistics, h, tap, next(noise), train)
                kls.append(kl)
        for block in range(config.num_blocks):
            for i in range(config.postprocess_cells):
                name = f"postprocess_{block}_{i}"
                resize = "same" if i else "up"
                h = self._cell(p[name], s[name], h, cells.postprocess, train, resize)
        return conv(p["image"], F.elu(h)), None if taps is None else torch.stack(kls, 1)

    # The objective.

    def loss(self, x, noise, beta, targets):
        """The loss () in nats per image, warmed-up and balanced, without regularisers."""
        logits, kl = self.decode(self.encode(x, True), noise, True)
        weights = (kl.abs().mean(0) + 0.01) / targets
        weights = (weights / weights.mean()).detach() if beta < 1 else torch.ones_like(targets)
        return (self._reconstruction(logits, x) + beta * (kl * weights).sum(1)).mean()

    def _reconstruction(self, logits, x):
        if self.config.likelihood == "bernoulli":
            nats = F.softplus(logits) - x * logits
        else:
            nats = -logistic_mixture(logits, 2 * x - 1, self.config.num_mixtures)[:, None]
        edge = self.config.border
        return F.pad(nats, (-edge,) * 4).sum((1, 2, 3))

    def penalty(self):
        """Σ of largest singular values by power iteration, and Σ max|scale| of batch norms."""
        stacks, scales = {}, 0.0
        for path, layer in _layers(self.params):
            if "scale" in layer:
                scales = scales + layer["scale"].abs().max()
            elif layer.get("kernel", torch.ones(())).ndim == 4:
                mask = None
                if any(str(name).startswith("flow_") for name in path):
                    strict, mirrored = path[-1] == "strict_conv", "mirrored" in path
                    mask = self.masks[*layer["kernel"].shape, strict, mirrored]
                kernel = effective_kernel(layer, mask).flatten(1)
                stacks.setdefault(tuple(kernel.shape), []).append(kernel)
        return scales + sum(self._spectral(name, torch.stack(stacks[name])) for name in stacks)

    def _spectral(self, name, matrices):
        with torch.no_grad():
            count, rows, columns = matrices.shape
            if name not in self.vectors:
                vectors = torch.randn(count, rows, 1), torch.randn(count, columns, 1)
                self.vectors[name] = [F.normalize(x, dim=1, eps=1e-3) for x in vectors]
            u, v = self.vectors[name]
            for _ in range(ROUNDS):
                v = F.normalize(matrices.transpose(1, 2) @ u, dim=1, eps=1e-3)
                u = F.normalize(matrices @ v, dim=1, eps=1e-3)
            self.vectors[name] = [u, v]
        return (u * (matrices @ v)).sum()


def logistic_mixture(logits, x, mixtures):
    """(B, 10·M, H, W) and (B, 3, H, W) in [-1, 1] → (B, H, W) nats of log-likelihood, 8 bits."""
    batch, _, height, width = logits.shape
    weights, rest = logits[:, :mixtures], logits[:, mixtures:]
    rest = rest.reshape(batch, 3, 3, mixtures, height, width)
    means, log_scales, coefficients = rest[:, :, 0], rest[:, :, 1], rest[:, :, 2].tanh()
    log_scales = log_scales.clamp(min=-7)
    x = x[:, :, None].expand(-1, -1, mixtures, -1, -1)
    green = means[:, 1] + coefficients[:, 0] * x[:, 0]
    blue = means[:, 2] + coefficients[:, 1] * x[:, 0] + coefficients[:, 2] * x[:, 1]
    centred = x - torch.stack([means[:, 0], green, blue], 1)
    inverse, half = torch.exp(-log_scales), 1 / 255
    upper, lower = inverse * (centred + half), inverse * (centred - half)
    mass = torch.sigmoid(upper) - torch.sigmoid(lower)
    middle = inverse * centred
    density = middle - log_scales - 2 * F.softplus(middle) - math.log(127.5)
    inside = torch.where(mass > 1e-5, mass.clamp(min=1e-10).log(), density)
    edges = torch.where(x > 1 - half, -F.softplus(lower), inside)
    log_mass = torch.where(x < -1 + half, upper - F.softplus(upper), edges)
    return torch.logsumexp(log_mass.sum(1) + F.log_softmax(weights, 1), 1)
