"""First-order rules as their papers print them: one tensor, numpy, float64, no cleverness.

Each is a generator of weights: `send` it a gradient (and the rate's factor), it yields the
weights after the step. Written from the formulas, not from the plugins.
"""

from __future__ import annotations

from collections.abc import Callable, Generator

import numpy as np

Rule = Generator[np.ndarray, tuple[np.ndarray, float], None]


def adam_like(step: Callable, weight: np.ndarray, **settings: float) -> Rule:
    """Drives ``step(t, weight, gradient, lr, memory, **settings) -> weight``."""
    memory: dict = {}
    t = 0
    lr = settings.pop("lr")
    while True:
        gradient, factor = yield weight
        t += 1
        weight = step(t, weight, gradient, lr * factor, memory, **settings)


def moments(t, g, memory, beta1, beta2):
    memory["m"] = beta1 * memory.get("m", 0 * g) + (1 - beta1) * g
    memory["v"] = beta2 * memory.get("v", 0 * g) + (1 - beta2) * g**2
    return memory["m"], memory["v"]


def adabound(t, w, g, lr, memory, *, beta1, beta2, final, base, gamma, eps, decay, ams):
    g = g + decay * w
    m, v = moments(t, g, memory, beta1, beta2)
    if ams:
        v = memory["largest"] = np.maximum(memory.get("largest", 0 * v), v)
    target = final * lr / base
    rate = lr * np.sqrt(1 - beta2**t) / (1 - beta1**t) / (np.sqrt(v) + eps)
    low, high = target * (1 - 1 / (gamma * t + 1)), target * (1 + 1 / (gamma * t))
    return w - np.clip(rate, low, high) * m


def adamod(t, w, g, lr, memory, *, beta1, beta2, beta3, eps, decay):
    m, v = moments(t, g, memory, beta1, beta2)
    eta = lr / (np.sqrt(v / (1 - beta2**t)) + eps)
    s = memory["s"] = beta3 * memory.get("s", 0 * g) + (1 - beta3) * eta
    return w - lr * decay * w - np.minimum(eta, s) * m / (1 - beta1**t)


def nadam(t, w, g, lr, memory, *, beta1, beta2, psi, eps, decay):
    def mu(step):
        return beta1 * (1 - 0.5 * 0.96 ** (step * psi))

    m, v = moments(t, g, memory, beta1, beta2)
    product = memory["product"] = memory.get("product", 1.0) * mu(t)
    ahead = mu(t + 1) * m / (1 - product * mu(t + 1)) + (1 - mu(t)) * g / (1 - product)
    return w - lr * decay * w - lr * ahead / (np.sqrt(v / (1 - beta2**t)) + eps)


def adam_cm(t, w, g, lr, memory, *, beta1, beta2, capacity, retention, eps, decay):
    m = memory["m"] = beta1 * memory.get("m", 0 * g) + (1 - beta1) * g
    kept = memory.setdefault("kept", [])
    a = m + (sum(momentum for _, momentum in kept) / len(kept) if kept else 0)
    v = memory["v"] = beta2 * memory.get("v", 0 * g) + (1 - beta2) * a**2
    priority = np.linalg.norm(g)
    if len(kept) < capacity:
        kept.append((priority, m))
    else:
        least = min(range(capacity), key=lambda i: kept[i][0])
        if priority > kept[least][0]:
            kept[least] = (priority, m)
    memory["kept"] = [(p * retention, momentum) for p, momentum in kept]
    hat = np.sqrt(v / (1 - beta2**t)) + eps
    return w - lr * decay * w - lr * a / (1 - beta1**t) / hat


def lamb(t, w, g, lr, memory, *, beta1, beta2, eps, decay):
    m, v = moments(t, g, memory, beta1, beta2)
    u = (m / (1 - beta1**t)) / (np.sqrt(v / (1 - beta2**t)) + eps) + decay * w
    trust = np.linalg.norm(w) / np.linalg.norm(u) if w.ndim > 1 else 1.0
    return w - lr * trust * u


def lars(t, w, g, lr, memory, *, momentum, trust, decay, factor=lambda t: 1.0):
    size, slope = np.linalg.norm(w), np.linalg.norm(g)
    local = trust * factor(t) * size / (slope + decay * size) if w.ndim > 1 else 1.0
    v = memory["v"] = momentum * memory.get("v", 0 * g) + local * (g + decay * w)
    return w - lr * v


def tvlars(t, w, g, lr, memory, *, alpha, rate, delay, floor, **settings):
    def phi(t):
        return 1 / (alpha + np.exp(rate * (t - delay))) + floor

    return lars(t, w, g, lr, memory, factor=phi, **settings)


def sgd_sai(t, w, g, lr, memory, *, momentum, eps, decay):
    if t == 1:
        memory["snr"] = np.linalg.norm(g) / (np.std(g, ddof=1) + eps)
        memory["m"] = g
    else:
        memory["m"] = momentum * memory["m"] + (1 - momentum) * g
    return w - lr * decay * w - lr * memory["snr"] * memory["m"]


def adaptive_braking(t, w, g, lr, memory, *, momentum, rho, decay, by_filter):
    d = g + decay * w
    v = memory.get("v", 0 * g)
    alpha = np.ones_like(w)
    for index in range(len(w)) if by_filter and w.ndim > 1 else [slice(None)]:
        size = np.linalg.norm(d[index]) * np.linalg.norm(v[index])
        alpha[index] = 1 - rho * (np.sum(d[index] * v[index]) / size if size > 0 else 0.0)
    v = memory["v"] = momentum * v + alpha * d
    return w - lr * v


def perpgrad(t, w, g, lr, memory, *, beta1, beta2, eps, decay, rescale):
    perpendicular = g - np.sum(w * g) / np.sum(w * w) * w
    if rescale:
        perpendicular = perpendicular * np.linalg.norm(g) / np.linalg.norm(perpendicular)
    m, v = moments(t, perpendicular, memory, beta1, beta2)
    hat = np.sqrt(v / (1 - beta2**t)) + eps
    return w - lr * decay * w - lr * m / (1 - beta1**t) / hat


def away(w, g, u, delta):
    """The authors' projection: channels first, then the tensor; and whether it took place."""
    if w.ndim == 1:
        return u, False
    for rows in (w.reshape(len(w), -1), w.reshape(1, -1)):
        slopes, steps = g.reshape(rows.shape), u.reshape(rows.shape)
        size = np.linalg.norm(rows, axis=1)
        cosine = np.abs(np.sum(rows * slopes, 1)) / (size * np.linalg.norm(slopes, axis=1))
        if cosine.max() < delta / np.sqrt(rows.shape[1]):
            unit = rows / (size[:, None] + 1e-8)
            steps = steps - unit * np.sum(unit * steps, 1, keepdims=True)
            return steps.reshape(w.shape), True
    return u, False


def adamp(t, w, g, lr, memory, *, beta1, beta2, eps, decay, delta, ratio, nesterov):
    m, v = moments(t, g, memory, beta1, beta2)
    ahead = beta1 * m + (1 - beta1) * g if nesterov else m
    u = ahead / (1 - beta1**t) / (np.sqrt(v / (1 - beta2**t)) + eps)
    u, projected = away(w, g, u, delta)
    return w * (1 - lr * decay * (ratio if projected else 1)) - lr * u


def sgdp(t, w, g, lr, memory, *, momentum, decay, delta, ratio, nesterov):
    v = memory["v"] = momentum * memory.get("v", 0 * g) + g
    u, projected = away(w, g, g + momentum * v if nesterov else v, delta)
    return w * (1 - lr * decay * (ratio if projected else 1) / (1 - momentum)) - lr * u


def schedule_free(t, w, g, lr, memory, *, beta1, beta2, eps, decay):
    """Algorithm 1 of the paper with its three sequences kept apart."""
    z, x = memory.setdefault("z", w), memory.setdefault("x", w)
    v = memory["v"] = beta2 * memory.get("v", 0 * g) + (1 - beta2) * g**2
    largest = memory["largest"] = max(memory.get("largest", 0.0), lr)
    total = memory["total"] = memory.get("total", 0.0) + largest**2
    share = largest**2 / total
    z = memory["z"] = z - lr * (g / (np.sqrt(v / (1 - beta2**t)) + eps) + decay * w)
    x = memory["x"] = (1 - share) * x + share * z
    return (1 - beta1) * z + beta1 * x


def prodigy(t, w, g, lr, memory, *, beta1, beta2, eps, decay, d0, coefficient, correct, safe):
    d, start = memory.setdefault("d", d0), memory.setdefault("start", w)
    rate = lr * d * (np.sqrt(1 - beta2**t) / (1 - beta1**t) if correct else 1.0)
    beta3 = np.sqrt(beta2)
    memory["r"] = beta3 * memory.get("r", 0.0) + d / d0 * rate * np.sum(g * (start - w))
    weight = d / d0 * (d if safe else rate)
    memory["s"] = beta3 * memory.get("s", 0 * g) + weight * g
    memory["m"] = beta1 * memory.get("m", 0 * g) + d * (1 - beta1) * g
    memory["v"] = beta2 * memory.get("v", 0 * g) + d**2 * (1 - beta2) * g**2
    d = memory["d"] = max(d, coefficient * memory["r"] / np.abs(memory["s"]).sum())
    return w - rate * decay * w - rate * memory["m"] / (np.sqrt(memory["v"]) + d * eps)
