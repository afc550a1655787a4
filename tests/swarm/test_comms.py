"""Messages against a loop over links and steps."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from swarm.comms.links import link_draw, mixed
from swarm.comms.radios import Loss, NearestRadio, SumRadio
from swarm.core.errors import ConfigError
from swarm.geometry.space import Open, Periodic
from swarm.neighbors.questions import AllPairs, Among
from swarm.neighbors.search import SearchTable, neighbor_search
from swarm.population.entities import Entities

fixed = settings(deadline=None, derandomize=True, max_examples=20)
N, T, DELAY, K, RADIUS = 7, 6, 2, 3, 2.0
BOX = Periodic(jnp.zeros(2), jnp.asarray([5.0, 5.0]))
SURE = Loss.of()


def history(seed, capacity=N):
    """T steps of slots whose tenants come and go, with whole numbers as messages; the dead hold NaN."""
    rng = np.random.default_rng(seed)
    alive, uid = np.zeros((T, capacity), bool), np.full((T, capacity), -1)
    position = np.full((T, capacity, 2), np.nan, np.float32)
    message = np.full((T, capacity, 2), np.nan, np.float32)
    next_uid = 0
    for t in range(T):
        if t:
            uid[t] = uid[t - 1]
        for i in range(N):
            stays = t and alive[t - 1, i] and rng.random() < 0.8
            if not stays and rng.random() < 0.6:
                alive[t, i], uid[t, i] = True, next_uid
                next_uid += 1
            alive[t, i] |= bool(stays)
        # Multiples of 1/8 are exact: who stands at the radius itself is no matter of rounding.
        position[t, :N] = rng.integers(0, 40, (N, 2)) / 8
        message[t, :N] = rng.integers(-9, 9, (N, 2))
        position[t, ~alive[t]] = message[t, ~alive[t]] = np.nan
    return tuple(jnp.asarray(x) for x in (alive, uid.astype(np.int32), position, message))


def entities_of(alive, uid, position):
    blank = Entities.empty(alive.shape[0], 2, 0)
    return eqx.tree_at(lambda e: (e.alive, e.uid, e.position), blank, (alive, uid, position))


def exchange(radio, parts, key, backend="all_pairs"):
    """Inboxes of all steps."""
    n = parts[0].shape[1]
    search = neighbor_search(BOX, RADIUS, n, SearchTable(backend=backend, room=8))

    def step(mail, row):
        t, alive, uid, position, message = row
        found = search.find(position, alive)
        return radio.step(mail, found, entities_of(alive, uid, position), message, jax.random.fold_in(key, t))

    return jax.lax.scan(step, radio.init(n, 2), (jnp.arange(T), *parts))[1]


exchanged = eqx.filter_jit(exchange)


def distance(a, b):
    way = a - b
    return np.hypot(*(way - 5 * np.round(way / 5)))


def expected_of(alive, uid, position, message):
    """Loops over steps, receivers and senders: what was sent DELAY steps ago, to those who are still there."""
    total, count = np.zeros((T, N, 2)), np.zeros((T, N))
    letters = np.full((T, N, K), -1)
    for t in range(DELAY, T):
        sent = t - DELAY
        for i in range(N):
            if not (alive[t, i] and alive[sent, i] and uid[t, i] == uid[sent, i]):
                continue
            heard = [(distance(position[sent, i], position[sent, j]), j) for j in range(N)]
            heard = sorted((d, j) for d, j in heard if alive[sent, j] and j != i and d < RADIUS)
            for _, j in heard:
                total[t, i] += message[sent, j]
                count[t, i] += 1
            letters[t, i, : len(heard)] = [uid[sent, j] for _, j in heard][:K]
    return total, count, letters


@given(st.integers(0, 10_000))
@fixed
def test_what_arrives_is_what_a_loop_over_steps_and_links_says(seed):
    parts = history(seed)
    total, count, letters = expected_of(*(np.asarray(x) for x in parts))
    for backend in ("all_pairs", "cell_grid"):
        found = exchanged(SumRadio(SURE, DELAY), parts, jax.random.key(0), backend)
        np.testing.assert_array_equal(found.total, total)
        np.testing.assert_array_equal(found.count, count)
        np.testing.assert_allclose(found.mean, total / np.maximum(count, 1)[..., None], rtol=1e-6)
    found = exchanged(NearestRadio(SURE, DELAY, K), parts, jax.random.key(0))
    np.testing.assert_array_equal(found.sender, letters)
    said = {(u, *m) for u, m in zip(np.asarray(parts[1]).ravel(), np.asarray(parts[3]).reshape(-1, 2), strict=True)}
    for sender, text in zip(np.asarray(found.sender).ravel(), np.asarray(found.message).reshape(-1, 2), strict=True):
        assert (sender, *text) in said if sender >= 0 else not text.any()


LOSSY = Loss.of(0.2, 0.5, 2.0)


@pytest.mark.parametrize("radio", [SumRadio(LOSSY, DELAY), NearestRadio(LOSSY, DELAY, K)], ids=["sum", "nearest"])
def test_losses_depend_on_neither_capacity_nor_batch_nor_slot(radio):
    parts, key = history(1), jax.random.key(5)
    alone = exchanged(radio, parts, key)
    double = exchanged(radio, history(1, capacity=2 * N), key)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[:, :N]), alone, double)
    batch = jax.tree.map(lambda *x: jnp.stack(x), history(2), parts)
    keys = jnp.stack([jax.random.key(4), key])
    batched = eqx.filter_jit(jax.vmap(exchange, in_axes=(None, 0, 0)))(radio, batch, keys)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[1]), alone, batched)
    order = np.random.default_rng(0).permutation(N)
    moved = exchanged(radio, tuple(x[:, order] for x in parts), key)
    # Equally near ones change places with their slots, which matters to the nearest only; sums are the same.
    if isinstance(radio, SumRadio):
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[:, order], b), alone, moved)


def test_the_same_links_fail_whoever_asks():
    # The sum over what arrives is the sum of the letters, where there are as many places as neighbours.
    parts, key = history(3), jax.random.key(9)
    total = exchanged(SumRadio(LOSSY, DELAY), parts, key)
    letters = exchanged(NearestRadio(LOSSY, DELAY, N), parts, key)
    np.testing.assert_array_equal(total.total, jnp.sum(letters.message, axis=2))
    np.testing.assert_array_equal(total.count, jnp.sum(letters.sender >= 0, axis=2))
    assert float(jnp.sum(total.count)) < float(jnp.sum(exchanged(SumRadio(SURE, DELAY), parts, key).count))


def test_a_slot_that_passes_on_takes_no_mail_and_the_dead_are_still_heard():
    alive = jnp.asarray([[True, True], [True, False], [True, False]])
    uid = jnp.asarray([[10, 11], [10, 11], [12, 11]])
    radio = SumRadio(SURE, 1)

    @jax.jit
    def step(mail, alive, uid):
        entities = entities_of(alive, uid, jnp.zeros((2, 2)))
        found = AllPairs(BOX, jnp.float32(1.0)).find(entities.position, entities.alive)
        mail, inbox = radio.step(mail, found, entities, jnp.full((2, 1), 3.0), jax.random.key(0))
        return mail, inbox.count

    # Step 0: 10 and 11 send. Step 1: 11 has died. Step 2: in the slot of 10 lives 12.
    mail, got = radio.init(2, 1), []
    for t in range(3):
        mail, count = step(mail, alive[t], uid[t])
        got.append(count.tolist())
    assert got == [[0, 0], [1, 0], [0, 0]]
    # After step 0 at once: what 10 would have got is not for 12.
    mail, _ = step(radio.init(2, 1), alive[0], uid[0])
    assert step(mail, alive[0], uid[2])[1].tolist() == [0, 1]


def test_without_delay_messages_arrive_at_once_and_among_those_of_a_label_only():
    entities = entities_of(jnp.ones(3, bool), jnp.arange(3), jnp.zeros((3, 2)))
    found = AllPairs(BOX, jnp.float32(1.0)).find(entities.position, entities.alive)
    team = Among(jnp.asarray([0, 0, 1]), same=True)
    radio, message = SumRadio(SURE, 0), jnp.asarray([[1.0], [2.0], [4.0]])
    _, inbox = eqx.filter_jit(radio.step)(radio.init(3, 1), found, entities, message, jax.random.key(0), team)
    np.testing.assert_array_equal(inbox.total[:, 0], [2, 1, 0])


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_links_fail_as_often_as_they_should(p):
    n = 200
    entities = entities_of(jnp.ones(n, bool), jnp.arange(n), jnp.zeros((n, 2)))
    found = AllPairs(Open(jnp.zeros(2), jnp.ones(2)), jnp.float32(1.0)).find(entities.position, entities.alive)
    radio = SumRadio(Loss.of(p), 0)
    _, inbox = eqx.filter_jit(radio.step)(radio.init(n, 0), found, entities, jnp.zeros((n, 0)), jax.random.key(0))
    low, high = stats.binom.interval(1 - 1e-6, n * (n - 1), 1 - p)
    assert low <= float(jnp.sum(inbox.count)) <= high


def test_loss_grows_with_the_square_of_the_distance_up_to_one():
    loss = Loss.of(0.1, 0.4, 80.0)
    np.testing.assert_allclose(loss.probability(jnp.asarray([0.0, 40.0, 80.0, 800.0])), [0.1, 0.2, 0.5, 1.0], rtol=1e-6)


@pytest.mark.parametrize("numbers", [(-0.1, 0, 1), (1.1, 0, 1), (0, -1, 1), (0, 1, 0), (np.nan, 0, 1)])
def test_a_loss_out_of_range_is_refused(numbers):
    with pytest.raises(ConfigError, match="expected a constant"):
        Loss.of(*numbers)


def test_a_negative_delay_and_no_place_are_refused():
    with pytest.raises(ConfigError, match="delay = -1"):
        SumRadio(SURE, -1)
    with pytest.raises(ConfigError, match="delay = -1"):
        NearestRadio(SURE, -1, 2)
    with pytest.raises(ConfigError, match="k = 0"):
        NearestRadio(SURE, 1, 0)


@pytest.fixture(scope="module")
def draws():
    """Uniform numbers of all links between 250 entities, for 8 successive steps."""

    @jax.jit
    def of_step(t):
        bits = jax.random.bits(jax.random.fold_in(jax.random.key(0), t), (2,))
        own = mixed(jnp.arange(250, dtype=jnp.uint32) ^ bits[0])
        return link_draw(own[:, None], own[None, :], bits[1])

    return np.stack([of_step(t) for t in range(8)])


def test_draws_are_uniform(draws):
    assert draws.min() >= 0
    assert draws.max() < 1
    off = ~np.eye(250, dtype=bool)
    assert stats.kstest(draws[0][off], "uniform").pvalue > 1e-3
    assert stats.kstest(draws[:, 3, 4:].ravel(), "uniform").pvalue > 1e-3


def _next_step(d):
    return d[:-1], d[1:]


def _other_direction(d):
    low = np.tril_indices(d.shape[1], -1)
    return d[:, *low], np.swapaxes(d, 1, 2)[:, *low]


def _next_receiver(d):
    return d[:, :-1], d[:, 1:]


def _next_sender(d):
    return d[:, :, :-1], d[:, :, 1:]


@pytest.mark.parametrize("related", [_next_step, _other_direction, _next_receiver, _next_sender])
def test_draws_of_related_links_are_independent(draws, related):
    a, b = (x.ravel() for x in related(draws))
    table = np.histogram2d(a, b, bins=8, range=[[0, 1], [0, 1]])[0]
    assert stats.chisquare(table.ravel()).pvalue > 1e-3


def test_messages_can_be_differentiated():
    parts = history(1)

    def loudness(message):
        return jnp.sum(exchange(SumRadio(LOSSY, DELAY), (*parts[:3], message), jax.random.key(0)).total[..., 0])

    slope = jax.jit(jax.grad(loudness))(parts[3])
    heard = jnp.sum(exchanged(SumRadio(LOSSY, DELAY), parts, jax.random.key(0)).count)
    assert float(jnp.sum(slope[..., 0])) == float(heard) > 0
    np.testing.assert_array_equal(slope[~parts[0]], 0.0)
