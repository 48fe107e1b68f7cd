"""What all sections of a config share: their base class and the kinds of values that they hold."""

import ast
import inspect
import textwrap
from itertools import pairwise
from typing import Annotated, Any, get_args

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, ValidationInfo, field_validator
from pydantic_core import CoreSchema, to_jsonable_python

from jaxscale.files.redact import redact
from jaxscale.files.typed import convert

INT32 = 2**31  # sizes and steps are int32 on the devices
Positive = Annotated[int, Field(gt=0, lt=INT32)]
NonNegative = Annotated[int, Field(ge=0, lt=INT32)]
Above0 = Annotated[float, Field(gt=0)]
AtLeast0 = Annotated[float, Field(ge=0)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Text = Annotated[str, Field(min_length=1)]


class Section(BaseModel):
    """A frozen part of the config in which an unknown key, a NaN, credentials and a `true` for a number are errors.

    The docstring under a key is its description, in the JSON schema and in all that is made of it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _plain(cls, value: Any, info: ValidationInfo) -> Any:
        assert info.field_name
        annotation = cls.model_fields[info.field_name].annotation
        value = convert(value, annotation)
        whole = isinstance(value, str | list) or "dict" in str(annotation)  # not a section, whose fields are asked
        if whole and redact(text := str(value)) != text:
            raise ValueError("it holds credentials, which would be kept with the run; give them in the environment")
        if isinstance(value, bool) and bool not in (annotation, *get_args(annotation)):
            raise ValueError(f"{str(value).lower()} is not a value that it takes; give a number or a name")
        return value

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        schema = handler(core)
        properties = handler.resolve_ref_schema(schema).get("properties", {})
        for key, description in docstrings(cls).items():
            properties[key]["description"] = description
        return schema


def docstrings(section: type[BaseModel]) -> dict[str, str]:
    """Key -> the docstring under it.

    `use_attribute_docstrings` of pydantic reads the same, but at import, where all sections take longer than the rest.
    """
    source = ast.parse(textwrap.dedent(inspect.getsource(section)))
    [body] = [node.body for node in source.body if isinstance(node, ast.ClassDef)]
    return {
        key.target.id: inspect.cleandoc(text.value.value)
        for key, text in pairwise(body)
        if isinstance(key, ast.AnnAssign) and isinstance(key.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str)
    }


def default_of(section: type[BaseModel], key: str) -> Any:
    """What a config means that does not say this key, as JSON has it; None where it must be said."""
    field = section.model_fields[key]
    return None if field.is_required() else to_jsonable_python(field.get_default())
