"""Loss, bursts, delays and bandwidth of radios against closed forms and a loop over steps and links."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from swarm.comms.links import Bursts, Jitter, Loss, PathLoss, link_draw, mixed
from swarm.comms.radios import NearestRadio, SumRadio
from swarm.comms.reception import LinkAges, Reception
from swarm.core.errors import ConfigError
from swarm.geometry.obstacles import Balls
from swarm.geometry.space import Open
from swarm.neighbors.questions import AllPairs
from swarm.neighbors.search import SearchTable, neighbor_search
from swarm.population.entities import Entities

pytestmark = pytest.mark.optimised

N, T, K, DELAY = 6, 14, 3, 1
JITTER = Jitter.of([0.5, 0.2, 0.3])
BURSTS = Bursts.of(6, 3, 0.9)
LOSS = Loss.of(0.1, 0.3, 2.0, 0.8)
OBSTACLES = Balls(jnp.asarray([[1.0, 1.0], [2.0, 0.5]]), jnp.asarray([0.3, 0.2]))
SPACE = Open(jnp.zeros(2), jnp.full(2, 3.0))


def entities_of(uid, position):
    blank = Entities.empty(uid.shape[0], 2, 0)
    return eqx.tree_at(lambda e: (e.alive, e.uid, e.position), blank, (uid >= 0, uid, position))


def played(radio, uid, position, message, key, obstacles=None, backend="all_pairs"):
    """Mail, inboxes, statistics after each step."""
    n, k = uid.shape[1], getattr(radio, "k", 1)
    search = neighbor_search(SPACE, 1.6, n, SearchTable(backend=backend, room=8))

    def step(carry, row):
        mail, reception, ages = carry
        t, uid, position, message = row
        entities = entities_of(uid, position)
        found = search.find(position, entities.alive)
        mail, inbox = radio.step(mail, found, entities, message, jax.random.fold_in(key, t), None, obstacles)
        reception = reception.step(mail, inbox, entities)
        if isinstance(radio, NearestRadio):
            ages = ages.step(found.nearest(k), entities, inbox)
        return (mail, reception, ages), (inbox, mail.bad, mail.offered, reception, ages)

    start = radio.init(n, message.shape[2]), Reception.init(n), LinkAges.init(n, k)
    return jax.lax.scan(step, start, (jnp.arange(uid.shape[0]), uid, position, message))[1]


play = eqx.filter_jit(played)


def history(capacity=N):
    """Slots of which one dies and one passes on; messages are whole numbers that tell the step and the sender."""
    rng = np.random.default_rng(4)
    uid = np.full((T, capacity), -1)
    uid[:, :N] = np.arange(N)
    uid[5:, 1], uid[8:, 2] = 40, -1
    position = np.full((T, capacity, 2), np.nan, np.float32)
    position[:, :N] = rng.uniform(0, 3, (T, N, 2))
    message = np.full((T, capacity, 2), np.nan, np.float32)
    message[:, :N] = np.stack([np.broadcast_to(np.arange(T)[:, None], (T, N)), uid[:, :N]], axis=-1)
    position[uid < 0] = message[uid < 0] = np.nan
    return jnp.asarray(uid, jnp.int32), jnp.asarray(position), jnp.asarray(message)


def expected_letters(radio, parts, key, bad):
    """Every link of every step by itself: who hears what in which step, the last sent first."""
    uid, position, message = (np.asarray(x) for x in parts)
    inbox = [[[] for _ in range(N)] for _ in range(T)]
    for t in range(T):
        bits = jax.random.bits(jax.random.fold_in(key, t), (3,))
        own = mixed(jnp.asarray(uid[t], jnp.uint32) ^ bits[0])
        found = AllPairs(SPACE, jnp.float32(1.6)).find(jnp.asarray(position[t]), jnp.asarray(uid[t] >= 0)).nearest(K)
        for i in range(N):
            for j, distance in zip(np.asarray(found.index[i]), np.asarray(found.distance[i]), strict=True):
                if j < 0:
                    continue
                lost = float(radio.loss.probability(jnp.float32(distance)))
                lost = 1 - (1 - lost) * (1 - (float(BURSTS.loss) if bad[t, i] else 0))
                late = float(link_draw(own[i], own[j], bits[2]))
                due = t + DELAY + int(late >= 0.5) + int(late >= 0.7)
                if link_draw(own[i], own[j], bits[1]) >= lost and due < T and (uid[t : due + 1, i] == uid[t, i]).all():
                    inbox[due][i].insert(sum(then == t for then, _ in inbox[due][i]), (t, int(message[t, j, 1])))
    return inbox


RICH = NearestRadio(LOSS, DELAY, K, JITTER, BURSTS)


@pytest.fixture(scope="module")
def rich():
    return play(RICH, *history(), jax.random.key(7))


def test_late_letters_come_newest_first_and_none_is_overwritten(rich):
    letters, bad, offered, reception, _ = rich
    inbox = expected_letters(RICH, history(), jax.random.key(7), np.asarray(bad))
    n_late = n_delivered = 0
    for t in range(T):
        for i in range(N):
            row = inbox[t][i][:K]
            n_late += len({then for then, _ in row}) > 1
            n_delivered += len(row)
            padded = [u for _, u in row] + [-1] * (K - len(row))
            assert letters.sender[t, i].tolist() == padded
            assert letters.age[t, i].tolist() == [t - then for then, _ in row] + [-1] * (K - len(row))
            assert letters.message[t, i, : len(row), 0].tolist() == [then for then, _ in row]
    assert n_late > 3
    assert float(reception.delivered[-1].sum()) == n_delivered
    assert float(reception.offered[-1].sum()) == float(offered.sum()) > n_delivered
    rate = n_delivered / float(offered.sum())
    assert float(reception.delivery_rate[-1]) == pytest.approx(rate)


def test_ages_of_information_are_those_of_a_loop(rich):
    letters, _, _, reception, ages = rich
    uid = np.asarray(history()[0])
    for i in range(N):
        newest, by_link = -1, {}
        for t in range(T):
            if t and uid[t, i] != uid[t - 1, i]:
                newest, by_link = -1, {}
            heard = [
                (int(u), t - int(a)) for u, a in zip(letters.sender[t, i], letters.age[t, i], strict=True) if u >= 0
            ]
            newest = max([newest, *(then for _, then in heard)])
            assert int(reception.age[t, i]) == (t - newest if newest >= 0 else -1)
            near = [int(u) for u in ages.sender[t, i] if u >= 0]
            for u, then in heard:
                by_link[u] = max(by_link.get(u, -1), then)
            by_link = {u: then for u, then in by_link.items() if u in near}
            for u, age in zip(ages.sender[t, i], ages.age[t, i], strict=True):
                assert int(age) == (t - by_link[int(u)] if int(u) in by_link else -1)


def test_sums_are_those_of_the_letters_and_bits_depend_on_neither_capacity_nor_batch():
    # As many places as can arrive, so that none is too many.
    parts, key = history(), jax.random.key(7)
    radio = SumRadio(LOSS, DELAY, JITTER, BURSTS)
    total, *_ = alone = play(radio, *parts, key, OBSTACLES)
    letters, *_ = play(NearestRadio(LOSS, DELAY, 3 * N, JITTER, BURSTS), *parts, key, OBSTACLES)
    np.testing.assert_array_equal(total.total, letters.message.sum(axis=2))
    np.testing.assert_array_equal(total.count, letters.count)
    np.testing.assert_array_equal(total.newest, letters.newest)
    open_air, *_ = play(radio, *parts, key)
    assert total.count.sum() < open_air.count.sum()
    double = play(radio, *history(2 * N), key, OBSTACLES)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[:, :N]), alone, double)
    batch = [jnp.stack([jnp.flip(x, 0), x]) for x in parts]
    batched = eqx.filter_jit(jax.vmap(played, in_axes=(None, 0, 0, 0, None, None)))(radio, *batch, key, OBSTACLES)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[1]), alone, batched)


def test_the_grid_delivers_what_all_pairs_deliver():
    parts, key = history(), jax.random.key(7)
    found = play(SumRadio(LOSS, DELAY, JITTER, BURSTS), *parts, key, OBSTACLES, "cell_grid")
    expected = play(SumRadio(LOSS, DELAY, JITTER, BURSTS), *parts, key, OBSTACLES)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def everybody(n, t, m=1):
    """N entities at one place for t steps."""
    uid = jnp.broadcast_to(jnp.arange(n), (t, n))
    return uid, jnp.zeros((t, n, 2)), jnp.zeros((t, n, m))


def test_bursts_and_ages_have_their_closed_forms():
    # Pairs: each hears one sender. Bad steps lose all, good ones a tenth.
    n, t, good, bad, q = 400, 400, 12.0, 4.0, 0.9
    uid, position, message = everybody(n, t)
    apart = jnp.broadcast_to(10.0 * (jnp.arange(n) // 2)[None, :, None], position.shape)
    radio = SumRadio(Loss.of(1 - q), DELAY, None, Bursts.of(good, bad))
    total, spells, offered, *_ = play(radio, uid, apart, message, jax.random.key(1))
    spells, heard = np.asarray(spells), np.asarray(total.count)[DELAY:]
    assert float(offered.min()) == float(offered.max()) == 1.0
    assert spells[0].mean() == pytest.approx(bad / (good + bad), abs=5 * 0.43 / n**0.5)
    assert spells.mean() == pytest.approx(bad / (good + bad), rel=0.05)
    begins = (spells[1:] & ~spells[:-1]).sum()
    assert spells[1:].sum() / begins == pytest.approx(bad, rel=0.05)
    assert heard.mean() == pytest.approx(q * good / (good + bad), rel=0.02)
    assert not (heard > 0)[spells[:-DELAY]].any()


def test_counting_goes_on_above_what_float32_counts():
    radio = SumRadio(Loss.of(0.0), 0)
    uid, position, message = (jnp.asarray(x[0]) for x in history())
    found, entities = AllPairs(SPACE, jnp.float32(1.6)).find(position, uid >= 0), entities_of(uid, position)
    mail, inbox = radio.step(radio.init(N, 2), found, entities, message, jax.random.key(0))
    many = jnp.full(N, 2**24 + 1, jnp.int32)
    start = eqx.tree_at(lambda r: (r.offered, r.delivered), Reception.init(N), (many, many))
    after = start.step(mail, inbox, entities)
    assert (after.offered - many == mail.offered).all()
    assert (after.delivered - many == inbox.count).all()
    assert inbox.count.sum() > 0
    assert after.delivery_rate == 1.0


def test_the_age_of_information_over_independent_losses_is_geometric():
    n, t, q = 400, 200, 0.4
    uid, position, message = everybody(n, t)
    apart = jnp.broadcast_to(10.0 * (jnp.arange(n) // 2)[None, :, None], position.shape)
    _, _, _, reception, _ = play(SumRadio(Loss.of(1 - q), DELAY), uid, apart, message, jax.random.key(2))
    age = np.asarray(reception.age)[50:].ravel()
    assert age.min() == DELAY
    assert age.mean() == pytest.approx(DELAY + (1 - q) / q, rel=0.03)
    assert np.mean(age == DELAY + 2) == pytest.approx(q * (1 - q) ** 2, rel=0.05)
    assert float(reception.delivery_rate[-1]) == pytest.approx(q, rel=0.02)


@pytest.mark.parametrize("jitter", [JITTER, Jitter.geometric(0.4, 3)], ids=["table", "geometric"])
def test_delays_have_their_distribution(jitter):
    own = mixed(jnp.arange(150, dtype=jnp.uint32))
    draws, lost = (link_draw(own[:, None], own[None], jnp.uint32(bits)) for bits in (5, 9))
    counts = np.bincount(np.asarray(jitter.steps(draws)).ravel(), minlength=jitter.cumulative.shape[0])
    probabilities = np.diff(np.asarray(jitter.cumulative, float), prepend=0)
    assert stats.chisquare(counts, counts.sum() * probabilities / probabilities.sum()).pvalue > 1e-3
    # What is late is lost no more often: both draws of a link are independent.
    table = np.histogram2d(np.ravel(draws), np.ravel(lost), bins=8, range=[[0, 1], [0, 1]])[0]
    assert stats.chisquare(table.ravel()).pvalue > 1e-3
    if jitter is not JITTER:
        np.testing.assert_allclose(probabilities, [0.6, 0.24, 0.096, 0.064], atol=1e-6)


def test_a_narrow_band_takes_turns():
    # Messages of 5 numbers at 2 a step: 3 steps on the air, arriving 2 steps after the delay, in turns by identity.
    n, t = 40, 12
    radio = NearestRadio(Loss.of(), DELAY, n, bandwidth=2)
    letters, _, offered, _, _ = play(radio, *everybody(n, t, 5), jax.random.key(3))
    sender, age = np.asarray(letters.sender), np.asarray(letters.age)
    assert set(age[sender >= 0]) == {DELAY + 2}
    turns = [{int(u) for u in sender[s].ravel() if u >= 0} for s in range(DELAY + 2, t)]
    assert all(not sender[s].max() >= 0 for s in range(DELAY + 2))
    for a, b, c, again in zip(turns, turns[1:], turns[2:], turns[3:], strict=False):
        assert a == again
        assert a | b | c == set(range(n))
        assert len(a) + len(b) + len(c) == n
        assert min(map(len, (a, b, c))) > 4
    assert float(offered.sum()) == pytest.approx(t * n * (n - 1) / 3, rel=0.1)


def test_obstacles_and_decibels():
    distance = jnp.asarray([0.0, 5.0, 10.0, 20.0])
    loss = PathLoss.of(10.0, 2.5, 3.0, wall=6.0)
    expected = stats.norm.cdf([-np.inf, 25 * np.log10(0.5) / 3, 0.0, 25 * np.log10(2.0) / 3])
    np.testing.assert_allclose(loss.probability(distance), expected, rtol=1e-5, atol=1e-12)
    through = loss.probability(distance, jnp.asarray([False, True, True, False]))
    shadowed = stats.norm.cdf([(25 * np.log10(0.5) + 6) / 3, 2.0])
    np.testing.assert_allclose(through[1:3], shadowed, rtol=1e-5)
    wall = Loss.of(0.2, wall=0.5).probability(distance[:2], jnp.asarray([False, True]))
    np.testing.assert_allclose(wall, [0.2, 0.6], rtol=1e-6)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Loss.of(wall=1.5), "wall = 1.5"),
        (lambda: PathLoss.of(0.0), "reach = 0"),
        (lambda: PathLoss.of(1.0, wall=-1.0), "wall = -1"),
        (lambda: PathLoss.of(1.0, fading=np.nan), "fading = nan"),
        (lambda: Jitter.of([0.5, 0.4]), "sum is 1"),
        (lambda: Jitter.of([1.5, -0.5]), "numbers from 0 to 1"),
        (lambda: Jitter.geometric(1.0, 3), "later = 1"),
        (lambda: Bursts.of(0.5, 2), "good = 0.5"),
        (lambda: Bursts.of(5, 2, 1.1), "loss = 1.1"),
        (lambda: SumRadio(LOSS, 0, bandwidth=0), "bandwidth = 0"),
    ],
)
def test_impossible_links_are_refused(build, message):
    with pytest.raises(ConfigError, match=message):
        build()
