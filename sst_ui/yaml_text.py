"""Parses YAML typed by hand: one value for every key, and bounded work and memory.

PyYAML silently keeps the last of two equal keys, expands aliases without limit and recurses as deep
as the text does; here each of these is an error.
"""

import re
from collections.abc import Hashable, Iterator
from typing import Any

import yaml

from sst_ui.errors import UserError, line_of, shown

LENGTH = 256 * 1024  # characters; a recipe with a cell for each of 200 layers has 20,000
DEPTH = 32  # mappings and lists inside one another
NODES = 20_000  # values, with every alias written out
SURROGATE = re.compile("[\ud800-\udfff]")


def parse(text: str, what: str) -> Any:
    """Plain data of one YAML (or JSON) document; None where the text is empty.

    Args:
        what: what the text is, for messages: "the recipe".

    Raises:
        UserError: not YAML, a key given twice, a value that is not what its tag says, a lone
            surrogate, or a text that is too long, too deep, or grows too large through aliases.
    """
    if len(text) > LENGTH:
        raise UserError(f"{what} is {len(text):,} characters long; at most {LENGTH:,} are read.")
    loader = None
    try:
        _measure(text, what)
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check(node, loader, what)
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        raise UserError(f"{what} is not valid YAML: {line_of(error)}") from error
    finally:
        if loader is not None:
            loader.dispose()


def _measure(text: str, what: str) -> None:
    """Walk through the parser's events, which neither recurse nor expand anything."""
    sizes: dict[str, int] = {}  # anchor -> values below it, aliases written out
    open_nodes: list[tuple[str | None, int]] = [(None, 0)]

    def add(size: int, event: yaml.Event) -> None:
        anchor, before = open_nodes[-1]
        if before + size > NODES:
            raise UserError(
                f"{what} has more than {NODES:,} values by line {_line(event)} (every alias "
                "counts with all that it stands for); write a shorter one."
            )
        open_nodes[-1] = (anchor, before + size)

    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            if any(anchor == event.anchor for anchor, _ in open_nodes):
                raise UserError(
                    f"{what}: the alias *{line_of(event.anchor, 40)} in line {_line(event)} stands "
                    "for something that contains it."
                )
            add(sizes.get(event.anchor, 1), event)  # an unknown one is the composer's to refuse
        elif isinstance(event, yaml.CollectionStartEvent):
            if len(open_nodes) > DEPTH:
                raise UserError(
                    f"{what} is nested more than {DEPTH} deep in line {_line(event)}; "
                    "no setting lies so deep."
                )
            open_nodes.append((event.anchor, 1))
        elif isinstance(event, yaml.ScalarEvent | yaml.CollectionEndEvent):
            anchor, size = (event.anchor, 1) if isinstance(event, yaml.ScalarEvent) else (
                open_nodes.pop()
            )  # fmt: skip
            if anchor is not None:
                sizes[anchor] = size
            add(size, event)


def _check(root: yaml.Node, loader: yaml.SafeLoader, what: str) -> None:
    """Every key once, every scalar readable as what its tag says."""
    for node in _nodes(root):
        if isinstance(node, yaml.ScalarNode):
            _scalar(node, loader, what)
        elif isinstance(node, yaml.MappingNode):
            lines: dict[Any, int] = {}
            for key, _ in node.value:
                if not isinstance(key, yaml.ScalarNode) or key.tag.endswith(":merge"):
                    continue  # the constructor refuses other keys
                name = _scalar(key, loader, what)
                if not isinstance(name, Hashable):  # `!!set x: 1`
                    kind = key.tag.rpartition(":")[2]
                    raise UserError(f"{what} has a {kind} as a key in line {_line(key)}.")
                if name in lines:
                    raise UserError(
                        f"{what} has the key {shown(name)} twice, in lines {lines[name]} and "
                        f"{_line(key)}; keep one of them."
                    )
                lines[name] = _line(key)


def _nodes(root: yaml.Node) -> Iterator[yaml.Node]:
    """Every node once, keys included."""
    seen, waiting = {id(root)}, [root]
    while waiting:
        node = waiting.pop()
        yield node
        children = []
        if isinstance(node, yaml.MappingNode):
            children = [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            children = node.value
        for child in children:
            if id(child) not in seen:
                seen.add(id(child))
                waiting.append(child)


def _scalar(node: yaml.ScalarNode, loader: yaml.SafeLoader, what: str) -> Any:
    if SURROGATE.search(node.value):  # JSON writes other planes' characters as two halves
        try:
            node.value = node.value.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            raise UserError(
                f"{what} has half of a character (a lone surrogate) in line {_line(node)}: "
                f"{shown(node.value)}."
            ) from None
    if node.tag.endswith((":merge", ":value")):
        return node.value
    try:
        return loader.construct_object(node)
    except yaml.YAMLError:
        raise
    except Exception as error:  # PyYAML's constructors trust the text: 5,000 digits, a 13th month
        kind = node.tag.rpartition(":")[2]
        raise UserError(
            f"{what}: {shown(node.value)} in line {_line(node)} cannot be read as {kind}."
        ) from error


def _line(place: yaml.Node | yaml.Event) -> int:
    return place.start_mark.line + 1
