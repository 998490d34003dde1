"""The projection of Eq. 2 against a float64 reference, and what a memory refuses."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from topa.errors import DataError, FingerprintError
from topa.features.attention import _attend_fused, _attend_plain
from topa.features.memory import Memory


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return functional.normalize(values, dim=-1)


def make_memory(rows: int = 50, dim: int = 8, seed: int = 0, temperature: float = 100.0) -> Memory:
    captions = [f"caption {i}" for i in range(rows)]
    return Memory(unit(rows, dim, seed=seed), captions, "test-encoder", temperature)


def reference(features: torch.Tensor, memory: Memory) -> torch.Tensor:
    """Eq. 2 in one shot and in float64."""
    rows = memory.features.double()
    weights = (memory.temperature * features.double() @ rows.T).softmax(-1)
    return functional.normalize(weights @ rows, dim=-1)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 97),
    count=st.integers(1, 7),
    chunk=st.integers(1, 120),
    temperature=st.sampled_from([1.0, 10.0, 100.0]),
    seed=st.integers(0, 5),
)
def test_any_chunk_gives_the_one_shot_answer(rows, count, chunk, temperature, seed):
    memory = make_memory(rows, 8, seed, temperature)
    features = unit(count, 8, seed=seed + 100)
    projected = memory.project(features, chunk=chunk)
    # The sum of the weights may cancel where few rows point all ways: errors are relative to it.
    torch.testing.assert_close(projected.double(), reference(features, memory), rtol=0, atol=5e-5)


@pytest.mark.parametrize("attend", [_attend_fused, _attend_plain])
@pytest.mark.parametrize("rows", [1, 7, 2048, 2500])
@pytest.mark.parametrize("threads", [1, 3])  # 3 leave a row or two over
def test_both_ways_of_attending_agree_with_float64(attend, rows, threads, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    queries, memory = unit(5, 16, seed=1) * 100, unit(rows, 16)
    mixed, logsum = attend(queries, memory)
    scores = queries.double() @ memory.double().T
    torch.testing.assert_close(
        mixed.double(), scores.softmax(-1) @ memory.double(), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(logsum[:, 0].double(), scores.logsumexp(-1), atol=1e-4, rtol=0)


def test_more_features_than_one_block_of_queries():
    memory = make_memory(300)
    features = unit(2, 700, 8, seed=3)
    torch.testing.assert_close(
        memory.project(features).double(), reference(features, memory), atol=1e-5, rtol=0
    )


def test_a_row_of_the_memory_that_stands_alone_projects_to_itself():
    memory = Memory(torch.eye(6), [str(i) for i in range(6)], "test-encoder")
    # Every other row scores 100 lower: its weight is e^-100.
    torch.testing.assert_close(memory.project(torch.eye(6)), torch.eye(6))


def test_padding_frames_are_not_projected_to_the_memory_mean():
    memory = make_memory()
    features = unit(2, 4, 8, seed=1)
    mask = torch.tensor([[True, True, False, False], [True, True, True, True]])
    features[0, 2:] = 0  # what zero padding leaves
    projected = memory.project(features, mask)
    assert (projected[0, 2:] == 0).all()
    torch.testing.assert_close(projected[mask].norm(dim=-1), torch.ones(6))
    mean = functional.normalize(memory.features.mean(0), dim=0)
    assert (projected[0, 2:] @ mean == 0).all()


def test_a_masked_frame_is_zero_whatever_it_holds():
    memory = make_memory()
    features = unit(3, 8, seed=1)
    features[1] = torch.nan
    projected = memory.project(features, torch.tensor([True, False, True]))
    assert (projected[1] == 0).all()
    torch.testing.assert_close(projected[[0, 2]], memory.project(features[[0, 2]]))


def test_zero_vector_is_not_divided_by_its_norm():
    memory = make_memory()
    features = torch.zeros(2, 8)
    features[1] = unit(8, seed=2)
    projected = memory.project(features)
    assert (projected[0] == 0).all()
    assert projected.isfinite().all()
    with pytest.raises(DataError, match="row 1 is not a unit vector"):
        Memory(torch.stack([unit(8), torch.zeros(8)]), ["a", "b"], "test-encoder")


def test_shape_dtype_and_input_are_kept():
    memory = make_memory()
    features = unit(2, 3, 8, seed=1).bfloat16()
    before = features.clone()
    projected = memory.project(features)
    assert projected.shape == features.shape
    assert projected.dtype == torch.bfloat16
    assert torch.equal(features, before)


def test_nothing_to_project():
    memory = make_memory()
    assert memory.project(torch.zeros(0, 8)).shape == (0, 8)
    assert (memory.project(unit(2, 8), torch.zeros(2, dtype=torch.bool)) == 0).all()


def test_no_gradient_is_recorded():
    assert not make_memory().project(unit(2, 8).requires_grad_()).requires_grad


@pytest.mark.parametrize(
    ("features", "mask", "match"),
    [
        (torch.ones(2, 7), None, "size 7, memory of size 8"),
        (torch.ones(2, 8), torch.ones(3, dtype=torch.bool), "mask"),
        (torch.full((2, 8), torch.nan), None, "not finite"),
    ],
)
def test_project_refuses(features, mask, match):
    with pytest.raises(DataError, match=match):
        make_memory().project(features, mask)


def test_foreign_fingerprint_is_refused(tmp_path):
    memory = make_memory()
    memory.project(unit(1, 8), fingerprint="test-encoder")
    with pytest.raises(FingerprintError, match="other-encoder"):
        memory.project(unit(1, 8), fingerprint="other-encoder")
    memory.save(tmp_path)
    with pytest.raises(FingerprintError, match="other-encoder"):
        Memory.load(tmp_path, fingerprint="other-encoder")


@pytest.mark.parametrize(
    ("features", "captions", "match"),
    [
        (torch.zeros(0, 8), [], "features"),
        (unit(2, 8), ["one"], "2 rows but 1 captions"),
        (unit(2, 8) * 2, ["a", "b"], "row 0"),
        (torch.full((1, 8), torch.nan), ["a"], "row 0"),
    ],
)
def test_rows_must_be_unit_vectors_with_captions(features, captions, match):
    with pytest.raises(DataError, match=match):
        Memory(features, captions, "test-encoder")


def test_nearest_gives_shares_of_the_whole_memory():
    memory = make_memory(5000, temperature=30.0)  # more rows than one chunk of scores
    features = unit(4, 8, seed=9)
    weights, index = memory.nearest(features, k=3)
    expected = (30.0 * features.double() @ memory.features.double().T).softmax(-1).topk(3)
    assert torch.equal(index, expected.indices)
    torch.testing.assert_close(weights.double(), expected.values, atol=1e-5, rtol=1e-4)
    assert make_memory(2).nearest(features, k=3)[1].shape == (4, 2)


def test_saved_and_loaded(tmp_path):
    memory = make_memory(temperature=50.0)
    memory.save(tmp_path)
    loaded = Memory.load(tmp_path, fingerprint="test-encoder")
    assert torch.equal(loaded.features, memory.features)
    assert loaded.captions == memory.captions
    assert (loaded.temperature, loaded.fingerprint) == (50.0, "test-encoder")
    assert loaded.fingerprint_of_content == memory.fingerprint_of_content


def test_content_is_named_by_all_of_it():
    names = {make_memory().fingerprint_of_content}
    names.add(make_memory(seed=1).fingerprint_of_content)
    names.add(make_memory(temperature=1.0).fingerprint_of_content)
    names.add(Memory(unit(50, 8), ["x"] * 50, "test-encoder").fingerprint_of_content)
    assert len(names) == 4
    assert make_memory().fingerprint_of_content in names


def test_damaged_or_mixed_files_are_refused(tmp_path):
    with pytest.raises(DataError, match="file not found"):
        Memory.load(tmp_path)
    make_memory().save(tmp_path)
    (tmp_path / "captions.json").write_text('["another"]')
    with pytest.raises(DataError, match="does not belong"):
        Memory.load(tmp_path)
    for wrong in ("[1, 2]", "{}", "5"):
        (tmp_path / "captions.json").write_text(wrong)
        with pytest.raises(DataError, match="does not belong"):
            Memory.load(tmp_path)
    make_memory().save(tmp_path)
    path = tmp_path / "memory.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match="not a memory file"):
        Memory.load(tmp_path)


@pytest.mark.parametrize(
    ("storage", "size", "error"),
    [("float32", 4, 1e-6), ("float16", 2, 2e-3), ("bfloat16", 2, 2e-2), ("int8", 1, 3e-2)],
)
def test_smaller_storage_changes_the_projection_little(storage, size, error, tmp_path):
    rows, queries = unit(500, 64), unit(5, 64, seed=1)
    captions = [str(row) for row in range(500)]
    exact = Memory(rows, captions, "test-encoder", 30.0).project(queries)
    memory = Memory(rows, captions, "test-encoder", 30.0, storage=storage)
    assert memory.features.nbytes == 500 * 64 * size
    assert (memory.project(queries) - exact).norm(dim=-1).max() < error
    memory.save(tmp_path)
    loaded = Memory.load(tmp_path)
    assert loaded.storage == storage
    assert loaded.fingerprint_of_content == memory.fingerprint_of_content
    torch.testing.assert_close(loaded.project(queries), memory.project(queries))


def test_the_nearest_rows_bound_what_top_k_leaves_out():
    """The exact mean is the mean of kept and dropped rows, weighted by their mass."""
    rows, queries = unit(300, 16), unit(8, 16, seed=1)
    memory = Memory(rows, [""] * 300, "test-encoder", 30.0)
    weights = (30.0 * queries @ rows.T).softmax(-1)
    for k in (1, 10, 300):
        kept = memory.nearest(queries, k)[0].sum(1)
        dropped = torch.sort(weights, descending=True).values[:, k:].sum(1)
        torch.testing.assert_close(1 - kept, dropped, atol=1e-5, rtol=0)
    torch.testing.assert_close(memory.project(queries, top_k=300), memory.project(queries))
    nearest = memory.project(queries, top_k=1, max_dropped=1.0)
    assert not torch.allclose(nearest, memory.project(queries))


def test_top_k_is_refused_where_it_leaves_out_too_much():
    memory, queries = make_memory(300, 16, temperature=30.0), unit(8, 16, seed=1)
    kept = memory.nearest(queries, 10)[0].sum(1)
    dropped = float(1 - kept.min())
    with pytest.raises(DataError, match=f"leave out up to {dropped:.1%} of the softmax, 1.0% are"):
        memory.project(queries, top_k=10)
    memory.project(queries, top_k=10, max_dropped=dropped)
    memory.project(queries, top_k=300)


def test_a_mean_shift_moves_the_mean_of_images_onto_that_of_texts(tmp_path):
    rows, images = unit(300, 16), unit(40, 16, seed=1)
    captions = [""] * 300
    plain = Memory(rows, captions, "test-encoder", 30.0)
    memory = Memory(rows, captions, "test-encoder", 30.0, image_mean=images.mean(0))
    moved = images - images.mean(0) + rows.mean(0)
    torch.testing.assert_close(memory.project(images), functional.normalize(moved, dim=-1))
    torch.testing.assert_close(moved.mean(0), rows.mean(0), atol=1e-6, rtol=0)
    assert (memory.projection, plain.projection) == ("mean-shift", "memory")
    assert memory.fingerprint_of_content != plain.fingerprint_of_content
    memory.save(tmp_path)
    loaded = Memory.load(tmp_path)
    assert loaded.fingerprint_of_content == memory.fingerprint_of_content
    assert torch.equal(loaded.project(images), memory.project(images))
    mask = torch.arange(40) < 3
    assert not memory.project(images, mask)[3:].any()


def test_an_image_mean_of_another_size_is_refused():
    with pytest.raises(DataError, match=r"image mean \[4\] for rows of size 8"):
        Memory(unit(3, 8), [""] * 3, "test-encoder", image_mean=torch.zeros(4))
