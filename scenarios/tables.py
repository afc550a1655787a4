"""What the scenario files of several scenarios have in common."""

import pydantic

from swarm.config import Table

Positive = pydantic.Field(gt=0.0)
Amount = pydantic.Field(ge=0.0)


class SpaceTable(Table):
    """What table `world` holds where space is continuous; metres, seconds, cells."""

    size: tuple[float, ...]
    steps: int = pydantic.Field(ge=1)
    time_step: float = Positive
    raster: tuple[int, int]

    @pydantic.model_validator(mode="after")
    def _sides(self) -> "SpaceTable":
        if min(self.size, default=0.0) <= 0:
            raise ValueError(f"size = {list(self.size)}: each side must be longer than 0")
        if not all(4 <= cells <= 128 for cells in self.raster):
            raise ValueError(f"raster = {list(self.raster)}: from 4 to 128 cells a side")
        return self
