"""The YAML file in and out: every mistake becomes one sentence that says where and what.

The file is composed into nodes first, which keep their line numbers, then built into plain values,
then validated. The sentences read ``file:line: dotted.key: expected ..., got ...``; all mistakes of
a file are reported together. What stands under a key that may hold a secret is never repeated.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from passel.config.sections import Config, Section
from passel.config.units import size_text
from passel.errors import ConfigError

FILE_BYTES_MAX = 1024 * 1024
DEPTH_MAX = 16
#: Aliases (``*name``) make a small file large; a real one has a few hundred values.
VALUES_MAX = 20_000
MISTAKES_MAX = 50

Way = tuple["str | int", ...]
S = TypeVar("S", bound=Section)

_EXPECTED = {
    "model_type": "expected a mapping (key: value)",
    "model_attributes_type": "expected a mapping (key: value)",
    "dict_type": "expected a mapping (key: value)",
    "tuple_type": "expected a list",
    "string_type": "expected text (in quotes, if it looks like something else)",
    "int_type": "expected a whole number",
    "bool_type": "expected true or false",
    "path_type": "expected a path",
}


def load(path: str | os.PathLike[str]) -> Config:
    """The configuration in the file `path`. Relative paths in it start at the file's folder.

    Raises ConfigError with one line per mistake.
    """
    return load_as(Config, path)


def load_as(model: type[S], path: str | os.PathLike[str]) -> S:
    """A file of another kind, read in the same way and with the same sentences."""
    file = Path(path)
    try:
        with file.open("rb") as stream:
            content = stream.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ConfigError(f"{file}: the configuration cannot be read: {reason}") from error
    if len(content) > FILE_BYTES_MAX:
        raise ConfigError(f"{file}: expected a configuration of at most 1 MiB")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{file}:{line}: expected UTF-8 text, got something else") from error
    return parse_as(model, text, source=str(file), folder=file.absolute().parent)


def parse(text: str, *, source: str = "<text>", folder: Path | None = None) -> Config:
    """The configuration in `text`; `source` names it in messages, `folder` is where paths start."""
    return parse_as(Config, text, source=source, folder=folder)


def parse_as(model: type[S], text: str, *, source: str = "<text>", folder: Path | None = None) -> S:
    """A text of another kind, see `load_as`."""
    document = _read(text, source)
    data = {} if document.data is None else document.data
    context: dict[str, object] = {"folder": folder}
    errors: list[ErrorDetails] = []
    try:
        section = model.model_validate(data, context=context)
        if not document.mistakes:
            return section
    except ValidationError as error:
        errors = error.errors(include_url=False)
        errors += _behind(model, data, errors, context)
    mistakes = document.mistakes + [_mistake(model, document, error) for error in errors]
    mistakes = sorted(dict.fromkeys(mistakes))
    lines = [f"{source}:{line}: {sentence}" for line, sentence in mistakes[:MISTAKES_MAX]]
    if len(mistakes) > MISTAKES_MAX:
        lines.append(f"{source}: and {len(mistakes) - MISTAKES_MAX} mistakes more")
    raise ConfigError("\n".join(lines)) from None


def build(model: type[S], data: dict[str, object]) -> S:
    """A section from values that were not read from a file, such as a command's options.

    Raises ConfigError with one line per mistake, which begins with the key.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        document = _Document(written={(key,): _clean(str(value)) for key, value in data.items()})
        lines = [_mistake(model, document, each)[1] for each in error.errors(include_url=False)]
        raise ConfigError("\n".join(dict.fromkeys(lines))) from None


def dump(config: Config) -> str:
    """The configuration as YAML that `parse` reads back to an equal one. Holds no secrets."""
    data = config.model_dump(mode="json", exclude_none=True)
    data = {
        "upstreams": data.pop("upstreams"),
        "default_upstream": data.pop("default_upstream", "none"),
        **data,
    }
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=100)


def missing_files(config: Config) -> list[str]:
    """One sentence per file that the configuration names and that is not there on this node."""
    return [
        f"{key}: there is no file {path}"
        for key, path in _files(config)
        if path is not None and not path.is_file()
    ]


def _files(config: Config) -> Iterator[tuple[str, Path | None]]:
    for key, upstream in config.upstreams.items():
        yield f"upstreams.{key}.ca", upstream.ca
        yield f"upstreams.{key}.password_file", upstream.password_file
    yield "gateway.api.token_file", config.gateway.api.token_file


# ------------------------------------------------------------------ text -> values with positions


@dataclass
class _Document:
    """Plain values, and for each way to one its line and how it was written."""

    data: object = None
    lines: dict[Way, int] = field(default_factory=dict)
    written: dict[Way, str] = field(default_factory=dict)
    mistakes: list[tuple[int, str]] = field(default_factory=list)

    def line(self, way: Way) -> int:
        """The line of `way`, or of the nearest thing around it that is in the file."""
        while way and way not in self.lines:
            way = way[:-1]
        return self.lines.get(way, 1)


def _read(text: str, source: str) -> _Document:
    document = _Document()
    loader: yaml.SafeLoader | None = None
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is not None and not isinstance(node, yaml.MappingNode):
            if not (isinstance(node, yaml.ScalarNode) and node.value in ("", "null", "~")):
                line = node.start_mark.line + 1
                got = _written(node)
                raise ConfigError(f"{source}:{line}: expected a mapping (key: value), got {got}")
        elif node is not None:
            document.data = _build(loader, node, (), document)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark is not None else 1
        problem = _clean(", ".join(filter(None, (error.context, error.problem))))
        raise ConfigError(f"{source}:{line}: this is not YAML: {problem}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(f"{source}:{line}: expected text, got a control character") from None
    except RecursionError:
        raise ConfigError(f"{source}: this is nested too deeply") from None
    finally:
        if loader is not None:
            loader.dispose()
    return document


def _build(loader: yaml.SafeLoader, node: yaml.Node, way: Way, document: _Document) -> object:
    """The value of `node`; its position, and what is wrong with it, go into `document`."""
    line = node.start_mark.line + 1
    document.lines.setdefault(way, line)
    document.written[way] = _written(node)
    if len(way) > DEPTH_MAX or len(document.lines) > VALUES_MAX:
        # Also what ends an alias that contains itself.
        raise yaml.MarkedYAMLError(
            problem="this is nested too deeply or holds too many values",
            problem_mark=node.start_mark,
        )
    if isinstance(node, yaml.MappingNode):
        mapping: dict[str, object] = {}
        for key_node, value_node in node.value:
            key_line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                sentence = f"{_dotted(way)}: expected text as a key, got {_written(key_node)}"
                document.mistakes.append((key_line, sentence))
                continue
            # As written: an unquoted `on` or `5000` is meant as a name here, not as YAML's value.
            key = str(key_node.value)
            inner = (*way, key)
            if key in mapping:
                first = document.lines[inner]
                sentence = f"{_dotted(inner)}: this key is here twice, first in line {first}"
                document.mistakes.append((key_line, sentence))
                continue
            document.lines[inner] = key_line
            mapping[key] = _build(loader, value_node, inner, document)
        return mapping
    if isinstance(node, yaml.SequenceNode):
        return [_build(loader, item, (*way, i), document) for i, item in enumerate(node.value)]
    try:
        return loader.construct_object(node)
    except (ValueError, OverflowError):
        # A date that does not exist, a number too long: whatever it is, it is not what is expected.
        return node.value


def _written(node: yaml.Node) -> str:
    if isinstance(node, yaml.MappingNode):
        return "a mapping"
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    return _clean(node.value) if node.value else "nothing"


def _clean(text: str) -> str:
    """`text` for a message: on one line, short, and without the password of a URL."""
    text = re.sub(r"//[^/\s]*@", "//***@", text)
    text = "".join(c if c.isprintable() else " " for c in text)
    return text if len(text) <= 80 else text[:77] + "..."


# ------------------------------------------------------------------ errors -> sentences


def _behind(
    model: type[Section], data: object, errors: list[ErrorDetails], context: dict[str, object]
) -> list[ErrorDetails]:
    """The mistakes that pydantic did not get to, because relations are checked last.

    Everything around the known mistakes is put back to its defaults, then it is validated again. An
    upstream keeps its names, so that what refers to it is not called wrong.
    """
    if not isinstance(data, dict) or any("[key]" in error["loc"] for error in errors):
        return []
    wrong = {error["loc"] for error in errors}
    kept: dict[object, object] = {}
    for key, value in data.items():
        if key == "upstreams" and isinstance(value, dict):
            kept[key] = {
                name: _names_only(name, upstream, wrong)
                if any(way[:2] == (key, name) for way in wrong)
                else upstream
                for name, upstream in value.items()
            }
        elif not any(way[:1] == (key,) for way in wrong):
            kept[key] = value
    try:
        model.model_validate(kept, context=context)
    except ValidationError as error:
        return error.errors(include_url=False)
    return []


def _names_only(name: object, upstream: object, wrong: set[Way]) -> dict[str, object]:
    if not isinstance(upstream, dict):
        return {}
    return {
        key: upstream[key]
        for key in ("api", "aliases")
        if key in upstream and not any(way[1:3] == (name, key) for way in wrong)
    }


def _mistake(model: type[Section], document: _Document, error: ErrorDetails) -> tuple[int, str]:
    """Line and sentence."""
    way = error["loc"]
    is_key = way[-1:] == ("[key]",)
    if is_key:
        way = way[:-1]
    written = document.written.get(way)
    if is_key:
        written = _clean(str(way[-1]))
    return document.line(way), f"{_dotted(way)}: {_sentence(model, way, error, written)}"


def _sentence(model: type[Section], way: Way, error: ErrorDetails, written: str | None) -> str:
    kind = error["type"]
    if kind == "relation":
        return error["msg"]
    if kind == "extra_forbidden":
        return _unknown_key(model, way)
    if kind == "missing":
        return "is missing"
    expected = _expected(error)
    if written is None:
        return expected
    if "password" in str(way[-1]):
        return f"{expected}, got something else"
    return f"{expected}, got {written}"


def _expected(error: ErrorDetails) -> str:
    kind = error["type"]
    bounds = error.get("ctx", {})
    if kind in _EXPECTED:
        return _EXPECTED[kind]
    if kind == "value_error":
        return str(bounds["error"])
    if kind == "literal_error":
        return f"expected {bounds['expected']}".replace("'", "")
    for bound, words in (("ge", "at least"), ("gt", "more than"), ("le", "at most")):
        if bound in bounds:
            return f"expected {words} {_bound(bounds[bound], error['input'])}"
    if "min_length" in bounds or "max_length" in bounds:
        return "expected text of 1 to 255 characters"
    if "pattern" in bounds:
        return "expected a name of letters, digits, '.', '_' and '-', 63 at most"
    return error["msg"]


def _bound(value: object, given: object) -> str:
    """A bound in the words of the file: of the numbers, only sizes are given as text."""
    if isinstance(value, int) and isinstance(given, str):
        return size_text(value)
    return str(value)


def _unknown_key(model: type[Section], way: Way) -> str:
    section = _section_at(model, way[:-1])
    names = list(section.model_fields) if section is not None else []
    key = str(way[-1])
    near = difflib.get_close_matches(key.lower().replace("-", "_"), names, n=1, cutoff=0.5)
    if near:
        return f"unknown key, did you mean {near[0]}?"
    return f"unknown key, expected one of {', '.join(names)}"


def _section_at(model: type[Section], way: Way) -> type[Section] | None:
    """The model of the section that `way` leads to."""
    section: type[Section] | None = model
    annotation: Any = model
    for step in way:
        if section is not None:
            known = section.model_fields.get(str(step))
            annotation = None if known is None else known.annotation
        else:
            annotation = get_args(annotation)[-1:] and get_args(annotation)[-1]
        section = _model(annotation)
    return section


def _model(annotation: Any) -> type[Section] | None:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return None


def _dotted(way: Way) -> str:
    text = ""
    for step in way:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            text += ("." if text else "") + _clean(step)
    return text or "the file"
