"""The base of every section of a spec. It is frozen, refuses unknown keys, and explains the refusal."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from skill_kd.kd.addresses import holds_credentials

LARGEST = 2**63 - 1
"""Largest whole number in a spec."""
LONGEST_TEXT = 4096
LONGEST_PART = 255
"""Bytes in the name of a file, as in most file systems."""
Fraction = Annotated[float, Field(ge=0, le=1)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
PositiveInt = Annotated[int, Field(gt=0)]
Epochs = Annotated[float, Field(gt=0, le=1_000_000)]
LearningRate = Annotated[float, Field(gt=0, lt=1)]
Dtype = Literal["float32", "bfloat16", "float16"]


def refuse(message: str) -> PydanticCustomError:
    """Return an error with ``message``. Pydantic would read braces in a plain message as a template."""
    return PydanticCustomError("refused", "{message}", {"message": message})


def _usable_as_path(text: str) -> str:
    """Refuse a text that no system could open as a path, so that code may ask if it is one."""
    if "\0" in text or len(text) > LONGEST_TEXT or max(len(part.encode()) for part in text.split("/")) > LONGEST_PART:
        raise refuse(
            f"should have at most {LONGEST_TEXT} characters, {LONGEST_PART} bytes between two slashes, and no NUL, "
            f"not {reprlib.repr(text)}"
        )
    return text


Text = Annotated[str, Field(min_length=1), AfterValidator(_usable_as_path)]


def _without_credentials(value: object) -> object:
    """Refuse an address with a password. The message does not repeat it, because messages end up in logs."""
    if isinstance(value, str) and holds_credentials(value):
        raise refuse("holds a user name or password; drop them, and name the key's variable in 'api_key_env'")
    return value


Url = Annotated[str, BeforeValidator(_without_credentials), Field(pattern=r"^https?://")]


def _explain_kind(schema: dict[str, Any]) -> None:
    """Copy the description of a section to its ``kind``, so that editors show it there."""
    if "kind" in schema["properties"]:
        schema["properties"]["kind"]["description"] = schema["description"]


class Section(BaseModel):
    """Base of every section. It is frozen, refuses infinite numbers, and suggests a key for an unknown one."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        json_schema_extra=_explain_kind,
    )

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, values: object) -> object:
        if isinstance(values, Mapping):
            for key, value in values.items():
                if key not in cls.model_fields:
                    name = str(key)[:64]
                    near = difflib.get_close_matches(name, cls.model_fields, n=1, cutoff=0.5)
                    known = f"did you mean '{near[0]}'?" if near else "known: " + ", ".join(cls.model_fields)
                    raise refuse(f"unknown key {name!r}; {known}")
                if isinstance(value, bool) and cls.model_fields[key].annotation is not bool:
                    # Pydantic would read true as 1, and YAML reads a bare yes or on as true.
                    raise refuse(f"{key}: {str(value).lower()} is a boolean, and this key does not accept one")
        return values

    @model_validator(mode="after")
    def _refuse_huge_numbers(self) -> Section:
        for key, value in self:
            for each in value.values() if isinstance(value, dict) else value if isinstance(value, tuple) else (value,):
                if isinstance(each, int) and abs(each) > LARGEST:
                    raise refuse(f"{key}: {reprlib.repr(each)} is too large; use at most {LARGEST}")
        return self
