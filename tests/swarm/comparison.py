"""Two histories of one world, compared bit for bit: slot by slot, or identity by identity."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np


def on_host(x):
    return np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x)


def same_bits(a, b, where=""):
    """All leaves equal bit for bit (NaN equals NaN)."""
    paths = jax.tree_util.tree_leaves_with_path(a)
    for (path, x), y in zip(paths, jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(on_host(x), on_host(y), err_msg=f"{where}{jax.tree_util.keystr(path)}")


def same_by_uid(a, b, rounded=()):
    """What is said of each identity, and of the world; of some parts numbers may differ by rounding.

    Args:
        a: a history.
        b: another one.
        rounded: `entity`, `observation`, `earned`, `maps`, `metrics`.
    """
    for step, (x, y) in enumerate(zip(_steps(a), _steps(b), strict=True)):
        for part in x:
            where = f"step {step}: {part}: "
            if part in rounded:
                for u, v in zip(jax.tree.leaves(x[part]), jax.tree.leaves(y[part]), strict=True):
                    np.testing.assert_allclose(u, v, rtol=1e-5, atol=1e-5, err_msg=where)
            else:
                same_bits(x[part], y[part], where)


def _steps(history):
    """For each step what is said of every identity, in the order of identities, and what is said of the world."""
    world, timestep, _, metrics = history
    e, observation = world.entities, timestep.observation
    seen = jax.tree.leaves(observation)
    is_own = lambda x: x.shape[:2] == e.alive.shape  # noqa: E731
    living = {
        "identity": [e.uid, e.kind, e.team],
        "entity": [e.position, e.heading, e.velocity, e.stores],
        "groups": [_group(world.hierarchy, level) for level in range(len(world.hierarchy.levels) - 1)],
        "observation": [x for x in seen if is_own(x)],
    }
    acted = {"flags": [timestep.valid, timestep.terminated, timestep.truncated], "earned": [timestep.reward]}
    ends = [timestep.world_terminated, timestep.world_truncated, world.status, world.n_overflow, e.next_uid]
    whole = {"maps": [x for x in seen if not is_own(x)], "end": ends, "metrics": list(metrics.values())}
    # What a step gave belongs to whoever held the slot before it; what dead slots hold is nobody's.
    for t in range(1, len(e.alive)):
        parts = {name: [np.asarray(x)[t] for x in columns] for name, columns in whole.items()}
        for rows, when in ((living, t), (acted, t - 1)):
            slots = np.flatnonzero(e.alive[when])
            slots = slots[np.argsort(e.uid[when, slots])]
            parts |= {name: [np.asarray(x)[t, slots] for x in columns] for name, columns in rows.items()}
        yield parts


def _group(hierarchy, level):
    """Identity of each entity's group at a level above."""
    index = hierarchy.parent[0]
    for parent in hierarchy.parent[1 : level + 1]:
        index = np.where(index >= 0, np.take_along_axis(parent, np.maximum(index, 0), axis=1), -1)
    identity = np.take_along_axis(hierarchy.identity[level], np.maximum(index, 0), axis=1)
    return np.where(index >= 0, identity, -1)


def shuffled(tree, order):
    """A world or time step with its slots in another order; where a slot is named, its name changes, too."""
    n, place = len(order), np.argsort(order)

    def shuffle(path, x):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return x
        y = np.asarray(x)
        for axis in np.flatnonzero(np.asarray(y.shape) == n):
            y = np.take(y, order, axis)
        if any(getattr(part, "name", "") in ("index", "builder") for part in path):
            y = np.where(y >= 0, place[np.clip(y, 0, n - 1)], y)
        return jnp.asarray(y.astype(x.dtype))

    return jax.tree_util.tree_map_with_path(shuffle, eqx.filter(tree, eqx.is_array))
