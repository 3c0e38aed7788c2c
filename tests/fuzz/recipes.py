"""Recipes of inputs: for every reader a Hypothesis strategy, drawn from what its templates hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

from fuzz import edits_hdf5, edits_pickles, hostile
from fuzz.edits_files import SPECIAL
from fuzz.edits_json import inner_texts, places
from fuzz.hub_answers import PLACES

Recipe = dict[str, Any]
Edits = st.SearchStrategy[dict[str, Any]]
MOST_EDITS = 4
SPARSE, SPARSE_HDF5 = 3_000_000_000, 30_000_000
"""Bytes. A dataset is hashed whole before it is packed, however large, and that takes a second for each gigabyte."""
HEADERS = (
    *("ETag", "X-Linked-Etag", "X-Repo-Commit", "X-Linked-Size", "Content-Length", "Content-Range", "Content-Type"),
    *("Content-Encoding", "Location", "Link", "Retry-After", "X-Error-Code", "X-Error-Message", "Accept-Ranges", "X-Xet-Hash"),
    *("Set-Cookie", "Transfer-Encoding", "Connection"),
)
STATUSES = (100, 200, 204, 206, 301, 302, 304, 307, 400, 401, 403, 404, 409, 412, 416, 429, 451, 500, 503, 599, 999)
HEADER_VALUES = (
    *(
        '"../../../../home/notes.txt"',
        '"/etc/passwd"',
        '".."',
        '""',
        '"' + "a" * 300 + '"',
        'W/"x"',
        "0" * 40,
        "\u0660" * 40,
        "-1",
        "1e9",
    ),
    *(
        "99999999999999",
        "nan",
        "bytes 0-1/2",
        "bytes */*",
        "gzip",
        "br",
        "chunked",
        "close",
        "EntryNotFound",
        "GatedRepo",
        "RepoNotFound",
    ),
    *(
        "RevisionNotFound",
        "\x1b[31mred",
        "/_cdn/00",
        "//localhost/",
        "/",
        "https:",
        "file:///etc/passwd",
        "<x>; rel=next",
        "",
        "%2e%2e/%2e%2e",
    ),
)


def json_edits(text: str) -> st.SearchStrategy[list[dict[str, Any]]]:
    """Edits of one document."""
    spots = st.sampled_from(places(text))
    one = st.one_of(
        st.fixed_dictionaries({"do": st.just("set"), "at": spots, "raw": hostile.raw_values}),
        st.fixed_dictionaries({"do": st.just("set"), "at": spots, "raw": hostile.numbers}),
        st.fixed_dictionaries({"do": st.sampled_from(["name", "twin"]), "at": spots, "raw": hostile.texts.map(hostile.quoted)}),
        st.fixed_dictionaries({"do": st.just("copy"), "at": spots, "from": spots}),
        st.fixed_dictionaries({"do": st.just("drop"), "at": spots}),
    )
    inner = [
        st.fixed_dictionaries({"do": st.just("inner"), "at": st.just(at), "edits": json_edits(value)})
        for at, value in inner_texts(text)
    ]
    return st.lists(st.one_of(one, *inner), min_size=1, max_size=3)


def file_edits(template: dict[str, Any]) -> Edits:
    """Edits of bytes, sizes and kinds of files, and more files."""
    files, anything = st.sampled_from(template["files"]), st.sampled_from([*template["files"], *template["folders"]])
    do = st.just
    return st.one_of(
        st.fixed_dictionaries({"do": do("flip"), "file": files, "at": hostile.fractions, "bits": st.integers(1, 255)}),
        st.fixed_dictionaries({"do": do("cut"), "file": files, "size": hostile.fractions}),
        st.fixed_dictionaries(
            {"do": do("add"), "file": files, "text": st.text(max_size=5), "times": st.sampled_from([1, 1000])}
        ),
        st.fixed_dictionaries({"do": do("number"), "file": files, "at": hostile.fractions, "value": hostile.integers}),
        st.fixed_dictionaries(
            {
                "do": do("fill"),
                "file": files,
                "at": hostile.fractions,
                "value": hostile.floats,
                "times": st.sampled_from([1, 50, 5000]),
            }
        ),
        st.fixed_dictionaries({"do": do("text"), "file": files, "text": hostile.raw_values}),
        files.map(lambda name: {"do": "sparse", "file": name, "size": SPARSE_HDF5 if name.endswith(".hdf5") else SPARSE}),
        st.fixed_dictionaries({"do": do("special"), "file": anything, "kind": st.sampled_from(SPECIAL)}),
        st.fixed_dictionaries({"do": do("extra"), "name": extra_names(template), "like": files}),
        st.fixed_dictionaries({"do": do("twist"), "file": files, "with": files.map(lambda name: name.rpartition("/")[2])}),
    )


def extra_names(template: dict[str, Any]) -> st.SearchStrategy[str]:
    """Names for one more file: hostile ones, and those of a file with something behind."""
    relative = hostile.names.filter(lambda name: not name.startswith("/") and ".." not in name.split("/") and name.strip("./"))
    folders = st.sampled_from(["", *(f"{name}/" for name in template["folders"])])
    known = st.tuples(st.sampled_from(template["files"]), st.sampled_from([".next", "~", ".lock", ".part", " ", "\n"])).map(
        "".join
    )
    return st.one_of(known, st.tuples(folders, relative).map("".join))


def banks(templates: dict[str, Any]) -> st.SearchStrategy[Recipe]:
    """Files are changed, perhaps listed as they are now, and then the list itself is changed."""
    bank = templates["bank"]
    headers = document_edits({**bank, "json": {}})
    before = st.lists(st.one_of(*headers, file_edits(bank)), max_size=2)
    rehash = st.sampled_from([[{"do": "rehash"}], [{"do": "rehash"}], []])
    (manifest,) = document_edits({**bank, "headers": {}})
    after = st.lists(st.one_of(manifest, manifest, file_edits(bank)), max_size=2)
    edits = st.tuples(before, rehash, after).map(lambda parts: [edit for part in parts for edit in part])
    return recipe("banks", "bank", edits)


def recipe(reader: str, template: str, edits: st.SearchStrategy[list[dict[str, Any]]]) -> st.SearchStrategy[Recipe]:
    return st.fixed_dictionaries({"reader": st.just(reader), "template": st.just(template), "edits": edits})


def datasets(templates: dict[str, Any]) -> st.SearchStrategy[Recipe]:
    """A dataset, or a root with a dataset and its packed copy, which whoever hands on a folder hands on too."""
    kinds = [_dataset(name, templates[name]) for name in ("dataset", "labelled dataset")]
    packed = templates["packed dataset"]
    files = [name for name in packed["files"] if name.startswith(".packed/")]
    inside = {**packed, "files": files, "folders": [name for name in packed["folders"] if name.startswith(".packed")]}
    edits = st.lists(st.one_of(*document_edits(packed, ".packed/"), file_edits(inside)), min_size=1, max_size=2)
    return st.one_of(*kinds, recipe("datasets", "packed dataset", edits))


def _dataset(name: str, template: dict[str, Any]) -> st.SearchStrategy[Recipe]:
    steps, objects = next(iter(template["hdf5"].items()))
    edits = st.lists(hdf5_edits(objects), min_size=1, max_size=3)
    hdf5 = st.fixed_dictionaries({"do": st.just("hdf5"), "file": st.just(steps), "edits": edits})
    one = st.one_of(hdf5, hdf5, hdf5, *document_edits(template, "m3dt/reach/random-v0/"), file_edits(template))
    return recipe("datasets", name, st.lists(one, min_size=1, max_size=3))


def document_edits(template: dict[str, Any], prefix: str = "") -> list[Edits]:
    """Edits of the JSON files and of the headers of safetensors files whose names begin with `prefix`."""
    length = st.one_of(st.none(), st.none(), hostile.integers)
    texts = [
        st.fixed_dictionaries({"do": st.just("json"), "file": st.just(name), "edits": json_edits(text)})
        for name, text in template["json"].items()
        if name.startswith(prefix)
    ]
    headers = [
        st.fixed_dictionaries({"do": st.just("header"), "file": st.just(name), "edits": json_edits(text), "length": length})
        for name, text in template["headers"].items()
        if name.startswith(prefix)
    ]
    return [*texts, *headers]


def hdf5_edits(objects: dict[str, list[int]]) -> Edits:
    arrays, all_names = st.sampled_from([n for n, shape in objects.items() if shape]), st.sampled_from(list(objects))
    shapes = st.lists(st.sampled_from([0, 1, 4, 6, 7, 39, 1000, 1 << 24, 1 << 33]), max_size=4)
    episodes = st.sampled_from([name for name, shape in objects.items() if not shape])
    renamed = st.one_of(st.sampled_from(["episode_99", "episode_\u0660", "episode_01", "episode_1 "]), hostile.names)
    do = st.just
    return st.one_of(
        st.fixed_dictionaries({"do": do("link"), "name": all_names, "kind": st.sampled_from(edits_hdf5.LINKS)}),
        st.fixed_dictionaries({"do": do("outside"), "name": arrays, "kind": st.sampled_from(edits_hdf5.OUTSIDE)}),
        st.fixed_dictionaries({"do": do("shape"), "name": arrays, "shape": shapes, "stored": st.booleans()}),
        st.fixed_dictionaries({"do": do("type"), "name": arrays, "dtype": st.sampled_from(list(edits_hdf5.TYPES))}),
        st.fixed_dictionaries({"do": do("value"), "name": arrays, "at": hostile.fractions, "value": hostile.floats}),
        st.fixed_dictionaries({"do": do("filter"), "name": arrays, "kind": st.sampled_from(edits_hdf5.FILTERS)}),
        st.fixed_dictionaries(
            {
                "do": do("attribute"),
                "name": episodes,
                "key": st.sampled_from(["seed", "id", "x"]),
                "kind": st.sampled_from(edits_hdf5.ATTRIBUTES),
            }
        ),
        st.fixed_dictionaries({"do": do("rename"), "name": all_names, "to": renamed}),
        st.fixed_dictionaries({"do": st.sampled_from(["group", "array", "drop"]), "name": all_names}),
    )


def published(templates: dict[str, Any]) -> st.SearchStrategy[Recipe]:
    kinds = []
    for name in ("mt160", "prompt-dt", "tdmpc2", "weights"):
        template = templates[name]
        special = archive_edits(template["files"]) if name != "prompt-dt" else pickled_edits(template["files"])
        kinds.append(
            recipe("published", name, st.lists(st.one_of(special, special, file_edits(template)), min_size=1, max_size=2))
        )
    return st.one_of(kinds)


def pickled_edits(files: Sequence[str]) -> Edits:
    return st.fixed_dictionaries({"do": st.just("pickle"), "file": st.sampled_from(files), "edit": pickle_edits()})


def pickle_edits() -> Edits:
    values = st.one_of(
        hostile.integers,
        hostile.texts,
        st.floats(),
        st.none(),
        st.booleans(),
        st.binary(max_size=9).map(lambda b: b.decode("latin1")),
    )
    return st.one_of(
        st.fixed_dictionaries(
            {"do": st.just("argument"), "member": hostile.fractions, "at": hostile.fractions, "value": values}
        ),
        st.fixed_dictionaries(
            {
                "do": st.just("insert"),
                "member": hostile.fractions,
                "at": hostile.fractions,
                "code": st.sampled_from(list(edits_pickles.CODES)),
            }
        ),
    )


def archive_edits(files: Sequence[str]) -> Edits:
    """Edits of a zip archive: numpy's (.npz) and torch's."""
    numpy_dtypes = st.sampled_from(["<f4", "<f8", "|O", "<U9", "|V8", ">i4", "<M8[s]", "<c16", "<f2", "|b1", "[('a', '<f4')]"])
    shapes = st.one_of(st.lists(st.sampled_from([0, 1, 4, 6, 39, 1 << 20, 1 << 40, -1]), max_size=3), st.just([1] * 40))
    npy = st.tuples(numpy_dtypes, shapes, st.sampled_from(["True", "False", "0", "x"])).map(
        lambda t: f"{{'descr': {t[0] if t[0][0] == '[' else repr(t[0])}, 'fortran_order': {t[2]}, 'shape': {tuple(t[1])!r}, }}"
    )
    member = {"do": st.just("member"), "member": hostile.fractions}
    one = st.one_of(
        pickle_edits(),
        st.fixed_dictionaries({"do": st.just("npy"), "member": hostile.fractions, "text": st.one_of(npy, npy, hostile.texts)}),
        st.fixed_dictionaries({**member, "name": hostile.names}),
        st.fixed_dictionaries({**member, "size": st.sampled_from([0, 1, 100, 30_000_000])}),
    )
    return st.fixed_dictionaries({"do": st.just("archive"), "file": st.sampled_from(files), "edit": one})


def hub(templates: dict[str, Any], answers: dict[str, str]) -> st.SearchStrategy[Recipe]:
    """answers: what the Hub says about the two repositories, from `sample_answers`."""
    kinds = []
    for name, planted in (("hub bank", "bank.json"), ("hub datasets", "datasets.json")):
        plant = st.fixed_dictionaries(
            {"do": st.just("plant"), "file": st.just(planted), "edits": json_edits(templates[name]["json"][planted])}
        )
        edits = st.lists(st.one_of(answer_edits(answers[name]), answer_edits(answers[name]), plant), min_size=1, max_size=3)
        kinds.append(st.fixed_dictionaries({"reader": st.just("hub"), "template": st.just(name), "hub": edits}))
    return st.one_of(kinds)


def answer_edits(text: str) -> Edits:
    where = {"where": st.sampled_from(list(PLACES)), "times": st.sampled_from([0, 0, 1, 2])}
    values = st.one_of(
        st.sampled_from(HEADER_VALUES),
        st.text(st.characters(exclude_characters="\r\n\0", exclude_categories=["Cs"]), max_size=9),
    )
    do = st.just
    return st.one_of(
        st.fixed_dictionaries(
            {"do": do("json"), "where": do("info"), "times": st.sampled_from([0, 0, 1]), "edits": json_edits(text)}
        ),
        st.fixed_dictionaries(
            {"do": do("header"), **where, "name": st.sampled_from(HEADERS), "value": values, "twice": st.booleans()}
        ),
        st.fixed_dictionaries({"do": do("status"), **where, "status": st.sampled_from(STATUSES)}),
        st.fixed_dictionaries(
            {
                "do": do("body"),
                **where,
                "kind": st.sampled_from(["cut", "short", "flip", "endless", "bomb"]),
                "at": hostile.fractions,
            }
        ),
        st.fixed_dictionaries({"do": do("body"), **where, "kind": do("text"), "text": hostile.raw_values}),
    )
