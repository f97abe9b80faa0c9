"""The next token from logits: greedy with its margin, or drawn by (seed, prompt, sample, position).

A sample depends on these four only: neighbours, batch size and mesh change it by rounding alone.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax


def likeliest(logits_BV: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(the first id of the largest logit [B] int32, that logit [B]).

    As argmax, which XLA's CPU compiler makes a loop of one thread over single numbers.
    """
    V = logits_BV.shape[1]
    top_B = jnp.max(logits_BV, axis=1)
    id_1V = jnp.arange(V, dtype=jnp.int32)[None]
    best_B = jnp.min(jnp.where(logits_BV == top_B[:, None], id_1V, V - 1), axis=1)
    return best_B, top_B


def margin(logits_BV: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(best id [B] int32, difference between the best two logits [B])."""
    best_B, top_B = likeliest(logits_BV)
    is_best_BV = jnp.arange(logits_BV.shape[1])[None] == best_B[:, None]
    others_BV = jnp.where(is_best_BV, -jnp.inf, logits_BV)
    return best_B, top_B - jnp.max(others_BV, axis=1)


def filtered(scores_BV: jax.Array, top_k_B: jax.Array, top_p_B: jax.Array) -> jax.Array:
    """Scores with all but the top_k best (0: all), and all but the top_p mass of these, at -inf.

    Hugging Face's order: temperature, k, p.
    """
    V = scores_BV.shape[1]
    top_k_B1, top_p_B1 = top_k_B[:, None], top_p_B[:, None]
    sorted_BV = -jnp.sort(-scores_BV, axis=1)
    at_1V = jnp.arange(V)[None]
    kept_BV = at_1V < jnp.where(top_k_B1 > 0, top_k_B1, V)
    p_BV = jax.nn.softmax(jnp.where(kept_BV, sorted_BV, -jnp.inf), axis=1)
    # the mass before a token is under top_p; the first one stays
    before_BV = jnp.cumsum(p_BV, axis=1) - p_BV
    kept_BV = kept_BV & ((before_BV < top_p_B1) | (top_p_B1 >= 1) | (at_1V == 0))
    worst_B1 = jnp.min(jnp.where(kept_BV, sorted_BV, jnp.inf), axis=1, keepdims=True)
    return jnp.where(scores_BV >= worst_B1, scores_BV, -jnp.inf)


def pick(
    logits_BV: jax.Array, state: dict[str, jax.Array], greedy: bool, filters: bool
) -> tuple[jax.Array, jax.Array]:
    """(next token [B] int32, margin [B], inf where it was drawn).

    state: temperature, top_k, top_p, seed, prompt, sample, position, each [B]; a temperature of 0
    is greedy. Static: greedy, all slots are; filters, whether top_k or top_p cut anything in any.
    """
    best_B, margin_B = margin(logits_BV)
    if greedy:
        return best_B, margin_B
    drawn_B = state["temperature"] > 0
    scores_BV = logits_BV / jnp.where(drawn_B, state["temperature"], 1)[:, None]
    if filters:
        scores_BV = filtered(scores_BV, state["top_k"], state["top_p"])

    def noise(seed, *path):
        key = functools.reduce(jax.random.fold_in, path, jax.random.key(seed))
        return jax.random.gumbel(key, scores_BV.shape[1:], jnp.float32)

    names = ("seed", "prompt", "sample", "position")
    noise_BV = jax.vmap(noise)(*(state[name] for name in names))
    # the argmax with Gumbel noise is a sample of the softmax
    new_B = jnp.argmax(scores_BV + noise_BV, axis=1).astype(jnp.int32)
    return jnp.where(drawn_B, new_B, best_B), jnp.where(drawn_B, jnp.inf, margin_B)


def token_scores(
    logits_BV: jax.Array, token_B: jax.Array, unused: jax.Array, top: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(log-probability of token_B [B], the `top` likeliest ids [B, top], theirs [B, top]).

    Of the raw logits, before temperature and filters, as OpenAI's and vLLM's are: nats, float32.
    unused: ids that are never among the likeliest.
    """
    logits_BV = logits_BV.astype(jnp.float32)
    norm_B1 = jax.nn.logsumexp(logits_BV, axis=1, keepdims=True)
    logp_B = (jnp.take_along_axis(logits_BV, token_B[:, None], axis=1) - norm_B1)[:, 0]
    if unused.size:
        logits_BV = logits_BV.at[:, unused].set(-jnp.inf)
    if top == 1:  # a sort of the vocabulary costs as much as the product that makes it
        best_B, top_B = likeliest(logits_BV)
        return logp_B, best_B[:, None], top_B[:, None] - norm_B1
    values, ids = lax.top_k(logits_BV, min(top, logits_BV.shape[1]))
    return logp_B, ids, values - norm_B1
