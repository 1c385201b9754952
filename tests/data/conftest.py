"""Writers of small data sets in every form, and a cache of its own for every test."""

import io
import json
import pickle
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("OFFRAMP_CACHE", str(cache))
    return cache


def random_images(count, size=32, seed=0):
    """uint8 (count, 3, size, size)."""
    return np.random.default_rng(seed).integers(0, 256, (count, 3, size, size), dtype=np.uint8)


def png(pixels, format="PNG", mode="RGB", **options):
    """Bytes of an image from (3, H, W)."""
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))).convert(mode).save(stream, format, **options)
    return stream.getvalue()


def shard(path, images, labels, *, image="img", label="fine_label", names=None, struct=True):
    """A Parquet file in the Hub's layout; `images` are bytes, `labels` integers or strings."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    column = pa.array([{"bytes": data, "path": "/etc/passwd"} for data in images], kind) if struct else pa.array(images)
    table = pa.table({image: column, label: pa.array(labels, None if len(labels) else pa.int64())})
    if names:
        features = {image: {"_type": "Image"}, label: {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=16)
    return path


def cifar_parquet(folder, per_class=10, classes=100, label="fine_label"):
    """train and test shards; returns images and labels of train, then test."""
    names = [f"class{c}" for c in range(classes)]
    content = []
    for seed, part in enumerate(("train", "test")):
        labels = np.tile(np.arange(classes), per_class if part == "train" else 2)
        images = random_images(len(labels), seed=seed)
        content.append((images, labels))
        half = len(labels) // 2
        for number, rows in enumerate((slice(0, half), slice(half, None))):
            shard(
                Path(folder) / f"{part}-0000{number}-of-00002.parquet",
                [png(image) for image in images[rows]],
                labels[rows].tolist(),
                label=label,
                names=names,
            )
    return [np.concatenate(part) for part in zip(*content, strict=True)]


def cifar_batches(per_class=10, classes=100):
    """(images, labels) of train and of test."""
    return {
        part: (random_images(classes * n, seed=n), np.tile(np.arange(classes), n))
        for part, n in (("train", per_class), ("test", 2))
    }


def cifar100_python(folder, per_class=10):
    """The original python version, in a folder; returns what `cifar_batches` does."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    content = cifar_batches(per_class)
    for part, (images, labels) in content.items():
        coarse = (labels % 20).tolist()
        batch = {b"data": images.reshape(-1, 3072), b"fine_labels": labels.tolist(), b"coarse_labels": coarse}
        (folder / part).write_bytes(pickle.dumps(batch | {b"filenames": [b"x.png"] * len(labels)}, protocol=2))
    fine, coarse = [f"fine{c}".encode() for c in range(100)], [f"coarse{c}".encode() for c in range(20)]
    meta = {b"fine_label_names": fine, b"coarse_label_names": coarse}
    (folder / "meta").write_bytes(pickle.dumps(meta, protocol=2))
    return content


def cifar10_python(folder):
    """Five training batches and one of test, 10 images each of 10 classes."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate([*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]):
        batch = {b"data": random_images(10, seed=seed).reshape(-1, 3072), b"labels": list(range(10))}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    (folder / "batches.meta").write_bytes(pickle.dumps({b"label_names": [b"c%d" % c for c in range(10)]}, protocol=2))


def cifar100_binary(folder, per_class=10):
    """The original binary version."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    content = cifar_batches(per_class)
    for part, (images, labels) in content.items():
        records = np.concatenate([np.stack([labels % 20, labels], 1).astype(np.uint8), images.reshape(-1, 3072)], 1)
        (folder / f"{part}.bin").write_bytes(records.tobytes())
    (folder / "fine_label_names.txt").write_text("".join(f"fine{c}\n" for c in range(100)))
    return content


def cifar10_binary(folder):
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate([*(f"data_batch_{n}.bin" for n in range(1, 6)), "test_batch.bin"]):
        images = random_images(10, seed=seed).reshape(-1, 3072)
        records = np.concatenate([np.arange(10, dtype=np.uint8)[:, None], images], 1)
        (folder / name).write_bytes(records.tobytes())


def tar(path, folder):
    """A tar.gz of a folder."""
    with tarfile.open(path, "w:gz") as archive:
        archive.add(folder, arcname=Path(folder).name)
    return Path(path)


def image_folder(root, layout, size=(40, 36), format="PNG"):
    """`layout`: {"train/cat": 3, ...} -> numbered images."""
    rng = np.random.default_rng(0)
    for place, count in layout.items():
        folder = Path(root) / place
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(count):
            pixels = rng.integers(0, 256, (3, size[1], size[0]), dtype=np.uint8)
            (folder / f"{number:03}.{format.lower()}").write_bytes(png(pixels, format))
    return Path(root)


@pytest.fixture
def write():
    """All writers by name."""
    functions = (
        random_images,
        png,
        shard,
        cifar_parquet,
        cifar_batches,
        cifar100_python,
        cifar10_python,
        cifar100_binary,
        cifar10_binary,
        tar,
        image_folder,
    )
    return SimpleNamespace(**{function.__name__: function for function in functions})
