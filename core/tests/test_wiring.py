"""Option trees become nodes: children, filters, references and names."""

from collections.abc import Mapping
from typing import Any

import pytest

from diskwright.errors import ImageError
from diskwright.extent import Kind
from diskwright.hookspecs import FilterOptions, hookimpl
from diskwright.node import Buffer, Bytes, Image, Node
from diskwright.options import Option, OptionType
from diskwright.passing import Passing
from diskwright.trees import OptionString, json_name, tree_from_json, tree_from_options


class Spy(Passing):
    """Notes what passes, in guest offsets."""

    watches_reads = True

    def __init__(self, below: Node, options: FilterOptions) -> None:
        super().__init__(below, writable=options.writable)
        self.values = options.values
        self.plain_name = below.filename
        self.seen: list[tuple[str, int, int]] = []

    def read_into(self, offset: int, buffer: Buffer) -> None:
        self.seen.append(("read", offset, len(buffer)))
        super().read_into(offset, buffer)

    def write_at(self, offset: int, data: Bytes) -> None:
        self.seen.append(("write", offset, len(data)))
        super().write_at(offset, data)


class SpyFilter:
    @hookimpl
    def child_roles(self) -> list[str]:
        return ["file"]

    @hookimpl
    def runtime_options(self) -> list[Option]:
        return [
            Option("level", OptionType.NUMBER, "strength", strong=True),
            Option("rules.*.event", OptionType.STRING, "what for"),
        ]

    @hookimpl
    def tree_of_name(self, filename: str) -> Mapping[str, Any]:
        return {"file.filename": filename.removeprefix("spy:")}

    @hookimpl
    def open(self, children: Mapping[str, Node], options: FilterOptions) -> Image:
        return Spy(children["file"], options)


class TestFilters:
    """Anywhere in a tree."""

    OVER_LAYER = "driver=spy,file.driver=layer,file.file.filename=x"

    @pytest.fixture
    def world(self, layer_world: Any) -> Any:
        layer_world.context.filters.register("spy", SpyFilter())
        layer_world.layer("x", "12")
        return layer_world

    def open(self, world: Any, name: str, **request: Any) -> Any:
        return world.context.open(OptionString(name), **request)

    def test_it_sees_what_is_read_and_written(self, world: Any) -> None:
        with self.open(world, self.OVER_LAYER, writable=True) as image:
            image.write_at(0, b"abc")
            assert image.read_at(0, 5) == b"abc\1\1"
            assert image.seen == [("write", 0, 3), ("read", 0, 5)]
            assert image.driver == "spy"

    def test_the_map_keeps_its_places(self, world: Any) -> None:
        with self.open(world, self.OVER_LAYER) as image:
            places = [(extent.kind, extent.node_offset) for extent in image.extents()]
        with world.context.open("x", "layer") as image:
            assert places == [(Kind.ENCODED, extent.node_offset) for extent in image.extents()]

    def test_below_a_format(self, world: Any) -> None:
        with self.open(world, "driver=layer,file.driver=spy,file.file.filename=x") as image:
            assert (image.driver, image.file.driver) == ("layer", "spy")

    def test_layers_below_are_seen_through_it(self, world: Any) -> None:
        world.layer("top", "-3", "x")
        name = OptionString("driver=spy,file.driver=layer,file.file.filename=top")
        with self.open(world, name) as image:
            assert image.backing.backing is None
            assert image.read_at(0, image.size) == bytes([1]) * (image.size // 2) + bytes([3]) * (image.size // 2)

    def test_a_name_with_its_prefix(self, world: Any) -> None:
        with world.context.open("spy:x", "layer") as image:
            assert image.file.driver == "spy"

    def test_options_of_lists(self, world: Any) -> None:
        with self.open(world, f"{self.OVER_LAYER},level=3,rules.0.event=a,rules.1.event=b") as image:
            assert image.values == {"level": 3, "rules.0.event": "a", "rules.1.event": "b"}
            below = '{"driver": "layer", "file": {"driver": "file", "filename": "x"}}'
            assert image.filename == f'json:{{"driver": "spy", "level": "3", "file": {below}}}'


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("driver=spy,level=3", 'A block device must be specified for "file"'),
        (
            "driver=spy,depth=3,file.driver=layer,file.file.filename=x",
            "Block protocol 'spy' doesn't support the option",
        ),
        ("driver=nothing,file.filename=x", "Unknown driver 'nothing'"),
        ("driver=layer,file.filename=x,file.foo=1", "Block protocol 'file' doesn't support the option 'foo'"),
        ("driver=layer,node-name=a,file.filename=x,file.node-name=a", "Duplicate nodes with node-name='a'"),
        ("driver=layer,file=a", "Cannot find device='a' nor node-name='a'"),
        ("driver=layer,node-name=1,file.filename=x", "Invalid node-name: '1'"),
        ("driver.x=layer,file.filename=x", "Parameter 'driver' expects a string"),
        ("driver=layer,file.filename=x,detect-zeroes=unmap", "setting detect-zeroes to unmap is not allowed"),
    ],
)
def test_refused(layer_world: Any, name: str, message: str) -> None:
    layer_world.context.filters.register("spy", SpyFilter())
    layer_world.layer("x", "12")
    with pytest.raises(ImageError) as caught:
        layer_world.context.open(OptionString(name))
    assert message in str(caught.value)


def test_a_node_may_be_referred_to_by_its_name(layer_world: Any) -> None:
    layer_world.layer("x", "12")
    tree = "driver=layer,file.driver=file,file.filename=x,file.node-name=n,backing.driver=layer,backing.file=n"
    with layer_world.context.open(OptionString(tree)) as image:
        assert image.backing.file is image.file


def test_an_image_below_a_format_is_the_whole_disk(layer_world: Any) -> None:
    layer_world.layer("base", "12")
    layer_world.layer("top", "-3", "base")
    name = OptionString("driver=layer,file.driver=layer,file.file.filename=top")
    with layer_world.context.open(name) as image:
        assert image.file.backing is not None
        assert image.file.read_at(0, 1) == b"\1"


def test_zeros_are_detected_where_that_is_asked_for(layer_world: Any) -> None:
    layer = layer_world.layer("x", "12")
    name = OptionString("driver=layer,file.filename=x,detect-zeroes=on")
    with layer_world.context.open(name, writable=True) as image:
        image.write_at(0, bytes(image.size // 2))
    assert (layer.state[0], layer_world.own("x")) == (Kind.ZERO, "02")


class TestNames:
    """The JSON dialect, and the names that are shown."""

    @pytest.mark.parametrize(
        ("text", "tree"),
        [
            ("json:{'driver': 'raw', \"size\": 5}", {"driver": "raw", "size": 5}),
            ("json:{'a': 'it\\'s \"so\"'}", {"a": 'it\'s "so"'}),
            ("json:{'a': \"it's\"}", {"a": "it's"}),
            ("json:{'a.b': true, 'c': [1, null]}", {"a": {"b": True}, "c": {"0": 1, "1": None}}),
        ],
    )
    def test_dialect(self, text: str, tree: dict[str, Any]) -> None:
        assert tree_from_json(text) == tree

    def test_lists_and_types_come_back(self) -> None:
        tree = tree_from_json('json:{"x": [{"y": 1}, {"y": "1"}], "z": false}')
        assert tree_from_json(json_name(tree)) == tree
        assert '[{"y": 1}, {"y": "1"}]' in json_name(tree)

    def test_long_names_end_in_dots(self) -> None:
        name = json_name({"x": "y" * 5000})
        assert (len(name), name[-3:]) == (4095, "...")

    def test_keys_below_a_value_keep_their_dots(self) -> None:
        assert tree_from_options("a=1,a.b=2,c.d=3") == {"a": "1", "a.b": "2", "c": {"d": "3"}}
