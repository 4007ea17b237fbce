"""Tables and archives as people have them: splits, labels, columns and members."""

import gzip
import io
import json
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from layouts import Photo, as_tars
from test_data_sources_strange import ONE, counted, listed, png

from pipeline.data.sources import class_index, parquet, regroup, webdataset
from pipeline.data.sources.base import Unreadable
from pipeline.errors import InputError


def table(root: Path, name: str, labels: Any, *, column: str = "image", metadata: dict | None = None) -> str:
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [{"bytes": png(n), "path": f"{name}{n}.png"} for n in range(len(labels))]
    content = pa.table({column: pa.array(rows, image), "label": labels})
    if metadata:
        content = content.replace_schema_metadata({"huggingface": json.dumps(metadata)})
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(content, root / name)
    return str(root)


def test_splits_are_read_from_folders_too(tmp_path: Path) -> None:
    both = {name: {"train": 1, "heldout": 1} for name in "01"}
    for split in ("train", "test"):
        table(tmp_path / "a", f"default/{split}/0000.parquet", [0, 1])
    assert counted("parquet", str(tmp_path / "a")) == both
    assert counted("parquet", f"{tmp_path}/a/default/*/*.parquet") == both
    with pytest.raises(InputError, match="all 2 images are held out"):
        listed("parquet", table(tmp_path / "c", "test-0.parquet", [0, 1]))
    assert counted("parquet", str(tmp_path / "a/default/test")) == dict.fromkeys("01", ONE), (
        "asked for as it is"
    )
    photos = [Photo(name=f"{n}.png", wnid="", label=n % 2, data=png(n)) for n in range(4)]
    uri = Path(as_tars(tmp_path / "b", photos, files=1))
    (uri / "val").mkdir()
    next(uri.glob("*.tar")).rename(uri / "val/0000.tar")
    as_tars(uri / "more", [Photo(name="x.png", wnid="", label=0, data=png())], files=1)
    next((uri / "more").iterdir()).rename(uri / "more/0000.tar")
    assert counted("webdataset", str(uri)) == {"0": {"heldout": 2, "train": 1}, "1": {"heldout": 2}}


def test_a_folder_as_spark_writes_it_and_other_endings(tmp_path: Path) -> None:
    root = tmp_path / "set.parquet"
    table(root, "part-00000.snappy.parquet", [0, 1])
    table(root, "part-00001.PARQUET", [0])
    for name in ("_SUCCESS", ".part-00000.crc", "_metadata", "notes.md"):
        (root / name).write_bytes(b"")
    source, items = listed("parquet", str(root))
    assert len(items) == 3 and source.passed_over == [
        "1 files that are no .parquet (first notes.md)",
        "3 hidden files or those of the system (first .part-00000.crc)",
    ]


NAMES = {"info": {"features": {"label": {"names": ["golden retriever", "Labrador retriever"]}}}}


@pytest.mark.parametrize(
    ("labels", "options", "expected"),
    [
        ([0, 1], {"metadata": NAMES}, {"golden retriever": ONE, "Labrador retriever": ONE}),
        ([0, 1], {"column": "img"}, {"0": ONE, "1": ONE}),
        (["dog", "a cat"], {}, {"dog": ONE, "a cat": ONE}),
        (["10", "9"], {}, {"9": ONE, "10": ONE}),
        (pa.array(["b", "a"]).dictionary_encode(), {}, {"a": ONE, "b": ONE}),
        ([1.0, 0.0], {}, {"0": ONE, "1": ONE}),
        ([True, False], {}, {"0": ONE, "1": ONE}),
        (pa.array([1, 0], pa.uint8()), {}, {"0": ONE, "1": ONE}),
        (pa.array([1, 0], pa.float16()), {}, {"0": ONE, "1": ONE}),
        (pa.array(["b", "a"]).cast(pa.string_view()), {}, {"a": ONE, "b": ONE}),
        (["cat ", "dog"], {}, {"cat": ONE, "dog": ONE}),
        ([0], {"metadata": {"info": [1]}}, {"0": ONE}),
    ],
)
def test_labels_as_tables_have_them(tmp_path: Path, labels: Any, options: dict, expected: dict) -> None:
    assert counted("parquet", table(tmp_path, "train.parquet", labels, **options)) == expected


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([[0], [1]], "labels of type list<.*> such as .*expected one whole number or class name a row"),
        ([0.5, 1], "labels of type double such as '0.5'"),
        ([1.0, float("nan")], "labels of type double such as 'nan'"),
        ([1e300, 1.0], r"labels of type double such as '1e\+300'"),
        (["cat ", "cat"], "has the labels 'cat' and 'cat ', which differ by blanks alone"),
        (["cat", " "], r"has a row without label \(row 1\)"),
        ([0, None], r"has a row without label \(row 1\)"),
        ([0, -1], "got label -1, expected 0 to 99999"),
        ([0, 10**12], "got label 1000000000000, expected 0 to 99999"),
    ],
)
def test_labels_that_are_none_are_refused(tmp_path: Path, labels: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        listed("parquet", table(tmp_path, "train.parquet", labels))
    assert "\n" not in str(caught.value)


def test_test_rows_without_labels_are_passed_over_and_counted(tmp_path: Path) -> None:
    table(tmp_path, "data/train-0.parquet", [0, 1])
    table(tmp_path, "data/validation-0.parquet", [0, 1])
    table(tmp_path, "data/test-0.parquet", [-1, -1, -1])
    source, items = listed("parquet", str(tmp_path))
    assert Counter(item.split for item in items) == {"train": 2, "heldout": 2}
    assert source.passed_over == [
        f"3 rows of test files without a label (-1) (first {tmp_path}/data/test-0.parquet)"
    ]


def test_names_in_one_file_and_numbers_in_another(tmp_path: Path) -> None:
    table(tmp_path, "train-0.parquet", [0])
    table(tmp_path, "train-1.parquet", ["cat"])
    with pytest.raises(
        InputError, match="numbers for labels in some files and names such as 'cat' in others"
    ):
        listed("parquet", str(tmp_path))
    uri = table(tmp_path / "b", "train.parquet", ["n01440764", "golden_retriever"])
    assert counted("parquet", uri, classes="imagenet") == {"tench": ONE, "golden_retriever": ONE}


def test_two_columns_of_images_are_refused(tmp_path: Path) -> None:
    uri = table(tmp_path, "train.parquet", [1, 0])
    both = pq.read_table(f"{uri}/train.parquet")
    pq.write_table(both.append_column("img", both["image"]), f"{uri}/train.parquet")
    with pytest.raises(InputError, match="has images in the columns image and img, expected one of them"):
        listed("parquet", uri)


def test_the_other_name_of_the_image_column_is_regrouped_too(tmp_path: Path) -> None:
    uri = table(tmp_path / "a", "train.parquet", [1, 0, 1], column="img")
    source, items = listed("parquet", uri)
    plans, moved = regroup.plan_regrouping(items, str(tmp_path / "copies"))
    assert [regroup.regroup(plan) for plan in plans] == [3]
    assert list(source.read(moved)) == list(source.read(items)) == [png(n) for n in range(3)]


def repeated(path: Path, *, rows: int, image: bytes, name: str = "a.png") -> str:
    """A Parquet file that holds an image, its path and a label once, and refers to them in every row."""

    def column(value: Any) -> pa.Array:
        return pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array([value]))

    images = pa.StructArray.from_arrays([column(image), column(name)], ["bytes", "path"])
    content = pa.table({"image": images, "label": column(0)})
    path.parent.mkdir(exist_ok=True)
    pq.write_table(content, path, compression="zstd", dictionary_pagesize_limit=1 << 30, store_schema=False)
    return str(path)


def test_a_small_table_that_stands_for_gigabytes_is_refused_before_they_are_in_memory(
    tmp_path: Path, monkeypatch
) -> None:
    image = bytes(1 << 20)
    source, items = listed("parquet", repeated(tmp_path / "a/train.parquet", rows=64, image=image))
    assert Path(source.uri).stat().st_size < 10_000, "and it says so: 64 MB of images"
    assert [len(data) for data in source.read(items[:2])] == [1 << 20] * 2
    monkeypatch.setattr(parquet, "BATCH_BYTES", 4 << 20)
    monkeypatch.setattr(parquet, "LARGEST_READ", 16 << 20)
    before, most = pa.total_allocated_bytes(), 0
    for batch in parquet.decoded(pq.ParquetFile(source.uri), [0], ["image.bytes"]):
        most = max(most, pa.total_allocated_bytes() - before)
        assert len(batch) <= 4
    assert most < 32 << 20, "of the 64 MB that the group stands for"
    with pytest.raises(InputError, match=r"64 images of .* take more than 16777216 bytes together"):
        list(source.read(items))
    monkeypatch.setattr(parquet, "LARGEST_FILE", 1 << 19)
    assert str(next(source.read(items[:1]))).startswith("too large: 1048576 bytes")
    plans, _ = regroup.plan_regrouping(items, str(tmp_path / "copies"))
    monkeypatch.setattr(regroup, "LARGEST_READ", 16 << 20)
    with pytest.raises(InputError, match=r"take more than .* in memory, which are no images"):
        regroup.regroup(plans[0])


def test_paths_and_rows_without_end_are_refused(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(parquet, "LARGEST_TEXT", 1 << 20)
    monkeypatch.setattr(parquet, "ROWS_WITHOUT_BYTES", 100)
    with pytest.raises(InputError, match=r"the paths and labels of .* take more than 1048576 bytes"):
        listed("parquet", repeated(tmp_path / "a/train.parquet", rows=90, image=png(), name="x" * 99_999))
    with pytest.raises(InputError, match=r"has 9000 rows in .* bytes, which are no images"):
        listed("parquet", repeated(tmp_path / "b/train.parquet", rows=9000, image=png()))


def tar_of(path: Path, members: dict[str, bytes]) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path.read_bytes()


def test_tars_one_behind_the_other_are_read_to_the_end(tmp_path: Path) -> None:
    parts = [tar_of(tmp_path / f"{n}.tar", {f"{n}.PNG": png(n), f"{n}.cls": b"0"}) for n in range(3)]
    (tmp_path / "raw").mkdir()
    file = tmp_path / "raw/all.tar"
    file.write_bytes(b"".join(parts) + bytes(1 << 21))
    source, items = listed("webdataset", str(file))
    assert [item.sample_id for item in items] == ["0", "1", "2"]
    assert list(source.read(items)) == [png(n) for n in range(3)]
    file.write_bytes(parts[0] + b"something else" * 99)
    with pytest.raises(InputError, match="ends early or is damaged"):
        listed("webdataset", str(file))


def test_members_that_are_neither_image_nor_label(tmp_path: Path) -> None:
    members = {
        "a.jpeg": png(),
        "a.json": b'{"label": 1}',
        "a.seg.png": png(),
        "a.txt": b"a cat",
        "._a.jpeg": b"x",
    }
    tar_of(tmp_path / "x.TAR", members)
    (tmp_path / "more.tar.gz").write_bytes(b"")
    source, items = listed("webdataset", str(tmp_path))
    assert [(item.sample_id, item.label) for item in items] == [("a", 1)]
    assert source.passed_over == [
        "1 files that are no .tar (first more.tar.gz)",
        f"1 hidden files or those of the system (first {tmp_path}/x.TAR#._a.jpeg)",
        f"2 members that are neither image nor label (first {tmp_path}/x.TAR#a.seg)",
    ]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a.png": b"x", "a.json": b'{"caption": "cat"}'}, "only one of image and label for 'a'"),
        ({"a.png": b"x", "a.json": b"[" * 100_000}, r"a\.json in .* expected JSON"),
        ({"a.png": b"x", "a.cls": b"1" * (2 << 20)}, "has 2097152 bytes, expected a label of at most"),
        ({"a.png": b"x", "a.cls": b"cat"}, "holds 'cat', expected a class number"),
        ({"a.png": b"x", "a.cls": b"0", "a.json": b'{"label": 1}'}, r"has 0 in a\.cls and 1 in a\.json"),
        ({"a.png": b"x", "a.cls": b"0", "a.CLS": b"0"}, r"holds the label 'a\.CLS' twice"),
        ({"a.png": b"x", "a.json": b'{"label": "\\ud800"}'}, "which is no text"),
    ],
)
def test_labels_of_tars_that_are_none(tmp_path: Path, members: dict[str, bytes], message: str) -> None:
    tar_of(tmp_path / "x.tar", members)
    with pytest.raises(InputError, match=message):
        listed("webdataset", str(tmp_path))


def test_each_image_of_a_tar_has_its_own_kind_of_label(tmp_path: Path) -> None:
    members = {"a.png": png(), "a.cls": b"1", "b.png": png(), "b.json": b'{"label": 2}'}
    both = {"c.png": png(), "c.cls": b"3", "c.json": b'{"label": 3.0}', "about.json": b'{"label": 9}'}
    tar_of(tmp_path / "x.tar", members | both)
    _, items = listed("webdataset", str(tmp_path))
    assert [(item.sample_id, item.label) for item in items] == [("a", 1), ("b", 2), ("c", 3)]


def test_a_member_whose_name_is_not_utf8_is_one_rejected_row(tmp_path: Path) -> None:
    members = {"a.png": png(), "a.cls": b"0", "caf\udce9.png": png(), "caf\udce9.cls": b"1"}
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    source, items = listed("webdataset", str(tmp_path))
    assert [(item.sample_id, item.label) for item in items] == [("a", 0), ("caf\\xe9", 1)]
    contents = list(source.read(items))
    assert contents[0] == png() and str(contents[1]) == "its name is not UTF-8"


def test_a_header_of_a_gigabyte_is_refused_before_it_is_read(tmp_path: Path) -> None:
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, 1 << 30
    (tmp_path / "x.tar").write_bytes(header.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 16))
    with pytest.raises(InputError, match=r"damaged .*a header of 1073741824 bytes"):
        listed("webdataset", str(tmp_path))


def test_an_image_in_a_tar_that_is_too_large_is_rejected(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(webdataset, "LARGEST_FILE", 100)
    tar_of(tmp_path / "x.tar", {"a.png": png(), "a.cls": b"0", "b.png": b"x" * 99, "b.cls": b"0"})
    source, items = listed("webdataset", str(tmp_path))
    contents = list(source.read(items))
    assert isinstance(contents[0], Unreadable) and contents[1] == b"x" * 99


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.cls", b" 3\r\n", 3),
        ("a.json", b'{"label": true}', 1),
        ("a.json", b'{"label": 2.0}', 2),
        ("a.cls", b"1_0", "holds '1_0', expected a class number"),
        ("a.cls", "\u0663".encode(), "expected a class number"),
        ("a.cls", b"0" * 22 + b"1 x", "expected a class number"),
        ("a.json", b'{"label": 1, "label": 0}', "expected JSON, each key once"),
        ("a.json", b'{"label": 1e400}', "has only one of image and label for 'a'"),
    ],
)
def test_a_label_is_a_whole_number_or_refused(
    tmp_path: Path, name: str, content: bytes, expected: int | str
) -> None:
    tar_of(tmp_path / "t.tar", {"a.png": png(), name: content})
    if isinstance(expected, int):
        assert [item.label for item in listed("webdataset", str(tmp_path))[1]] == [expected]
    else:
        with pytest.raises(InputError, match=expected):
            listed("webdataset", str(tmp_path))


def test_what_tar_keeps_once_is_read_twice_and_a_compressed_one_refused(tmp_path: Path) -> None:
    def link(name: str, target: str) -> tarfile.TarInfo:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = tarfile.LNKTYPE, target
        return member

    tar_of(tmp_path / "a/t.tar", {"a.png": png(), "a.cls": b"1"})
    with tarfile.open(tmp_path / "a/t.tar", "a") as tar:
        for member in (link("b.png", "a.png"), link("b.cls", "a.cls"), link("c.txt", "a.png")):
            tar.addfile(member)
    source, items = listed("webdataset", str(tmp_path / "a"))
    assert [(item.sample_id, item.label) for item in items] == [("a", 1), ("b", 1)]
    assert list(source.read(items)) == [png(), png()] and "c.txt" in source.passed_over[0]
    (tmp_path / "a/t.tar").write_bytes(gzip.compress((tmp_path / "a/t.tar").read_bytes()))
    with pytest.raises(InputError, match="is compressed, expected a plain one: gunzip it"):
        listed("webdataset", str(tmp_path / "a"))


def test_an_index_that_has_a_label_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "i.json").write_text('{"0": ["a", "A"], "0": ["b", "B"]}')
    with pytest.raises(InputError, match="the key '0' is there twice"):
        class_index.read_index(str(tmp_path / "i.json"))
