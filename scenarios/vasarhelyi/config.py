"""What a scenario file of drones that flock in an arena holds."""

import math

import pydantic

from scenarios.common.tables import Amount, BoxTable, Few, Positive, Share, Weight
from swarm.core.tables import Population, ScenarioConfig, Table
from swarm.neighbors.search import SearchTable


class WorldTable(BoxTable):
    """Table `world`.

    Attributes:
        pillars: discs, each (x, y, radius), metres.
    """

    size: tuple[float, float]
    pillars: tuple[tuple[float, float, float], ...] = ()

    @pydantic.model_validator(mode="after")
    def _discs(self) -> "WorldTable":
        for pillar in self.pillars:
            if pillar[2] <= 0:
                raise ValueError(f"pillars: {list(pillar)}: expected x, y and a radius above 0 m")
        return self


class DroneTable(Population):
    """Table `population.drone`.

    Attributes:
        tau: time constant of the velocity's lag, seconds.
        push: diffusion of the velocity by wind and imperfect control, m^2/s^3; per axis.
        collision_distance: drones nearer than this collide, metres.
    """

    initial: int = pydantic.Field(ge=2)
    speed: float = Positive
    tau: float = Positive
    acceleration: float = Positive
    push: float = Amount
    collision_distance: float = Positive


class PopulationTable(Table):
    """Table `population`."""

    drone: DroneTable


class GpsTable(Table):
    """Table `gps`: standard deviations along each axis, and the share of the drift that all have in common."""

    drift: float = Amount
    drift_time: float = Positive
    velocity_noise: float = Amount
    common: float = pydantic.Field(default=0.0, ge=0.0, le=1.0)


class RadioTable(Table):
    """Table `radio`.

    Attributes:
        delay: seconds, a whole number of steps.
        loss: probability at `reference` metres; it grows with the square of the distance.
        heard: so many of the nearest.
    """

    range: float = Positive
    delay: float = Amount
    loss: float = Share
    reference: float = Positive
    heard: int = Few


class ObservationTable(Table):
    """Table `observation`."""

    others: int = Few


class RewardTable(Table):
    """Table `reward`."""

    alignment: float = Weight
    speed: float = Weight
    collision: float = Weight
    outside: float = Weight


class FlockTable(Table):
    """Table `flock`: the model's parameters, named as in the paper."""

    v_flock: float = Positive
    r0_rep: float = Positive
    p_rep: float = Amount
    r0_frict: float = Amount
    a_frict: float = Positive
    p_frict: float = Positive
    v_frict: float = Amount
    c_frict: float = Amount
    r0_shill: float = Amount
    v_shill: float = Amount
    a_shill: float = Positive
    p_shill: float = Positive


def grid_side(number: int) -> int:
    """Rows, and columns, of the smallest square grid with so many cells."""
    return math.isqrt(number - 1) + 1


class VasarhelyiConfig(ScenarioConfig):
    """A scenario file for drones that flock in an arena."""

    world: WorldTable
    population: PopulationTable
    gps: GpsTable
    radio: RadioTable
    observation: ObservationTable
    reward: RewardTable
    flock: FlockTable
    search: SearchTable = SearchTable()

    @pydantic.model_validator(mode="after")
    def _fits(self) -> "VasarhelyiConfig":
        drone, radio, step = self.population.drone, self.radio, self.world.time_step
        if abs(radio.delay / step - round(radio.delay / step)) > 1e-3:
            raise ValueError(
                f"radio.delay = {radio.delay:g} s is no whole number of steps of world.time_step = {step:g} s"
            )
        if radio.delay > 10_000 * step:
            raise ValueError(f"radio.delay = {radio.delay:g} s: at most 10,000 steps of world.time_step = {step:g} s")
        for name, value, other, least in (
            ("radio.heard", radio.heard, "observation.others", self.observation.others),
            ("radio.range", radio.range, "population.drone.collision_distance", drone.collision_distance),
            ("population.drone.speed", drone.speed, "flock.v_flock", self.flock.v_flock),
        ):
            if value < least:
                raise ValueError(f"{name} = {value:g} is less than {other} = {least:g}; raise it, or lower the other")
        side = grid_side(drone.initial)
        if min(self.world.size) / side < 2 * drone.collision_distance:
            raise ValueError(
                f"population.drone.initial = {drone.initial} drones start on a grid of {side} x {side} in world.size = "
                f"{list(self.world.size)}, nearer than twice collision_distance = {drone.collision_distance:g} m; "
                "enlarge the world"
            )
        return self
