"""The types of Foxglove's messages as JSON schemas, as far as we use them; https://docs.foxglove.dev/docs/sdk/schemas."""

from typing import Any

_NUMBER, _TEXT = {"type": "number"}, {"type": "string"}
_NSEC = {"type": "integer", "minimum": 0, "maximum": 999_999_999}


def _object(title: str, **properties: Any) -> dict[str, Any]:
    return {"title": title, "type": "object", "properties": properties, "required": list(properties)}


def _message(name: str, **properties: Any) -> dict[str, Any]:
    return _object(f"foxglove.{name}", **properties)


def _array(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


_TIME = _object("time", sec={"type": "integer", "minimum": 0}, nsec=_NSEC)
_DURATION = _object("duration", sec={"type": "integer"}, nsec=_NSEC)
_VECTOR = _message("Vector3", x=_NUMBER, y=_NUMBER, z=_NUMBER)
_QUATERNION = _message("Quaternion", x=_NUMBER, y=_NUMBER, z=_NUMBER, w=_NUMBER)
_POSE = _message("Pose", position=_VECTOR, orientation=_QUATERNION)
_COLOR = _message("Color", r=_NUMBER, g=_NUMBER, b=_NUMBER, a=_NUMBER)
_LENGTHS = dict.fromkeys(("shaft_length", "shaft_diameter", "head_length", "head_diameter"), _NUMBER)
_BODY = {"pose": _POSE, "size": _VECTOR, "color": _COLOR}
_DELETION_TYPE = {"oneOf": [{"title": "MATCHING_ID", "const": 0}, {"title": "ALL", "const": 1}]}
UNUSED = ("cylinders", "lines", "triangles", "texts", "models")

SCENE_UPDATE = _message(
    "SceneUpdate",
    deletions=_array(_message("SceneEntityDeletion", timestamp=_TIME, type=_DELETION_TYPE, id=_TEXT)),
    entities=_array(
        _message(
            "SceneEntity",
            timestamp=_TIME,
            frame_id=_TEXT,
            id=_TEXT,
            lifetime=_DURATION,
            frame_locked={"type": "boolean"},
            metadata=_array(_message("KeyValuePair", key=_TEXT, value=_TEXT)),
            arrows=_array(_message("ArrowPrimitive", pose=_POSE, **_LENGTHS, color=_COLOR)),
            cubes=_array(_message("CubePrimitive", **_BODY)),
            spheres=_array(_message("SpherePrimitive", **_BODY)),
            **dict.fromkeys(UNUSED, _array({"type": "object"})),
        )
    ),
)

POSES_IN_FRAME = _message("PosesInFrame", timestamp=_TIME, frame_id=_TEXT, poses=_array(_POSE))
