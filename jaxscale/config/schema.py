"""The JSON Schema of a run file and of a model file, for editors and other programs. Both are in configs/ too.

It accepts what `load_config` reads, except for a value's other spellings: it wants `true`, not `on`.
"""

import json
from typing import Any

from jaxscale.config.lora import MATRICES
from jaxscale.config.model import Model
from jaxscale.config.sections import Config
from jaxscale.config.step import ACTIVATIONS

DIALECT = {"$schema": "https://json-schema.org/draft/2020-12/schema"}


def run_schema() -> dict[str, Any]:
    """Of a run file, whose model may be a name, or a file with changes."""
    schema = plain(Config.model_json_schema())
    sections = schema["$defs"]
    model, reference = sections["Model"], schema["properties"]["model"]
    model["properties"]["file"] = {
        "description": "File whose values the other keys change: a name of configs/models, or a path.",
        "type": "string",
    }
    model["anyOf"] = [{"required": ["file"]}, {"required": model.pop("required")}]
    reference["anyOf"] = [{"type": "string", "minLength": 1}, {"$ref": reference.pop("$ref")}]
    [by_name] = [kind for kind in sections["Step"]["properties"]["remat"]["anyOf"] if kind["type"] == "object"]
    by_name["propertyNames"] = {"enum": list(ACTIVATIONS)}
    return DIALECT | schema | {"title": "A run file of jaxscale"}


def model_schema() -> dict[str, Any]:
    """Of a model file, as those of configs/models."""
    return DIALECT | plain(Model.model_json_schema()) | {"title": "A model file of jaxscale"}


def plain(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema without defaults that are said below or elsewhere, and with the names that a list takes."""
    sections = schema["$defs"]
    for section in (schema, *sections.values()):
        for value in section["properties"].values():
            if "$ref" in value:  # a section, whose keys have defaults
                value.pop("default", None)
    for key, value in sections["LayerKind"]["properties"].items():
        if key != "layers":
            del value["default"]  # it is the model's value
    sections["Lora"]["properties"]["on"]["items"]["enum"] = list(MATRICES)
    return schema


def schema_text(schema: dict[str, Any]) -> str:
    return json.dumps(schema, indent=1) + "\n"


def comment(file: str) -> str:
    """The line by which an editor knows the schema of a YAML file; `file` is a path from there, or a URL."""
    return f"# yaml-language-server: $schema={file}"
