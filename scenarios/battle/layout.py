"""How armies are drawn up for battle: squads in lanes and ranks, cavalry on the flanks. Numpy, before compilation."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

KINDS = ("infantry", "archer", "cavalry")
INFANTRY, ARCHER, CAVALRY = range(3)


class Layout(NamedTuple):
    """Places of both armies, army 0 first and in each army squad by squad, neighbouring squads after each other.

    Attributes:
        kind: of each entity, [m].
        team: its army, [m].
        position: metres, [m, 2].
        post: its place in its squad, ahead of and to the left of the middle; metres, [m, 2].
    """

    kind: Any
    team: Any
    position: Any
    post: Any


def posts(squad: int, spacing: float) -> Float[np.ndarray, "s 2"]:
    """Places of a squad's members around its middle: about twice as wide as deep."""
    n_ranks = max(1, round((squad / 2) ** 0.5))
    n_files = -(-squad // n_ranks)
    rank, file = np.divmod(np.arange(squad), n_files)
    places = np.stack([-rank, file], axis=1) * spacing
    return (places - places.mean(axis=0)).astype(np.float32)


def _lines(n_squads: int, n_lanes: int, first_rank: int) -> list[tuple[int, float]]:
    """Ranks of equal length, centred: rank and lane, lane 0 being the middle."""
    if n_squads == 0:
        return []
    n_ranks = -(-n_squads // n_lanes)
    per_rank = -(-n_squads // n_ranks)
    chosen = []
    for start in range(0, n_squads, per_rank):
        length = min(per_rank, n_squads - start)
        chosen += [(first_rank + start // per_rank, lane - (length - 1) / 2) for lane in range(length)]
    return chosen


def _draw_up(squads: tuple[int, ...], n_lanes: int) -> tuple[list[int], list[tuple[int, float]]]:
    """Infantry in front, archers behind, cavalry in lanes beside them: kind, and rank and lane, of each squad."""
    n_side = max(1, round(n_lanes * squads[CAVALRY] / sum(squads) / 2)) if squads[CAVALRY] else 0
    n_inner = max(1, n_lanes - 2 * n_side)
    infantry = _lines(squads[INFANTRY], n_inner, 0)
    behind = 1 + max((rank for rank, _ in infantry), default=-1)
    archers = _lines(squads[ARCHER], n_inner, behind)
    half = max((lane for _, lane in infantry + archers), default=-0.5) + 1.0
    cavalry = []
    for number in range(squads[CAVALRY]):
        side, place = number % 2, number // 2
        rank, file = divmod(place, n_side)
        cavalry.append((rank, (half + file) * (1 if side else -1)))
    where = infantry + archers + cavalry
    kinds = [kind for kind in range(3) for _ in range(squads[kind])]
    order = sorted(range(len(where)), key=lambda i: (where[i][1], where[i][0]))
    return [kinds[i] for i in order], [where[i] for i in order]


def layout(
    squads: tuple[tuple[int, ...], tuple[int, ...]],
    squad: int,
    spacing: float,
    size: tuple[float, float],
    front: float | None,
) -> Layout:
    """Draw up both armies, army 1 mirrored.

    Args:
        squads: number of squads of each kind, per army.
        squad: entities in a squad.
        spacing: between neighbours; metres.
        size: of the world; metres.
        front: distance of the foremost rank from the middle of the world, metres; None: as far back as there is room.
    """
    own = posts(squad, spacing)
    depth, width = np.ptp(own, axis=0) + 2 * spacing
    n_lanes = max(1, int(size[1] / width))
    parts = []
    for army in (0, 1):
        kinds, where = _draw_up(squads[army], n_lanes)
        rank, lane = np.asarray(where, np.float32).reshape(-1, 2).T
        foremost = size[0] / 2 - (np.max(rank, initial=0.0) + 1.0) * depth if front is None else front
        behind = foremost + depth * (rank + 0.5)
        centre = np.stack([size[0] / 2 - behind, size[1] / 2 + lane * width], axis=1)
        place = centre[:, None] + own[None]
        if army == 1:
            # Turned by half a turn: everybody's left stays left.
            place = np.asarray(size)[None, None] - place
        kind = np.repeat(np.asarray(kinds, np.int32), squad)
        post = np.tile(own, (len(kinds), 1))
        parts.append((kind, np.full(kind.shape, army, np.int32), place.reshape(-1, 2).astype(np.float32), post))
    return Layout(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
