"""Pictures into classes: made ready as the model's own processor does it, and nothing that is sent breaks anything."""

from __future__ import annotations

import base64
import io
import json
import resource
import struct
import threading
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flask.testing import FlaskClient
from PIL import Image
from senses import COLOURS, HOW, SIZE, colours, picture, save_pictures

from serving import mlmodel, prepare, reference
from serving.batching.cost import Cost
from serving.errors import InvalidInput, TooManyRows, VersionRefused
from serving.registry import Auth, Version
from serving.runtimes import Limits, image, limited, pictures
from serving.runtimes.image import Preprocessing
from serving.tensors import Batch, Prediction

LIMITS = Limits()
KINDS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
BOUND_MB = 100


def batch(*files: Any) -> Batch:
    column = np.empty(len(files), dtype=object)
    column[:] = files
    return Batch(("image",), (column,))


def converted(saved: Path, into: Path) -> Path:
    into.mkdir()
    image.convert(mlmodel.read(saved), saved, into)
    return into


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pictures(tmp_path_factory.mktemp("saved") / "pictures")


@pytest.fixture(scope="module")
def folder(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return converted(saved, tmp_path_factory.mktemp("image") / "bundle")


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


def file_of(made: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    made.save(file, kind, **options)
    return file.getvalue()


def png(width: int, height: int, rows: bytes) -> bytes:
    """A grey PNG of that size, whatever ``rows`` hold."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    end = chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + end


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def refusal(data: Any, limits: Limits = LIMITS) -> str:
    with pytest.raises(InvalidInput) as refused:
        image.check(batch(picture(size=(2, 2)), data), limits)
    assert (refused.value.row, refused.value.column) == (1, "image")
    return refused.value.what


# --- what is answered ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_picture_is_read(folder: Path, kind: str) -> None:
    given = [picture(colour, kind=kind) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    got = limited("image", image.load(folder), LIMITS)(batch(*given))
    assert got.values.tolist() == [0, 1, 2]
    assert got.probabilities is not None
    np.testing.assert_allclose(got.probabilities.sum(axis=1), 1, atol=1e-12)


@pytest.mark.parametrize(("resize", "crop"), [(20, [16, 16]), ([24, 16], None), ([30, 40], [9, 7])])
@pytest.mark.parametrize("resample", ["bilinear", "bicubic", "nearest", "lanczos"])
@pytest.mark.parametrize("size", [(50, 37), (37, 50), (20, 20), (10, 300)])
def test_a_picture_is_made_ready_step_by_step(resize: Any, crop: Any, resample: str, size: tuple[int, int]) -> None:
    """By the same steps, one after the other, in 64 bits."""
    how = Preprocessing.from_json({**HOW, "resize": resize, "crop": crop, "resample": resample})
    made = noise(*size)
    short = min(size)
    scaled = (
        (resize[1], resize[0])
        if isinstance(resize, list)
        else tuple(resize if side == short else int(resize * side / short) for side in size)
    )
    pixels = np.asarray(made.resize(scaled, Image.Resampling[resample.upper()]), np.float64)
    if crop is not None:
        top, left = (pixels.shape[0] - crop[0]) // 2, (pixels.shape[1] - crop[1]) // 2
        pixels = pixels[top : top + crop[0], left : left + crop[1]]
    wanted = ((pixels / 255 - 0.5) / 0.25).transpose(2, 0, 1)
    got = image.prepared(file_of(made), how)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5)


def test_a_picture_is_turned_as_it_was_held() -> None:
    made, how = noise(40, 30), Preprocessing.from_json({**HOW, "resize": [30, 40], "crop": None})
    for orientation, turn in ((3, Image.Transpose.ROTATE_180), (6, Image.Transpose.ROTATE_270)):
        exif = Image.Exif()
        exif[pictures.ORIENTATION] = orientation
        turned = image.prepared(file_of(made, exif=exif.tobytes()), how)
        np.testing.assert_array_equal(turned, image.prepared(file_of(made.transpose(turn)), how))
    assert image.prepared(file_of(made, exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff"), how).shape == (3, 30, 40)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
@pytest.mark.parametrize("wanted", ["RGB", "L"])
def test_every_mode_becomes_the_model_s(mode: str, wanted: str) -> None:
    made = noise(24, 24, "RGB").convert(mode) if mode not in ("LA",) else noise(24, 24, "L").convert("LA")
    data = file_of(made, "JPEG" if mode == "CMYK" else "PNG")
    found = pictures.read(data, wanted, np.array)
    np.testing.assert_array_equal(found, np.asarray(Image.open(io.BytesIO(data)).convert(wanted)))


def test_sixteen_bits_become_eight() -> None:
    values = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
    found = pictures.read(file_of(Image.fromarray(values)), "L", np.array)
    np.testing.assert_array_equal(found.ravel(), np.arange(256))


def test_grey_pictures_have_one_channel(tmp_path: Path) -> None:
    saved = save_pictures(tmp_path / "saved" / "grey", mode="L", mean=[0.5], std=[0.5])
    got = image.load(converted(saved, tmp_path / "bundle"))(batch(picture((255, 255, 255)), picture((0, 0, 0))))
    assert got.values.tolist() == [0, 2]


# --- what is refused -------------------------------------------------------------------------------------------------


def test_what_is_no_picture_is_refused() -> None:
    assert refusal(b"") == "is empty; expected JPEG, PNG, WebP, GIF or BMP"
    for wrong in (b"x", b"%PDF-1.7", picture(kind="TIFF"), picture(kind="ICO"), b"\xff\xd8\xff", b"GIF89a", b"BM"):
        assert "picture" in refusal(wrong)


def test_a_picture_that_expands_to_gigabytes_costs_nothing(folder: Path) -> None:
    """Of each kind: the head says a size, and the head is all that is read."""
    packer = zlib.compressobj(9)
    row = bytes(30_001)
    rows = b"".join(packer.compress(row) for _ in range(30_000)) + packer.flush()
    bombs = [png(30_000, 30_000, rows), png(16_000, 10_000, rows)]
    for kind, place, written in (
        ("GIF", 6, struct.pack("<HH", 65_535, 65_535)),
        ("BMP", 18, struct.pack("<ii", 60_000, 60_000)),
        ("WEBP", 26, struct.pack("<HH", 16_383, 16_383)),
        ("WEBP", 26, struct.pack("<HH", 16_383, 10_000)),
    ):
        data = bytearray(picture(kind=kind))
        data[place : place + len(written)] = written
        bombs.append(bytes(data))
    predict, before = limited("image", image.load(folder), LIMITS), peak_mb()
    for bomb in bombs:
        with pytest.raises(InvalidInput, match="pixels"):
            predict(batch(bomb))
    assert peak_mb() - before < BOUND_MB


def test_sides_and_pixels_are_bounded() -> None:
    assert "at most 16384 on each side" in refusal(png(16_385, 1, b""))
    most = Limits(image_pixels=100)
    assert refusal(picture(size=(10, 11)), most) == (
        "is a picture of 10 × 11 = 110 pixels; at most 100 are read (MAX_IMAGE_PIXELS)"
    )
    image.check(batch(picture(size=(10, 10))), most)


def test_a_mere_line_is_not_scaled_to_gigabytes(folder: Path) -> None:
    before = peak_mb()
    with pytest.raises(InvalidInput, match="too narrow"):
        image.prepared(picture(size=(1, 16_000)), Preprocessing.from_json({**HOW, "resize": 256, "crop": None}))
    assert peak_mb() - before < BOUND_MB


def test_few_bytes_do_not_ask_for_seconds() -> None:
    scan = b"\xff\xda\x00\x08\x01\x01\x00\x00\x00\x00"
    assert "scans" in refusal(picture(kind="JPEG")[:-2] + scan * 200 + b"\xff\xd9")
    bmp = bytearray(file_of(noise(8, 8, "P"), "BMP"))
    bmp[30] = 1  # run lengths
    assert "run lengths" in refusal(bytes(bmp))


def test_too_many_pictures_are_refused() -> None:
    with pytest.raises(TooManyRows, match=r"33 pictures; at most 32 are answered at once \(MAX_IMAGES\)"):
        image.check(batch(*[picture()] * 33), LIMITS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_cut_off_is_refused_with_its_row(folder: Path, kind: str) -> None:
    whole = file_of(noise(64, 64), kind)
    with pytest.raises(InvalidInput, match=r"broken|no picture") as refused:
        limited("image", image.load(folder), LIMITS)(batch(picture(), whole[: len(whole) // 2]))
    assert refused.value.row == 1


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_is_broken_is_answered_or_refused(deep_app: Any, kind: str) -> None:
    """Forty seeded ways of each kind, over HTTP: no answer is the server's error."""
    client, chance = deep_app.test_client(), np.random.default_rng(KINDS.index(kind))
    whole, seen = np.frombuffer(file_of(noise(12, 12), kind), np.uint8), set()
    for way in range(40):
        data = whole.copy()
        places = chance.integers(0, len(data) if way % 2 else min(len(data), 64), chance.integers(1, 9))
        data[places] = chance.integers(0, 256, len(places))
        sent = data[: chance.integers(1, len(data))] if way % 5 == 0 else data
        answer = client.post("/models/pictures/predict", json={"features": [base64.b64encode(sent.tobytes()).decode()]})
        assert answer.status_code in (200, 400), (way, answer.text)
        seen.add(answer.status_code)
    assert 400 in seen


def test_large_pictures_are_in_memory_one_at_a_time(folder: Path) -> None:
    """Eight callers at once: what one takes, not what eight take."""
    large = file_of(Image.new("RGB", (3000, 3000), (0, 0, 255)))  # 36 MB each
    predict = image.load(folder)
    predict(batch(large))
    before, got = peak_mb(), []
    callers = [threading.Thread(target=lambda: got.append(predict(batch(large, large)))) for _ in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert [one.values.tolist() for one in got] == [[2, 2]] * 8
    assert peak_mb() - before < BOUND_MB


# --- the version's files ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"precision": None}, "says no precision"),
        ({"top_k": 0}, "says no top_k"),
        ({"mode": "CMYK"}, "made ready"),
        ({"resample": "best"}, "made ready"),
        ({"resize": 10}, "made ready"),
        ({"resize": [0, 10]}, "made ready"),
        ({"crop": [16]}, "made ready"),
        ({"mean": [0.5]}, "made ready"),
        ({"std": None}, "made ready"),
    ],
)
def test_a_folder_that_does_not_fit_together_is_refused(tmp_path: Path, changed: dict[str, Any], words: str) -> None:
    saved = save_pictures(tmp_path / "saved" / "pictures")
    path = saved / "artifacts" / "image" / "image.json"
    path.write_text(json.dumps({**HOW, **changed}))
    with pytest.raises(VersionRefused, match=words):
        converted(saved, tmp_path / "bundle")


@pytest.mark.parametrize(
    ("metadata", "words"),
    [({}, "name no classes"), ({"class_names": ["a", "b"]}, "knows 3 classes, its metadata name 2")],
)
def test_classes_must_be_named(saved: Path, tmp_path: Path, metadata: dict[str, Any], words: str) -> None:
    model = {**mlmodel.read(saved), "metadata": {"image": "artifacts/image", **metadata}}
    with pytest.raises(VersionRefused, match=words):
        image.convert(model, saved, tmp_path)


def prepared(saved: Path, home: Path) -> Any:
    home.mkdir()
    version = Version("pictures", "1", None, "local", str(saved))
    return prepare.prepare(prepare.Job(version, "", str(home), str(home / "made")), Auth())


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("int8", 0.1)])
def test_it_proves_itself_as_well_as_its_precision_allows(tmp_path: Path, precision: str, tolerance: float) -> None:
    saved = save_pictures(tmp_path / "saved" / "pictures", precision=precision)
    given = batch(picture(), picture((0, 0, 255)))
    right = image.load(converted(saved, tmp_path / "converted"))(given)
    assert right.probabilities is not None
    for off, name in ((tolerance / 2, "near"), (tolerance * 2, "far")):
        recorded = Prediction(right.values, right.probabilities + np.array([off, 0, -off]))
        reference.write(saved / reference.FILE_NAME, given, recorded)
        if name == "far":
            with pytest.raises(VersionRefused, match=f"allowed is {tolerance:g}"):
                prepared(saved, tmp_path / name)
            continue
        bundle = prepared(saved, tmp_path / name)
        assert (bundle.runtime, bundle.proof.rows, bundle.proof.tolerance) == ("image", 2, tolerance)
        assert bundle.variant == {"precision": precision, "agreement": None, "weights": HOW["weights"], "top_k": 2}
        assert bundle.classes is not None
        assert bundle.classes.names == COLOURS


def test_callers_are_never_answered_together(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "_cost", lambda *_: Cost(0.5, 0.01, 8))  # as a busy machine may have it look
    assert prepared(saved, tmp_path / "home").batching is False


def test_it_has_an_example_where_the_version_has_none(deep_app: Any) -> None:
    client: FlaskClient = deep_app.test_client()
    info = client.get("/models/pictures").get_json()
    assert info["runtime"] == "image"
    assert client.post("/models/pictures/predict", json={"features": info["example"][0]}).status_code == 200


def test_the_graph_takes_what_is_made_for_it() -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(colours(3), providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == ["rows", 3, SIZE, SIZE]
