"""The DOM of a page after its script ran, parsed with the standard library."""

import html.parser
from dataclasses import dataclass, field

# Elements without an end tag, which are never open.
VOID = {"meta", "input", "br", "img", "link", "hr"}


@dataclass(eq=False)
class Node:
    """One element. inside: the elements that contain it."""

    tag: str
    attributes: dict[str, str]
    inside: tuple["Node", ...] = field(repr=False)
    text: str = field(default="", repr=False)

    @property
    def classes(self) -> set[str]:
        return set(self.attributes.get("class", "").split())


@dataclass(eq=False, repr=False)
class Dom(html.parser.HTMLParser):
    """The elements of a page, in order."""

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
        """Visible elements with all of these classes, of this tag, inside the element with this id."""
        return [
            node
            for node in self.nodes
            if set(classes) <= node.classes
            and tag in (None, node.tag)
            and (inside is None or any(outer.attributes.get("id") == inside for outer in node.inside))
            and not any("hidden" in outer.attributes for outer in (*node.inside, node))
        ]

    def texts(self, *classes: str, inside: str | None = None, tag: str | None = None) -> list[str]:
        return [node.text for node in self.find(*classes, inside=inside, tag=tag)]
