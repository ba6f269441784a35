"""A page as a browser left it, read with the standard library."""

import html.parser
from dataclasses import dataclass, field

# Void elements have no end tag, so they never go on the parser's stack.
VOID = {"meta", "input", "br", "img", "link", "hr"}


@dataclass(eq=False)
class Node:
    """One element of a page as the browser left it."""

    tag: str
    attributes: dict[str, str]
    inside: tuple["Node", ...] = field(repr=False)
    text: str = field(default="", repr=False)

    @property
    def classes(self) -> set[str]:
        return set(self.attributes.get("class", "").split())


@dataclass(eq=False, repr=False)
class Dom(html.parser.HTMLParser):
    """A page after its script ran, as chromium --dump-dom prints it."""

    source: str
    nodes: list[Node] = field(default_factory=list)
    _open: list[Node] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        node = Node(tag, {name: value or "" for name, value in attrs}, tuple(self._open))
        self.nodes.append(node)
        if tag not in VOID:
            self._open.append(node)

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop().tag != tag:
            pass

    def handle_data(self, data: str) -> None:
        for node in self._open:
            node.text += data

    @property
    def root(self) -> dict[str, str]:
        return next(node.attributes for node in self.nodes if node.tag == "html")

    def find(self, *classes: str, tag: str | None = None, inside: str | None = None) -> list[Node]:
        """Elements with all the classes, of a tag, inside an element with an id, of what is not hidden."""
        return [
            node
            for node in self.nodes
            if set(classes) <= node.classes
            and tag in (None, node.tag)
            and (inside is None or any(outer.attributes.get("id") == inside for outer in node.inside))
            and not any("hidden" in outer.attributes for outer in (*node.inside, node))
        ]

    def words(self, *classes: str, inside: str | None = None, tag: str | None = None) -> list[str]:
        return [node.text for node in self.find(*classes, inside=inside, tag=tag)]
