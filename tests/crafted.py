"""Model directories by a stranger: a valid model with something added that acts when it is loaded; no pytest in here.

Each of skops' kinds of nodes is there, and the ways around them. What acts leaves `marker`: it is a file, made by a
program that is started, by a function that writes, or by one that is called with a callback; so one look tells.
"""

from __future__ import annotations

import io
import json
import pickle
import shutil
import subprocess
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Node = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Crafted:
    """`acts`: skops itself lets it act, once the names in it are trusted; the rest it refuses too, or never calls."""

    name: str
    model: Path
    acts: bool


def run_shell(command: str, *_: object, **__: object) -> int:
    """What a team's own package may hold, and no model may call."""
    return subprocess.run(command, shell=True, check=False).returncode


class Innocent:
    """A class of the team's."""


# -- nodes


def node(loader: str, path: str, **more: Any) -> Node:
    module, _, name = path.rpartition(".")
    return {"__loader__": loader, "__module__": module, "__class__": name, **more}


def text(value: Any) -> Node:
    return node("JsonNode", "builtins.str", content=json.dumps(value), is_json=True)


def listed(*items: Node, of: str = "builtins.list") -> Node:
    return node("ListNode", of, content=list(items))


def tupled(*items: Node) -> Node:
    return node("TupleNode", "builtins.tuple", content=list(items))


def called(path: str, *arguments: Any) -> Node:
    """skops calls `path` with the arguments."""
    return node("ConstructorFromReduceNode", path, content=tupled(*map(text, arguments)))


def function(path: str) -> Node:
    return node("FunctionNode", path)


def table(items: Mapping[str, Node], *, keys: Node | None = None, of: str = "builtins.dict") -> Node:
    kinds = [keys or node("TypeNode", "builtins.str") for _ in items]
    return node("DictNode", of, content=dict(items), key_types=listed(*kinds))


def partial(func: Node, *arguments: Any) -> Node:
    return node(
        "PartialNode",
        "functools.partial",
        content={
            "func": func,
            "args": tupled(*map(text, arguments)),
            "kwds": table({}),
            "namespace": text(None),
        },
    )


def object_array(*items: Node) -> Node:
    return node("NdArrayNode", "numpy.ndarray", type="json", content=list(items), shape=tupled(text(len(items))))


def instance(path: str, state: Node | None) -> Node:
    return node("ObjectNode", path) | ({} if state is None else {"content": state})


def calling_key(func: Node, key: str) -> Node:
    """skops calls the type of each key with the key."""
    return node("DictNode", "builtins.dict", content={key: text(1)}, key_types=listed(func))


def nodes(marker: Path) -> Iterator[tuple[str, Node, bool]]:
    """(name, node, whether it acts by itself where it is trusted)."""
    touch, code = f"touch {marker}", f"open({str(marker)!r}, 'w')"
    script = f"from pathlib import Path; Path({str(marker)!r}).touch()"
    yield "constructor: a shell", called("os.system", touch), True
    yield "constructor: a shell under its other name", called("posix.system", touch), True
    yield "constructor: a program", called("subprocess.Popen", ["touch", str(marker)]), True
    yield "constructor: code", called("builtins.exec", code), True
    yield "constructor: an expression", called("builtins.eval", code), True
    yield "constructor: a file", called("builtins.open", str(marker), "w"), True
    yield "constructor: of pathlib", called("os.mknod", str(marker)), True
    yield "constructor: NumPy writes", called("numpy.savetxt", str(marker), [1, 2]), True
    yield "constructor: SciPy writes", called("scipy.io.savemat", str(marker), {"a": 1}), True
    yield (
        "constructor: scikit-learn writes",
        called("sklearn.datasets.dump_svmlight_file", [[1]], [1], str(marker)),
        True,
    )
    helper = "sklearn.utils._testing.assert_run_python_script_without_output"
    yield "constructor: scikit-learn starts Python", called(helper, script), True
    yield "constructor: joblib writes", called("joblib.dump", [1], str(marker)), True
    yield "constructor: a module", called("importlib.import_module", "antigravity"), False
    yield "constructor: a team's helper", called("tests.crafted.run_shell", touch), True
    yield "constructor: a trusted class by another name", called("sklearn.utils._testing.TempMemmap", [1]), False
    yield "function: a shell", function("os.system"), False
    yield "function: a team's helper", function("tests.crafted.run_shell"), False
    yield "function: by a module that has it", function("sklearn.utils._testing.os"), False
    yield "partial: of a shell, called by a key", calling_key(partial(function("os.system"), touch), "ignored"), False
    yield (
        "partial: of a team's helper, called by a key",
        (calling_key(partial(function("tests.crafted.run_shell"), touch), "ignored")),
        True,
    )
    yield "partial: of a class", partial(node("TypeNode", "subprocess.Popen"), ["touch", str(marker)]), False
    yield "partial: of a partial", partial(partial(function("os.system"), touch)), False
    yield "key: a shell", calling_key(function("os.system"), touch), True
    yield "key: code", calling_key(node("TypeNode", "builtins.exec"), code), True
    yield "key: a class", calling_key(node("TypeNode", "subprocess.Popen"), "true"), False
    yield (
        "key: of a table of attributes",
        instance("sklearn.dummy.DummyClassifier", calling_key(function("os.system"), touch)),
        True,
    )
    yield "dict: of a class", table({}, of="tests.crafted.Innocent"), False
    yield "list: of a program", listed(text("touch"), text(str(marker)), of="subprocess.Popen"), True
    yield "set: of a program", node("SetNode", "subprocess.Popen", content=[text("touch"), text(str(marker))]), True
    yield "tuple: of a class", node("TupleNode", "subprocess.Popen", content=[text(["touch", str(marker)])]), False
    yield (
        "number: of a program",
        (node("NdArrayNode", "subprocess.Popen", type="json", content=[text("touch")], shape=tupled(text(1)))),
        False,
    )
    yield (
        "default: a shell",
        (
            node(
                "DefaultDictNode",
                "collections.defaultdict",
                content={"main": table({}), "default_factory": partial(function("os.system"), touch)},
            )
        ),
        False,
    )
    yield "method: of a text", node("MethodNode", "builtins.str", content={"func": "format", "obj": text("x")}), False
    writer = node("ObjectNode", "tests.crafted.Innocent")
    yield (
        "method: of an object",
        node("MethodNode", "tests.crafted.Innocent", content={"func": "__class__", "obj": writer}),
        False,
    )
    yield (
        "operator: methodcaller",
        node("OperatorFuncNode", "operator.methodcaller", attrs=tupled(text("system"))),
        False,
    )
    yield (
        "operator: attrgetter",
        node("OperatorFuncNode", "operator.attrgetter", attrs=tupled(text("__class__"))),
        False,
    )
    yield "type: a function", node("TypeNode", "os.system"), False
    yield "type: a program", node("TypeNode", "subprocess.Popen"), False
    loss = {"args": tupled(text(touch))}
    yield "loss: a shell", node("LossNode", "os.system", __reduce__=loss, content=table({})), True
    yield "loss: a team's helper", node("LossNode", "tests.crafted.run_shell", __reduce__=loss, content=table({})), True
    yield "tree: under another name", node("TreeNode", "os.system", __reduce__=loss, content=table({})), False
    yield "random state: a program", node("RandomStateNode", "subprocess.Popen", content=table({})), False
    name = table({"bit_generator": text("seed")})
    yield (
        "generator: by a name",
        (
            node(
                "RandomGeneratorNode",
                "numpy.random._generator.Generator",
                content={"bit_generator": name, "seed_seq": table({})},
            )
        ),
        False,
    )
    distribution = table({"shapes": text("a"), "name": text("x"), "_parse_arg_template": text(code)})
    yield (
        "object: a distribution of SciPy's",
        instance("scipy.stats._distn_infrastructure.rv_continuous", distribution),
        False,
    )
    yield (
        "object: a distance that calls what it holds",
        (instance("sklearn.metrics._dist_metrics.PyFuncDistance64", tupled(text(2.0)))),
        False,
    )
    yield "object: a cache of joblib's", instance("joblib.memory.Memory", table({"location": text(str(marker))})), False
    yield "object: a class within a class", instance("sklearn.pipeline.Pipeline.fit", None), False
    yield "nested: in a table in a list in a tuple", tupled(listed(table({"a": called("os.system", touch)}))), True
    yield "nested: in an array of objects", object_array(text(1), called("os.system", touch)), True
    yield (
        "nested: in an estimator's attribute",
        (instance("sklearn.dummy.DummyClassifier", table({"a": object_array(listed(called("os.system", touch)))}))),
        True,
    )
    yield (
        "nested: behind an id that was seen",
        tupled(text(1) | {"__id__": 7}, called("os.system", touch) | {"__id__": 7}),
        False,
    )
    yield "unknown: a kind of node", node("EvalNode", "builtins.str", content=code), False
    yield (
        "unknown: of another library",
        node("QuantileForestNode", "os.system", __reduce__=loss, content=table({})),
        False,
    )
    yield "unknown: a node without a type", {"__loader__": "ObjectNode"}, False


# -- directories


def craft(folder: Path, valid: Path, marker: Path) -> list[Crafted]:
    """One directory per trick below `folder`, each made of the directory of a valid model."""
    found = []
    for at, (name, added, acts) in enumerate(nodes(marker)):
        model = folder / f"node-{at}"
        shutil.copytree(valid, model)
        _rewrite(model / "model.skops", lambda schema, extra=added: _with_attribute(schema, extra))
        found.append(Crafted(name, model, acts))
    for name, change in _DIRECTORIES.items():
        model = folder / name
        shutil.copytree(valid, model)
        change(model, marker)
        found.append(Crafted(f"directory: {name}", model, False))
    return found


def _with_attribute(schema: Node, extra: Node) -> Node:
    """Of the outermost estimator's attributes one more."""
    attributes = schema["content"]
    attributes["content"]["extra_"] = extra
    attributes["key_types"]["content"].append(node("TypeNode", "builtins.str"))
    return schema


def _rewrite(path: Path, change: Callable[[Node], Any], compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path) as packed:
        members = {name: packed.read(name) for name in packed.namelist()}
    members["schema.json"] = json.dumps(change(json.loads(members["schema.json"]))).encode()
    with zipfile.ZipFile(path, "w", compression) as packed:
        for name, data in members.items():
            packed.writestr(name, data)


def _older_protocol(model: Path, marker: Path) -> None:
    def change(schema: Node) -> Node:
        inner = {"module_path": "os", "function": "system"}
        return {**_with_attribute(schema, node("FunctionNode", "numpy.log1p", content=inner)), "protocol": 0}

    _rewrite(model / "model.skops", change)


def _no_object(model: Path, marker: Path) -> None:
    _rewrite(model / "model.skops", lambda _: [called("os.system", f"touch {marker}")])


def _deep(model: Path, marker: Path) -> None:
    with zipfile.ZipFile(model / "model.skops", "a") as packed:
        deep = '{"__loader__": "ListNode", "content": [' * 100_000 + "]}" * 100_000
        packed.writestr("schema.json", '{"protocol": 2, "content": ' + deep + "}")


def _bomb(model: Path, marker: Path) -> None:
    with zipfile.ZipFile(model / "model.skops", "a", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("zeros.npy", bytes(600 * 2**20))


class _Pickled:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return run_shell, (f"touch {self.marker}",)


def _pickle(model: Path, marker: Path) -> None:
    _described(model, {"serialization_format": "cloudpickle", "pickled_model": "model.pkl"})
    (model / "model.pkl").write_bytes(pickle.dumps(_Pickled(marker)))


def _pickle_named_skops(model: Path, marker: Path) -> None:
    (model / "model.skops").write_bytes(pickle.dumps(_Pickled(marker)))


def _elsewhere(model: Path, marker: Path) -> None:
    shutil.move(model / "model.skops", model.parent / "outside.skops")
    _described(model, {"pickled_model": "../outside.skops"})


def _link(model: Path, marker: Path) -> None:
    shutil.move(model / "model.skops", model.parent / "linked.skops")
    (model / "model.skops").symlink_to(model.parent / "linked.skops")


def _python_tag(model: Path, marker: Path) -> None:
    (model / "MLmodel").write_text(f"flavors: !!python/object/apply:os.system ['touch {marker}']\n")


def _its_own_trust(model: Path, marker: Path) -> None:
    _rewrite(model / "model.skops", lambda schema: _with_attribute(schema, called("os.system", f"touch {marker}")))
    _described(model, {"skops_trusted_types": ["os.system", "posix.system"]})


def _described(model: Path, sklearn: Mapping[str, Any]) -> None:
    import yaml  # type: ignore[import-untyped]

    described = yaml.safe_load((model / "MLmodel").read_text())
    described["flavors"]["sklearn"] |= sklearn
    (model / "MLmodel").write_text(yaml.safe_dump(described))


_DIRECTORIES: Mapping[str, Callable[[Path, Path], None]] = {
    "an older protocol": _older_protocol,
    "a schema that is no object": _no_object,
    "a schema nested without end": _deep,
    "more than is allowed, once it is unpacked": _bomb,
    "a pickle": _pickle,
    "a pickle under the name of the other format": _pickle_named_skops,
    "a file outside": _elsewhere,
    "a link to a file outside": _link,
    "a description that calls": _python_tag,
    "trust that it brings along": _its_own_trust,
}


def as_skops_would(model: Path) -> None:
    """Load it as one does who trusts what a file asks for."""
    import skops.io

    data = (model / "model.skops").read_bytes()
    skops.io.load(io.BytesIO(data), trusted=skops.io.get_untrusted_types(data=data))
