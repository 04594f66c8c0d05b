"""The reader of text inputs: what it reads, and that what it cannot read names file and line."""

from __future__ import annotations

import json
import re

import pytest
from PIL import Image

import datekit as dk
from datekit.cli import main
from datekit.evaluation import folders
from datekit.evaluation.prompts import Row, read_prompts
from datekit.texts import read_records


@pytest.mark.parametrize(("name", "text", "rows"), [
    ("a.csv", '\ufeffSeed,Caption,family\r\n5,"a cat,\na dog",two\r\n\r\n6,"a ""big"" cat",\r\n',
     [Row("a cat,\na dog", 5, "two"), Row('a "big" cat', 6)]),
    ("parti.tsv", 'Prompt\tCategory\tseed\n"a, b" in quotes\t\t3\n',
     [Row('"a, b" in quotes', 3)]),
    ("DrawBench.csv", 'Prompts,Category\nA red colored car.,Colors\n"a, b",Counting\n',
     [Row("A red colored car."), Row("a, b")]),
    ("PartiPrompts.tsv", 'Prompt\tCategory\tChallenge\tNote\nan F1\tVehicles\tBasic\t\n',
     [Row("an F1")]),
    ("a.txt", "\ufeffone, with a comma\n\n  two\u2028lines \r\n",
     [Row("one, with a comma"), Row("two\u2028lines")]),
    ("mac.txt", "a cat\ra dog\r", [Row("a cat"), Row("a dog")]),
    ("mac.csv", 'prompt,seed\ra,5\r"a dog,\rtoo",6\r', [Row("a", 5), Row("a dog,\rtoo", 6)]),
    ("mac.jsonl", '{"prompt": "a cat"}\r{"prompt": "a dog"}\r', [Row("a cat"), Row("a dog")]),
    ("evaluation_metadata.jsonl",
     '{"tag": "x", "include": [{"class": "cup"}], "prompt": "a\u2028b", "seed": 7}\n\n',
     [Row("a\u2028b", 7)]),
])  # fmt: skip
def test_files_of_prompts(tmp_path, name, text, rows):
    (tmp_path / name).write_bytes(text.encode())
    read = [Row.of(record) for record in read_records(tmp_path / name)]
    assert list(map(repr, read)) == list(map(repr, rows))  # families too


COCO = {
    "images": [{"id": 7, "file_name": "7.jpg"}, {"id": 3, "file_name": "3.jpg"}],
    "annotations": [{"image_id": 3, "caption": "a cat "}, {"image_id": 7, "caption": "a dog"}],
}


def test_coco_and_the_shapes_world(tmp_path):
    (tmp_path / "captions.json").write_text(json.dumps(COCO))
    assert [row.prompt for row in read_prompts(tmp_path / "captions.json")] == ["a cat", "a dog"]
    rows = read_prompts("shapes:3")
    assert [row.family for row in rows] == [f for f in dk.shapes.FAMILIES for _ in range(3)]
    for source in ("shapes:", "shapes:x", "shapes:0", "shapes:3:position"):
        with pytest.raises(ValueError, match=r"shapes:N|invalid literal"):
            read_prompts(source)


def test_copies_of_a_prompt_have_seeds_of_their_own(tmp_path):
    (tmp_path / "a.csv").write_text("prompt,seed\nx,5\ny,6\n")
    rows = read_prompts(tmp_path / "a.csv", copies=3)
    assert [row.prompt for row in rows] == ["x"] * 3 + ["y"] * 3
    assert [rows[0].seed, rows[3].seed] == [5, 6]
    assert len({row.seed for row in rows}) == 6
    assert read_prompts(tmp_path / "a.csv", copies=1) == read_prompts(tmp_path / "a.csv")
    with pytest.raises(ValueError, match="copies"):
        read_prompts(tmp_path / "a.csv", copies=0)


def test_pictures_in_the_layout_of_geneval(tmp_path):
    """As evaluate_images.py walks it: digits name folders and pictures; a file is one record."""
    records = [{"tag": "counting", "prompt": name, "include": []} for name in ("a cat", "a dog")]
    metadata, folder = tmp_path / "evaluation_metadata.jsonl", tmp_path / "pictures"
    metadata.write_text("".join(json.dumps(record) + "\n" for record in records))
    rows = [Row("a dog", 0), Row("a cat", 1), Row("a dog", 2)]
    folder.mkdir()
    (folder / "metadata.jsonl").write_text(folders.manifest_of(rows))
    for n in range(3):
        Image.new("L", (1, 1), n).save(folders.picture(folder, n))
    words = ["geneval", str(folder), str(metadata), str(tmp_path / "out")]
    assert main(words) == 0
    seen = []
    for place in sorted((tmp_path / "out").iterdir()):
        assert place.name.isdigit()
        record = json.loads((place / "metadata.jsonl").read_text())
        files = sorted((place / "samples").iterdir())
        assert all(re.fullmatch(r"\d+\.png", file.name) for file in files)
        seen.append((place.name, record, [Image.open(file).getpixel((0, 0)) for file in files]))
    assert seen == [("00000", records[0], [1]), ("00001", records[1], [0, 2])]
    assert main(words) == 2  # pictures of before would be judged too
    metadata.write_text('{"prompt": "a bird"}\n')
    with pytest.raises(ValueError, match=r"line 1: .* has no picture of this prompt"):
        folders.write_geneval(folder, metadata, tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(("name", "data", "message"), [
    ("a.csv", b"words,seed\nx,1\n", r"a\.csv, line 2: .* must be a text, got None"),
    ("a.csv", b"prompt,seed\nx,one\n", "line 2: a seed is from 0 to .*, got 'one'"),
    ("a.csv", b"prompt,seed\nx,9223372036854775808\n", "line 2: a seed is from 0 to"),
    ("a.csv", b"prompt,seed\nx,1\ny\n", "line 3, has not the cells of the header"),
    ("a.csv", b"prompt,seed\na star, a square,1\n", "a comma needs quotes"),
    ("a.csv", b"prompt,seed\n ,1\n", "line 2: .* must be a text, got ' '"),
    ("a.csv", b'prompt\nx\n"y\nz\n', "line 3: .*is a quote left open"),
    ("a.csv", b'prompt\nx\n"y\nz "w" v\n', "line 3: .*is a quote left open"),
    ("a.csv", b"prompt,Prompt\nx,y\n", "two columns of one name"),
    ("a.tsv", b'prompt\n"says ""hi"""\n', "no cell of a .tsv is quoted"),
    ("a.txt", b"\n\n", "holds no prompts"),
    ("a.txt", "x\ncaf\u00e9".encode("cp1252"), r"a\.txt, line 2, is not UTF-8"),
    ("a.txt", "x".encode("utf-16"), "line 1, is not UTF-8"),
    ("a.tsv", b'prompt\tseed\n"a dog"\t1\n', "no cell of a .tsv is quoted"),
    ("a.txt", "x\ny".encode("utf-16-le"), "line 1, is not UTF-8"),
    ("a.csv", "prompt\nx\n".encode("utf-16-be"), "line 1, is not UTF-8"),
    ("a.jsonl", b'{"prompt": "x"}\n{"prompt": "\\ud83d"}\n', r"a\.jsonl, line 2: "),
    ("a.json", json.dumps({"images": [], "annotations": ["\ud800"]}).encode(), r"a\.json: "),
    ("a.jsonl", b'{"prompt": "x"}\n{\n', r"a\.jsonl, line 2: "),
    ("a.jsonl", b'{"prompt": 3}\n', "line 1: .* got 3"),
    ("a.json", b"[]", "is no JSON object"),
    ("a.json", b"{}", "is not a COCO caption file"),
])  # fmt: skip
def test_what_cannot_be_read_is_named(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=message):
        read_prompts(tmp_path / name)
