"""Images in Parquet and Arrow files: columns, classes, splits, and what is refused."""

import io
import json
import sys

import numpy as np
import pytest
from PIL import Image

from ddpm_cli.data.parquet import found, parquet
from ddpm_cli.errors import UserError

YAML = {"cache": None, "files": None, "image_column": None, "label_column": None, "split": "all", "channels": 1}
YAML |= {"image_size": 4, "num_classes": None, "dtype": "uint8", "on_error": "stop", "max_skipped": 0.01}


def test_without_pyarrow_what_to_install_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r'pip install "ddpm_cli\[parquet\]"'):
        load(tmp_path)


def png(value):
    content = io.BytesIO()
    Image.fromarray(np.full((4, 4), value, np.uint8)).save(content, "PNG")
    return content.getvalue()


def load(root, **changed):
    return parquet(root=str(root), **{**YAML, **changed})


@pytest.fixture
def write():
    pyarrow = pytest.importorskip("pyarrow", reason='needs pip install "ddpm_cli[parquet]"')
    from pyarrow.parquet import write_table

    def of(path, columns, names=None, **options):
        table = pyarrow.table(columns)
        if names:
            features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": names}}
            table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        write_table(table, path, **options)
        return path

    return of


def rows(count, first=0):
    return [{"bytes": png(k), "path": None} for k in range(first, first + count)]


def test_rows_keep_their_order_over_groups_and_files(tmp_path, write):
    for shard in range(2):
        labels = [k % 3 for k in range(300)]
        write(
            tmp_path / f"{shard}.parquet", {"image": rows(300 // 2, 50 * shard) * 2, "label": labels}, row_group_size=7
        )
    store = load(tmp_path)
    assert len(store) == 600 and store.items[300:450, 0, 0, 0].tolist() == list(range(50, 200))
    assert store.labels.tolist() == [k % 3 for k in range(300)] * 2 and store.class_names == ("0", "1", "2")
    test = load(tmp_path, split="test")
    assert test.items.equal(store.items[5::6]) and len(load(tmp_path, split="train")) == 500


def test_the_schema_names_classes_of_which_some_may_be_empty(tmp_path, write):
    path = write(tmp_path / "a.parquet", {"image": rows(4), "label": [0, 2, 0, 2]}, names=["tabby", "tiger", "lion"])
    assert load(path).class_names == ("tabby", "tiger", "lion") and found({"root": path, **YAML}) == {"num_classes": 3}
    assert load(path, num_classes=0).labels is None
    path = write(tmp_path / "b.parquet", {"image": rows(2), "label": [0, 3]}, names=["tabby", "tiger", "lion"])
    with pytest.raises(UserError, match="3 is none of 3 classes"):
        load(path)


def test_columns_are_found_by_what_they_hold_or_named(tmp_path, write):
    columns = {"id": [1, 2], "picture": [png(1), png(2)], "kind": ["dog", "cat"], "label": [None, 1]}
    path = write(tmp_path / "a.parquet", columns)
    assert load(path, label_column="kind").labels.tolist() == [1, 0]
    assert load(path, label_column="kind").class_names == ("cat", "dog")
    with pytest.raises(UserError, match="row 0 holds None, no class"):
        load(path)
    with pytest.raises(UserError, match=r"dataset\.image_column=x: there are id, picture"):
        load(path, image_column="x")
    path = write(tmp_path / "b.parquet", {"a": [png(1)], "b": [png(2)]})
    with pytest.raises(UserError, match=r"dataset\.image_column: say which of a, b"):
        load(path)
    assert load(path, image_column="b").items.unique().tolist() == [2]


def test_images_may_lie_beside_the_file(tmp_path, write):
    (tmp_path / "1.png").write_bytes(png(9))
    path = write(tmp_path / "a.parquet", {"image": [{"bytes": None, "path": "1.png"}]})
    assert load(path).items.unique().tolist() == [9] and load(path).labels is None


def test_what_cannot_be_read_is_named(tmp_path, write):
    path = write(tmp_path / "a.parquet", {"image": [*rows(3), {"bytes": b"text", "path": None}]})
    with pytest.raises(UserError, match=r"a\.parquet: row 3: not an image"):
        load(path)
    assert len(load(path, on_error="skip", max_skipped=0.3)) == 3
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"^dataset\.root: .*a\.parquet cannot be read"):
        load(path)
    with pytest.raises(UserError, match=r"none\.parquet holds no rows"):
        load(write(tmp_path / "none.parquet", {"image": [], "label": []}, names=["a", "b"]))
    with pytest.raises(UserError, match=r"no \.parquet or \.arrow files"):
        load((tmp_path / "empty").mkdir() or tmp_path / "empty")
