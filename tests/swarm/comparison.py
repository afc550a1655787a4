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


def same_by_uid(a, b):
    """Entities, groups, observations, rewards and flags of each identity; metrics, status and maps of the world."""
    for step, (x, y) in enumerate(zip(_steps(a), _steps(b), strict=True)):
        same_bits(x, y, f"step {step}: ")


def _steps(history):
    """For each step what is said of every identity, in the order of identities, and what is said of the world."""
    world, timestep, _, metrics = history
    e, observation = world.entities, timestep.observation
    seen = jax.tree.leaves(observation)
    is_own = lambda x: x.shape[:2] == e.alive.shape  # noqa: E731
    own = {
        "entity": [e.alive, e.kind, e.team, e.position, e.heading, e.velocity, e.stores],
        "groups": [_group(world.hierarchy, level) for level in range(len(world.hierarchy.levels) - 1)],
        "observation": [x for x in seen if is_own(x)],
        "step": [timestep.reward, timestep.valid, timestep.terminated, timestep.truncated],
    }
    whole = {
        "maps": [x for x in seen if not is_own(x)],
        "flags": [timestep.world_terminated, timestep.world_truncated, world.status, world.n_overflow, e.next_uid],
        "metrics": metrics,
    }
    for t in range(len(e.alive)):
        # Who lives or has just died. What dead slots hold is nobody's.
        slots = np.flatnonzero(e.alive[t] | timestep.valid[t])
        slots = slots[np.argsort(e.uid[t, slots])]
        rows = jax.tree.map(lambda x, t=t, slots=slots: np.asarray(x)[t, slots], own)
        living = rows["entity"][0]
        for part in ("entity", "groups", "observation"):
            rows[part] = [np.where(living.reshape(-1, *[1] * (x.ndim - 1)), x, 0) for x in rows[part]]
        yield e.uid[t, slots], rows, jax.tree.map(lambda x, t=t: np.asarray(x)[t], whole)


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
        if any(getattr(part, "name", "") in ("index", "receiver", "sender", "builder") for part in path):
            y = np.where(y >= 0, place[np.clip(y, 0, n - 1)], y)
        return jnp.asarray(y.astype(x.dtype))

    return jax.tree_util.tree_map_with_path(shuffle, eqx.filter(tree, eqx.is_array))
