"""Rounding that makes up for its own errors: integers of a matrix by what the matrix is multiplied by.

Of a product x W with inputs x (n,) and outputs (m,), what counts is not the error of W but that of x W, whose mean
square is the sum over the outputs of (V - W)' H (V - W), with H the mean of x' x over recordings (n, n) and V what the
integers stand for. Weights to which inputs are correlated can make up for each other there.

The steps, each of which lowers that sum or leaves it:

1. Inputs are rounded one after another, from the largest H_ii on; the error of each, e = w_i - v_i, is spread over
   those that are still to come: w_j += e * U_ij / U_ii, with U the upper Cholesky factor of H^-1 (GPTQ: Frantar et al.,
   2022, arXiv 2210.17323, equations 2 and 3 and section 3.3, with `act_order` of its published code).
2. Each is rounded again, the others as they are: v_i is the value of the grid that is nearest to the best real one,
   v_i - (H (V - W))_i / H_ii (coordinate descent: QuantEase, Behdin et al., 2023, arXiv 2309.01885, section 3).
3. The scales of the grid that are best for these integers are found by least squares in H, all blocks of an output
   together, then steps 1 and 2 are repeated (alternating as HQQ and OmniQuant do; the closed form is ours).

H gets a share of its mean diagonal added to the diagonal (GPTQ, section 3.3).
"""

from __future__ import annotations

import numpy as np

DAMPING = 0.01


def damped(gram, damping=DAMPING):
    gram = np.array(gram, np.float64)
    dead = np.diag(gram) <= 0
    gram[dead, dead] = 1.0
    gram[np.diag_indices_from(gram)] += damping * np.diag(gram).mean()
    return gram


def loss(V, W, H):
    e = V - W
    return float(np.einsum("nm,nm->", e, H @ e))


def spread(W, H, scale, zero, lo, hi):
    order = np.argsort(-np.diag(H), kind="stable")
    Hp = H[np.ix_(order, order)]
    inv = np.linalg.inv(Hp)
    U = np.linalg.cholesky(inv).T  # inv = L L' = U' U with U upper
    w = W[order].copy()
    s, z = scale[order], zero[order]
    q = np.empty_like(w)
    BL = 32
    n = len(w)
    for b in range(0, n, BL):
        e = min(b + BL, n)
        err = np.empty((e - b, w.shape[1]))
        for i in range(b, e):
            q[i] = np.clip(np.rint(w[i] / s[i] + z[i]), lo, hi)
            err[i - b] = (w[i] - (q[i] - z[i]) * s[i]) / U[i, i]
            w[i + 1 : e] -= U[i, i + 1 : e, None] * err[i - b]
        w[e:] -= U[b:e, e:].T @ err
    out = np.empty_like(q)
    out[order] = q
    return out


def descend(q, W, H, scale, zero, lo, hi, passes):
    V = (q - zero) * scale
    R = H @ (V - W)
    d = np.diag(H)
    for _ in range(passes):
        changed = 0
        for i in range(len(q)):
            best = V[i] - R[i] / d[i]
            new = np.clip(np.rint(best / scale[i] + zero[i]), lo, hi)
            if np.any(new != q[i]):
                v = (new - zero[i]) * scale[i]
                R += H[:, i, None] * (v - V[i])
                changed += int((new != q[i]).sum())
                V[i], q[i] = v, new
        if not changed:
            break
    return q


def refit(q, W, H, zero, block, asym):
    """Scales (and zeros) per block and output by least squares."""
    n, m = W.shape
    nb = -(-n // block)
    HW = H @ W
    scale = np.empty((nb, m)); z = np.empty((nb, m))
    idx = np.arange(n) // block
    k = 2 * nb if asym else nb
    ones = np.zeros((n, nb)); ones[np.arange(n), idx] = 1
    zb = np.stack([zero[b * block] for b in range(nb)])
    for o in range(m):
        Q = ones * (q[:, o] if asym else q[:, o] - zero[:, o])[:, None]
        A = np.concatenate([Q, ones], 1) if asym else Q
        G = A.T @ H @ A
        G[np.diag_indices(k)] += 1e-6 * np.diag(G).mean() + 1e-12
        x = np.linalg.solve(G, A.T @ HW[:, o])
        s = x[:nb]
        scale[:, o] = s
        if asym:
            z[:, o] = -x[nb:] / np.where(s == 0, 1, s)
    return scale, (z if asym else zb)
